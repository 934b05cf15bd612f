"""Shared code of methods that learn their masks, and the training of AutoMix and SAMix.

Such a method trains the student on several views of a batch: the clean images, mixes with learned
masks and, for AdAutoMix, plain Mixup. Each view has a weight and a head. `views` decides which
images are shown in which view; the expected loss is the same in every case.

AutoMix and SAMix train a mix block (see `adautomix.mixing.mix_block`) so that the teacher
recognizes both images of a mix. They differ in how the block computes its query, key and value.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypeVar

from adautomix.methods.base import FeatureDict, Method, MethodSettings, MixInputs
from adautomix.methods.facts import LabelRule, Requirement
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.generator import GeneratorInit, Upsampling, mask_spread
from adautomix.mixing.mix_block import MixBlock, mask_loss, scale_to_lam
from adautomix.mixing.ops import Mixed, mix_by_lam, mix_by_masks
from adautomix.mixing.params import MixParams, Shape, draw_lam, draw_partners
from adautomix.models import Classifier, has_batch_norm, updates_running_stats

Views = Literal["full", "split", "alternate"]
Label = Literal["lam", "area", "scaled"]
GeneratorOptimizer = Literal["same", "adamw"]

ADAMW_LR = 1e-3  # learning rate of a generator with an AdamW of its own


class Combination(NamedTuple):
    """Sources of one set of mixes and their weights.

    Attributes:
        perm: rows of the batch, int64 `[B, N]`.
        lam: weights, float32 `[B, N]`; rows sum to 1.
    """

    perm: Tensor
    lam: Tensor


class View(NamedTuple):
    """A batch that the student is trained on in one step.

    Attributes:
        name: name of its part of the loss.
        weight: weight of its cross-entropy in the loss.
        head: the head that classifies it.
        images: `[M, C, H, W]`.
        targets: soft labels, `[M, K]`.
    """

    name: str
    weight: float
    head: str
    images: Tensor
    targets: Tensor


@dataclass(frozen=True)
class TwoMixParams(MixParams):
    """Sources and weights of two sets of mixes, one for the classifier and one for the generator.

    Attributes:
        classifier_perm: int64 `[B, N]`.
        classifier_lam: float32 `[B, N]`.
        generator_perm: int64 `[B, N]`.
        generator_lam: float32 `[B, N]`.
        view_order: random numbers, float32 `[B]`: the student sees the images in one view each, and
            their order says which; None: in every view.
        view: number of the only view that the student is trained on at this step; None: all.
        warming_up: whether the student is trained on plain Mixup in place of generated mixes.
    """

    classifier_perm: Tensor
    classifier_lam: Tensor
    generator_perm: Tensor
    generator_lam: Tensor
    view_order: Tensor | None = field(default=None, kw_only=True)
    view: int | None = field(default=None, kw_only=True)
    warming_up: bool = field(default=False, kw_only=True)

    @property
    def classifier(self) -> Combination:
        """The mixes that the classifier is trained on."""
        return Combination(self.classifier_perm, self.classifier_lam)

    @property
    def generator(self) -> Combination:
        """The mixes that the generator is trained on."""
        return Combination(self.generator_perm, self.generator_lam)


def use_lam_near_edge(
    masks: Tensor, lam: Tensor, margin: float, *, inverted: bool = False
) -> Tensor:
    """Replace masks by the constant λ where λ_1 is within `margin` of 0 or 1.

    Args:
        masks: `[M, N, H, W]`.
        lam: `[M, N]`.
        margin: 0 to 0.5.
        inverted: compare with 1 the wrong way round, as openmixup does, which replaces the masks
            unless λ_1 is within `margin` of 1.
    """
    first = lam[:, :1, None, None]
    near_one = first < 1 - margin if inverted else first > 1 - margin
    near_edge = (first <= margin) | near_one
    return torch.where(near_edge, lam[:, :, None, None], masks)


def view_logits(student: Classifier, views: Sequence[View]) -> list[Tensor]:
    """Compute the logits `[M, K]` of each view.

    Without batch norm an image's logits do not depend on the others in the batch, so all views go
    through the network in one forward pass. With batch norm each view gets its own statistics.
    """
    if has_batch_norm(student):
        return [student(view.images, head=view.head) for view in views]
    pooled = student.features(torch.cat([view.images for view in views])).pooled
    parts = pooled.split([len(view.images) for view in views])
    return [student.logits(part, view.head) for part, view in zip(parts, views, strict=True)]


def tapped_channels(network: Classifier, tap: int, *, merged: bool) -> int:
    """Return the number of channels of the map that feeds a generator.

    Raises:
        UsageError: nothing merges patches behind that stage.
    """
    channels, height, width = network.tap_shape(tap)
    if not merged:
        return channels
    weight = next(network.parameters())
    with torch.no_grad():
        blank = weight.new_zeros(1, channels, height, width)
        return network.merge_patches(blank, tap).shape[1]


class LearnedMaskSettings(MethodSettings):
    """Settings that all methods with learned masks have in common."""

    views: Views = Field(
        "full",
        description="images the student sees per view: full: all, split: a disjoint part each, at "
        "the cost of one view, alternate: all of one view per step, in turn",
    )
    label: Label = Field(
        "lam",
        description="weights of the student's labels: lam: λ, area: means of the masks, scaled: λ, "
        "with masks scaled to have these means",
    )
    lam_margin: float = Field(
        0.03, ge=0, lt=0.5, description="use plain Mixup where λ_1 is this close to 0 or 1"
    )
    mask_weight: float = Field(
        0.0, ge=0, description="weight of the mask loss; higher: masks follow λ more closely"
    )
    mask_margin: float = Field(
        0.1, ge=0, le=1, description="difference between mask mean and λ that costs nothing"
    )
    generator_init: GeneratorInit = Field(
        "released",
        description="first weights of the generator: released: N(0, 0.01), scaled: by channels, so "
        "that masks are not flat in networks of any width",
    )
    tap: int | None = Field(
        None,
        ge=1,
        description="stage that feeds the generator; none: the third of four, or the middle block",
    )
    merged_tap: bool = Field(
        False,
        description="feed the generator the tapped map after patch merging and a layer norm (Swin)",
    )
    generator_optimizer: GeneratorOptimizer = Field(
        "same", description="optimizer of the generator: the student's, or an AdamW of its own"
    )
    mask_warmup: float = Field(
        0.0,
        ge=0,
        le=1,
        description="fraction of training in which the generator learns but the student sees plain "
        "Mixup instead of its masks; higher: later",
    )
    generator_every: int = Field(1, ge=1, description="train the generator once in this many steps")
    generator_lr: float | None = Field(
        None,
        gt=0,
        description="learning rate of the generator; none: the student's, or 0.001 with adamw",
    )
    generator_min_lr: float | None = Field(
        None,
        ge=0,
        description="last learning rate of the generator; none: the student's, in proportion with "
        "adamw",
    )
    generator_warmup: bool = Field(
        True, description="warm up the learning rate of the generator like the student's"
    )

    @property
    def view_weights(self) -> dict[str, float]:
        """Weight of each view in the student's loss, in the order in which they are shown."""
        return {"clean": 1.0, "mixed": 1.0}

    @property
    def step_cycle(self) -> int:
        """Steps after which the generator and the views are where they were."""
        count = len(self.view_weights) if self.views == "alternate" else 1
        return math.lcm(self.generator_every, count * count)


