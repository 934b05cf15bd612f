"""Mixture: one of several methods, drawn per batch or per image with given weights.

Paper: none.
Computes: a member k is drawn with probability w_k / Σ w, for the batch or for each image; the
result is that member's mixes `[B, C, H, W]` and labels `[B, K]`. Members with a single source, as
Cutout, count as mixes of an image with itself that have λ = 1.
Requires: only images and labels.
Cost: 3F per step, as plain training. With `per_sample` every member mixes the whole batch, and one
mix of each image is used.
Settings:
- mix: mixup, cutmix and resizemix are a choice of this implementation. They are the three methods
  that the recipe of S²-FracMix draws besides its own.
- weights: none, all alike, is a choice of this implementation.
- options: empty, so that members have their own defaults, is a choice of this implementation.
- per_sample: off, one member per batch, as timm chooses between Mixup and CutMix.
Deviations: none. `mixup+cutmix` stays a method of its own, because its draws and its boxes are
those of timm; as a member of a mixture it is drawn like any other.
Evidence: none published for ResNet-18 on CIFAR-100 in the openmixup benchmark. With several methods
in a list, openmixup draws one per batch with given probabilities, as this does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods.base import InputMixing, Method, MethodSettings
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import MixParams, Shape
from adautomix.validation import one_line_errors, setting_names, split_commas


@dataclass(frozen=True)
class MixtureParams(MixParams):
    """Parameters of a mixture.

    Attributes:
        choice: number of the member of each mix, int64 `[B]`.
        parts: parameters of the members that mix this batch: of all, or of one for all images.
        members: numbers of these members.
    """

    choice: Tensor
    parts: tuple[MixParams, ...]
    members: tuple[int, ...]


class MixtureSettings(MethodSettings):
    """Settings of a mixture."""

    mix: Annotated[tuple[str, ...], BeforeValidator(split_commas)] = Field(
        ("mixup", "cutmix", "resizemix"), description="the methods, which mix images only"
    )
    weights: Annotated[tuple[float, ...] | None, BeforeValidator(split_commas)] = Field(
        None, description="how often each is drawn, in any unit; none: all alike"
    )
    options: dict[str, dict[str, Any]] | None = Field(
        None, description="settings of the methods by name; none: their defaults"
    )
    per_sample: bool = Field(False, description="draw a method per mix instead of per batch")

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Check the settings of all members together with these."""
        self.members()
        if self.weights is not None:
            if len(self.weights) != len(self.mix):
                raise UsageError(
                    f"mixture.weights has {len(self.weights)} values for {len(self.mix)} methods: "
                    "give one per method"
                )
            if min(self.weights) < 0 or not 0 < sum(self.weights) < float("inf"):
                raise UsageError("mixture.weights must be at least 0, finite, and not all 0")
        for name in (self.options or {}).keys() - set(self.mix):
            raise UsageError(f"mixture.options.{name}: {name} is not among mixture.mix")
        return self

    def members(self) -> list[tuple[type[InputMixing], MethodSettings]]:
        """Return the class and the settings of each member.

        Raises:
            UsageError: a member is unknown or mixes more than images, or one of its settings is
                wrong.
        """
        if not self.mix:
            raise UsageError("mixture.mix is empty: name at least one method")
        return [self._member(name) for name in self.mix]

    def _member(self, name: str) -> tuple[type[InputMixing], MethodSettings]:
        known = [other for other in InputMixing.by_name if other != Mixture.name]
        if name == Mixture.name:
            raise UsageError("mixture.mix: a mixture cannot contain another; name its methods")
        if name not in known:
            problem = "takes more than images and labels" if name in Method.names else "is unknown"
            raise UsageError(
                f"mixture.mix: {name} {problem}; use some of {', '.join(sorted(known))}"
            )
        cls, options = InputMixing.by_name[name], (self.options or {}).get(name, {})
        with one_line_errors(f"mixture.options.{name}", lambda: setting_names("", cls.Settings)):
            return cls, cls.Settings(**options)


