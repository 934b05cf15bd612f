"""Descriptions of networks: what `build_model` needs, and what timm needs."""

from dataclasses import dataclass, field
from typing import Any, Literal

Stem = Literal["standard", "cifar"]
"""First layers of a network: timm's own, or a 3×3 convolution without downsampling."""

HEADS = ("clean", "mixed")
"""Names of the linear heads that a `Classifier` has by default."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build a network again: `build_model(**dataclasses.asdict(spec))`.

    The fields are arguments of `build_model`, which documents them. Their values can be stored as
    JSON.
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
    """How to build the backbone of a `ModelSpec` with timm alone.

    Attributes:
        arguments: keyword arguments of `timm.create_model`, without `num_classes`.
        replacements: modules to replace afterwards. The keys are their paths; the values are the
            keyword arguments of the `nn.Conv2d` to put there, or None for `nn.Identity`.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    replacements: dict[str, dict[str, Any] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkPart:
    """The first layers of a network, as far as they were trained when the part was chosen.

    Attributes:
        parameters: names of its parameters, as `Classifier.named_parameters` gives them.
        modules: names of its modules that were in training mode, without modules that also contain
            layers behind the part.
    """

    parameters: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()