class MixBlockSettings(LearnedMaskSettings):
    """Settings that AutoMix and SAMix have in common."""

    alpha: float = Field(2.0, gt=0, description="λ ~ Beta(alpha, alpha)")
    per_sample: bool = Field(False, description="draw one λ per mix instead of one per batch")
    lam_margin: float = Field(
        0.08, ge=0, lt=0.5, description="use plain Mixup where λ is this close to 0 or 1"
    )
    derange: bool = Field(
        False, description="draw permutations again that leave an image in its place"
    )
    mask_adjust: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that the student's masks are scaled to the mean λ",
    )
    mask_weight: float = Field(
        0.1, ge=0, description="weight of the mask loss; higher: masks follow λ more closely"
    )
    variance_weight: float = Field(
        0.0, ge=0, description="weight of the mask variance, which the mask loss rewards"
    )
    upsampling: Upsampling = Field(
        "nearest", description="upsampling of the masks: bilinear or nearest"
    )


@dataclass(frozen=True)
class MixBlockParams(TwoMixParams):
    """Parameters of AutoMix and SAMix, whose generator is the mix block.

    Attributes:
        adjusted: whether the student's mask is scaled to λ, bool `[B]`.
        trains_generator: whether the block is trained at this step.
    """

    adjusted: Tensor
    trains_generator: bool = True