@dataclass(frozen=True)
class ChosenMasks:
    """Masks of mixes of two images that several members made, computed when they are read.

    Attributes:
        mixes: the whole batch as each member mixes it, with two sources.
        choice: position in `mixes` of the member of each mix, int64 `[M]`.
    """

    mixes: Sequence[Mixed]
    choice: Tensor

    def float(self) -> Tensor:
        """Return the masks of both images, `[M, 2, H, W]`."""
        return choose([two_masks(mixed) for mixed in self.mixes], self.choice)


def choose(values: Sequence[Tensor], choice: Tensor) -> Tensor:
    """Return row m of `values[choice[m]]` for each m; all values are `[M, ...]`."""
    chosen = values[0]
    for number, value in enumerate(values[1:], start=1):
        rows = (choice == number).view(-1, *[1] * (value.ndim - 1))
        chosen = torch.where(rows, value, chosen)
    return chosen


def two_sources(values: Tensor, *, second: Tensor) -> Tensor:
    """Return `values` `[M, 1 or 2, ...]` with two columns; a missing one is `second`."""
    return values if values.shape[1] == 2 else torch.cat([values, second], dim=1)


def two_masks(mixed: Mixed) -> Tensor:
    """Return the masks of both sources, `[M, 2, H, W]`; λ everywhere if the mixes have none."""
    masks = mixed.masks
    if masks is None:
        masks = mixed.lam[:, :, None, None].expand(-1, -1, *mixed.images.shape[2:])
    return two_sources(masks, second=torch.zeros_like(masks))


def combine(mixes: Sequence[Mixed], choice: Tensor) -> Mixed:
    """Return one batch in which each mix is that of the member chosen for it.

    Args:
        mixes: the whole batch as each member mixes it, with one or two sources.
        choice: position in `mixes` of the member of each mix, int64 `[M]`.
    """
    perms = [two_sources(mixed.perm, second=mixed.perm) for mixed in mixes]
    lams = [two_sources(mixed.lam, second=torch.zeros_like(mixed.lam)) for mixed in mixes]
    return Mixed(
        images=choose([mixed.images for mixed in mixes], choice),
        targets=choose([mixed.targets for mixed in mixes], choice),
        lam=choose(lams, choice),
        perm=choose(perms, choice),
        mask_source=ChosenMasks(mixes, choice),
    )


class Mixture(InputMixing[MixtureSettings, MixtureParams]):
    """A random choice between several methods."""

    name = "mixture"
    summary = "one of several methods, drawn per batch or per image"
    paper = None
    Settings = MixtureSettings

    def build(self, model: nn.Module | None) -> None:
        """Create the members."""
        members = self.settings.members()
        self.methods = nn.ModuleList(
            cls(
                settings,
                num_classes=self.num_classes,
                seed=self.seed,
                label_smoothing=self.label_smoothing,
            )
            for cls, settings in members
        )
        self.weights = self.settings.weights or [1.0] * len(members)

    @property
    def min_batch(self) -> int:
        """The smallest batch that every member can mix."""
        return max(self.member(number).min_batch for number in range(len(self.methods)))

    def member(self, number: int) -> InputMixing:
        """Return one of the methods."""
        method = self.methods[number]
        assert isinstance(method, InputMixing)
        return method

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> MixtureParams:
        """Draw the members, and the parameters of those that mix this batch."""
        rows = shape[0] if self.settings.per_sample else 1
        weights = torch.tensor(self.weights, dtype=torch.float64)
        choice = torch.multinomial(weights, rows, replacement=True, generator=generator)
        every = tuple(range(len(self.methods)))
        members = every if self.settings.per_sample else (int(choice),)
        parts = tuple(self.member(number).make_params(shape, generator, step) for number in members)
        return MixtureParams(choice.expand(shape[0]).contiguous(), parts, members)

    def mix(
        self, images: Tensor, targets: Tensor, params: MixtureParams, **features: Tensor
    ) -> Mixed:
        """Return the mixes of the drawn member, or of the member drawn for each image."""
        pairs = zip(params.members, params.parts, strict=True)
        mixes = [self.member(number).mix(images, targets, part) for number, part in pairs]
        return mixes[0] if len(mixes) == 1 else combine(mixes, params.choice)
