"""What is needed to build a network again, and timm's terms for it."""

from dataclasses import dataclass, field
from typing import Any, Literal

Stem = Literal["standard", "cifar"]
HEADS = ("clean", "mixed")


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a network again: `build_model(**dataclasses.asdict(spec))`.

    The fields are the arguments of `build_model`; all are plain values that JSON can hold.
    """

    name: str
    num_classes: int
    stem: Stem = "standard"
    width: float = 1.0
    image_size: int = 224
    drop_path: float = 0.0
    heads: tuple[str, ...] = HEADS
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TimmPlan:
    """A spec in timm's terms: what to create, and which of its modules to replace afterwards.

    Attributes:
        arguments: keyword arguments of `timm.create_model`, without the number of classes.
        replacements: for the path of each module to replace, the keyword arguments of the
            `nn.Conv2d` that takes its place; None for `nn.Identity`.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    replacements: dict[str, dict[str, Any] | None] = field(default_factory=dict)