L = TypeVar("L", bound=LearnedMaskSettings, default=Any)
T = TypeVar("T", bound=TwoMixParams, default=Any)
B = TypeVar("B", bound=MixBlockSettings, default=Any)


class LearnedMaskMethod(Method[L, T]):
    """A method whose generator learns masks from the teacher's feature map.

    Its loss is the sum of the student's, with constant masks, and the generator's.
    """

    requires = frozenset({Requirement.STAGE_FEATURES, Requirement.TEACHER})
    label_rule = LabelRule.LAMBDA
    label_note = "λ is drawn, masks are learned"
    heads = ("clean", "mixed")
    needs_float32 = True
    supports_own_teacher_buffers = True
    generator: nn.Module

    def build(self, model: nn.Module | None) -> None:
        """Create the generator for the feature map of the tapped stage."""
        network = self.network_with(model, "tap_shape")
        self.tap = self.settings.tap or network.default_tap()
        channels = tapped_channels(network, self.tap, merged=self.settings.merged_tap)
        self.generator = self.make_generator(channels)

    def generator_input(self, network: Classifier, feature_map: Tensor) -> Tensor:
        """Return a tapped map, after the patch merging behind its stage if the settings ask so."""
        if not self.settings.merged_tap:
            return feature_map
        return network.merge_patches(feature_map, self.tap)

    @abstractmethod
    def make_generator(self, channels: int) -> nn.Module:
        """Create a generator for feature maps with that many channels."""

    @property
    def min_batch(self) -> int:
        """One image for each view where each image is shown in one."""
        return self.view_parts

    def min_part(self, *, batch_norm: bool) -> int:
        """Return how many images each part of a batch needs; each view gets its own."""
        return super().min_part(batch_norm=batch_norm) * self.view_parts

    @property
    def view_parts(self) -> int:
        """Number of parts that the views divide a batch into."""
        s = self.settings
        return len(s.view_weights) if s.views == "split" else 1

    @property
    def own_optimizer(self) -> bool:
        """Whether the generator has an AdamW of its own."""
        return self.settings.generator_optimizer == "adamw"

    @property
    def warms_up(self) -> bool:
        """Whether the learning rate of the generator warms up like the student's."""
        return self.settings.generator_warmup

    def learning_rates(self, lr: float, min_lr: float) -> tuple[float, float]:
        """Return the generator's own learning rates where they are set."""
        s = self.settings
        first = s.generator_lr or (ADAMW_LR if self.own_optimizer else lr)
        last = min_lr / lr * first if self.own_optimizer else min_lr
        return first, last if s.generator_min_lr is None else s.generator_min_lr

    def draw_views(self, batch: int, generator: torch.Generator, step: int) -> dict[str, Any]:
        """Draw which images are shown in which view: fields of `TwoMixParams`."""
        s, steps = self.settings, self.schedule.steps if self.schedule else 0
        warming_up = step < s.mask_warmup * steps
        count = len(self.view_weights(warming_up=warming_up))
        drawn: dict[str, Any] = {"warming_up": warming_up}
        if s.views == "split":
            return drawn | {"view_order": torch.rand(batch, generator=generator)}
        if s.views == "alternate" and count:
            # The turns begin one later in every cycle, so that views do not keep step with a
            # generator that takes turns too.
            return drawn | {"view": (step + step // count) % count}
        return drawn

    def view_weights(self, *, warming_up: bool) -> dict[str, float]:
        """Return the weight of each view in the student's loss."""
        weights = self.settings.view_weights
        if warming_up and weights.keys() >= {"mixup", "mixed"}:
            # Both would show the same images.
            weights["mixup"] += weights.pop("mixed")
        return weights

    def shown_views(self, params: T) -> list[tuple[str, float, Tensor | None]]:
        """Return the views of this step: name, weight, and rows of the mixes (None: all)."""
        weights = self.view_weights(warming_up=params.warming_up)
        if params.view is not None:
            name = list(weights)[params.view]
            return [(name, len(weights) * weights[name], None)]
        if params.view_order is None:
            return [(name, weight, None) for name, weight in weights.items()]
        parts = params.view_order.argsort().tensor_split(len(weights))
        return [(*view, rows) for view, rows in zip(weights.items(), parts, strict=True)]

    def shows_masks(self, params: T) -> bool:
        """Whether the student is trained on generated mixes at this step."""
        shown = self.shown_views(params)
        return not params.warming_up and any(name == "mixed" for name, _, _ in shown)

    def student_views(self, sources: MixInputs, params: T) -> Iterator[View]:
        """Yield the batches that the student is trained on, in the order its batch norm sees."""
        for name, weight, rows in self.shown_views(params):
            some = params if rows is None else params.select(rows)
            if name == "clean":
                images, targets = sources.images[sources.own], sources.targets[sources.own]
                if rows is not None:
                    images, targets = images[rows], targets[rows]
                yield View(name, weight, "clean", images, targets)
                continue
            # The masks are constants here, so this loss trains the student alone.
            mixed = (
                mix_by_lam(sources.images, sources.targets, *some.classifier)
                if name == "mixup"
                else self.mix(sources.images, sources.targets, some, **sources.features)
            )
            yield View(name, weight, "mixed", mixed.images, mixed.targets)

    def mix(self, images: Tensor, targets: Tensor, params: T, **features: Tensor) -> Mixed:
        """Return the mixes that the student is trained on; no gradient reaches the generator.

        Mixes with λ near 0 or 1 are plain Mixup, and all mixes are while the generator warms up.
        """
        s, (perm, lam) = self.settings, params.classifier
        if params.warming_up:
            return mix_by_lam(images, targets, perm, lam)
        with torch.no_grad():
            masks = self.generator(features["features"], perm, lam, images.shape[2:])
            masks = self.adjust_masks(masks, params)
            masks = self.replace_near_edge(masks, lam)
            weights = masks.mean(dim=(2, 3)) if s.label == "area" else lam
            return mix_by_masks(images, targets, perm, weights, masks)

    def replace_near_edge(self, masks: Tensor, lam: Tensor) -> Tensor:
        """Return the student's masks `[M, N, H, W]`, constant where λ is near 0 or 1."""
        return use_lam_near_edge(masks, lam, self.settings.lam_margin)

    def adjust_masks(self, masks: Tensor, params: T) -> Tensor:
        """Return the student's masks `[M, N, H, W]`, scaled to λ where the settings say so."""
        if self.settings.label == "scaled":
            return scale_to_lam(masks, params.classifier_lam)
        return masks

    def student_loss(
        self, sources: MixInputs, student: Classifier, params: T
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted cross-entropy of the views, each with its own head.

        Returns:
            The loss, and its parts and the mixture accuracy of the last view, detached.
        """
        views = list(self.student_views(sources, params))
        loss = sources.images.new_zeros((), dtype=torch.float32)
        parts: dict[str, Tensor] = {}
        # One forward pass with gradient per view.
        outputs = view_logits(student, views)
        for view, logits in zip(views, outputs, strict=True):
            part = self.cross_entropy(logits, view.targets)
            loss = loss + view.weight * part
            parts[view.name] = part.detach()
        if views:
            parts["mixture_accuracy"] = mixture_accuracy(outputs[-1], views[-1].targets)
        return loss, parts


class MixBlockMethod(LearnedMaskMethod[B, MixBlockParams]):
    """A method that trains a mix block so that the teacher recognizes both images.

    The student minimizes `CE(clean(x), y) + CE(mixed(x_mix), y_mix)` with constant masks. The block
    minimizes `CE(teacher(x'_mix), y'_mix) + mask_weight · mask_loss` through its own masks.
    """

    cost = 9.0

    @abstractmethod
    def make_generator(self, channels: int) -> MixBlock:
        """Create a block for feature maps with that many channels."""

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> MixBlockParams:
        """Draw two independent sets of mixes, and whether masks are scaled to λ."""
        s, batch = self.settings, shape[0]
        for_classifier, for_generator = (self._draw_mix(batch, generator) for _ in range(2))
        adjusted = (torch.rand(1, generator=generator) < s.mask_adjust).repeat(batch)
        return MixBlockParams(
            *for_classifier,
            *for_generator,
            adjusted,
            trains_generator=step % s.generator_every == 0,
            **self.draw_views(batch, generator, step),
        )

    @torch.no_grad()
    def extract_features(
        self,
        images: Tensor,
        targets: Tensor,
        student: Classifier,
        teacher: Classifier,
        params: MixBlockParams,
    ) -> FeatureDict:
        """Return the teacher's feature map of the tapped stage, `[B, C, h, w]`.

        The stages above the tap are skipped, unless the teacher keeps its own batch norm
        statistics, which every clean batch must update. Nothing is computed at steps without masks.
        """
        if updates_running_stats(teacher):
            feature_map = teacher.features(images, self.tap).tap
            assert feature_map is not None
            return {"features": self.generator_input(teacher, feature_map)}
        if params.trains_generator or self.shows_masks(params):
            return {
                "features": self.generator_input(teacher, teacher.feature_map(images, self.tap))
            }
        return {}

    def adjust_masks(self, masks: Tensor, params: MixBlockParams) -> Tensor:
        """Return the student's masks, scaled to λ always or with probability `mask_adjust`."""
        masks = super().adjust_masks(masks, params)
        if not self.settings.mask_adjust:
            return masks
        scaled = scale_to_lam(masks, params.classifier_lam)
        return torch.where(params.adjusted[:, None, None, None], scaled, masks)

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Classifier, params: MixBlockParams
    ) -> dict[str, Tensor]:
        """Compute the sum of the student's and the block's loss, which share no parameters."""
        student_loss, student_parts = self.student_loss(sources, student, params)
        block_loss, block_parts = self.block_loss(sources, teacher, params)
        return {"loss": student_loss + block_loss, **student_parts, **block_parts}

    def block_loss(
        self, sources: MixInputs, teacher: Classifier, params: MixBlockParams
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the teacher on the block's mixes, plus the loss of the masks.

        Returns:
            The loss, and its parts, detached; 0 and no parts at steps that do not train the block.
        """
        if not params.trains_generator:
            return sources.images.new_zeros((), dtype=torch.float32), {}
        s = self.settings
        # A second set of mixes, this time with gradient through the masks.
        perm, lam = params.generator
        masks = self.generator(sources.features["features"], perm, lam, sources.images.shape[2:])
        mixed = mix_by_masks(sources.images, sources.targets, perm, lam, masks)
        # The gradient passes through the teacher, whose weights require none, into the masks.
        teacher_loss = self.cross_entropy(teacher(mixed.images, head="mixed"), mixed.targets)
        # The mean of the masks is taken over the whole batch, however it is split.
        split = len(masks) < len(sources.images)
        mask = mask_loss(masks, lam, s.mask_margin, s.variance_weight, split=split)
        parts = {
            "generator_teacher": teacher_loss.detach(),
            "generator_mask": mask.detach(),
            "mask_spread": mask_spread(masks),
        }
        return teacher_loss + s.mask_weight * mask, parts

    def _draw_mix(self, batch: int, generator: torch.Generator) -> Combination:
        s = self.settings
        lam = draw_lam(batch, s.alpha, generator, per_sample=s.per_sample)
        return Combination(draw_partners(batch, generator, derange=s.derange), lam)
