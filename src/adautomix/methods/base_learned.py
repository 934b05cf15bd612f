"""Shared code of methods that learn their masks, and the training of AutoMix and SAMix.

AutoMix and SAMix train a mix block (see `adautomix.mixing.mix_block`) so that the teacher
recognizes both images of a mix. They differ in how the block computes its query, key and value.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypeVar

from adautomix.methods.base import FeatureDict, Method, MethodSettings, MixInputs
from adautomix.methods.facts import LabelRule, Requirement
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.generator import Upsampling
from adautomix.mixing.mix_block import MixBlock, mask_loss, scale_to_lam
from adautomix.mixing.ops import Mixed, mix_by_masks
from adautomix.mixing.params import MixParams, Shape, draw_lam, draw_partners
from adautomix.models import Classifier, has_batch_norm, updates_running_stats


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
    """

    classifier_perm: Tensor
    classifier_lam: Tensor
    generator_perm: Tensor
    generator_lam: Tensor

    @property
    def classifier(self) -> Combination:
        """The mixes that the classifier is trained on."""
        return Combination(self.classifier_perm, self.classifier_lam)

    @property
    def generator(self) -> Combination:
        """The mixes that the generator is trained on."""
        return Combination(self.generator_perm, self.generator_lam)


def use_lam_near_edge(masks: Tensor, lam: Tensor, margin: float) -> Tensor:
    """Replace masks by the constant λ where λ_1 is within `margin` of 0 or 1.

    Args:
        masks: `[M, N, H, W]`.
        lam: `[M, N]`.
        margin: 0 to 0.5.
    """
    first = lam[:, :1, None, None]
    near_edge = (first <= margin) | (first > 1 - margin)
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


def merge_if(merged: bool, network: Classifier, feature_map: Tensor, tap: int) -> Tensor:
    """Return a tapped map, after the patch merging behind its stage if the settings ask for it."""
    return network.merge_patches(feature_map, tap) if merged else feature_map


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


class MixBlockSettings(MethodSettings):
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
    mask_weight: float = Field(0.1, ge=0, description="weight of the mask loss")
    mask_margin: float = Field(
        0.1, ge=0, le=1, description="difference between mask mean and λ that costs nothing"
    )
    variance_weight: float = Field(
        0.0, ge=0, description="weight of the mask variance, which the mask loss rewards"
    )
    upsampling: Upsampling = Field(
        "nearest", description="upsampling of the masks: bilinear or nearest"
    )
    tap: int | None = Field(
        None,
        ge=1,
        description="stage that feeds the block; none: the third of four, or the middle block",
    )
    merged_tap: bool = Field(
        False,
        description="feed the block the tapped map after patch merging and a layer norm (Swin)",
    )
    generator_every: int = Field(1, ge=1, description="train the block once in this many steps")
    generator_lr: float | None = Field(
        None, gt=0, description="learning rate of the block; none: the student's"
    )
    generator_min_lr: float | None = Field(
        None, ge=0, description="last learning rate of the block; none: the student's"
    )
    generator_warmup: bool = Field(
        True, description="warm up the learning rate of the block like the student's"
    )

    @property
    def step_cycle(self) -> int:
        """Steps from one that trains the block to the next."""
        return self.generator_every


@dataclass(frozen=True)
class MixBlockParams(TwoMixParams):
    """Parameters of AutoMix and SAMix, whose generator is the mix block.

    Attributes:
        adjusted: whether the student's mask is scaled to λ, bool `[B]`.
        trains_generator: whether the block is trained at this step.
    """

    adjusted: Tensor
    trains_generator: bool = True


B = TypeVar("B", bound=MixBlockSettings, default=Any)


class MixBlockMethod(Method[B, MixBlockParams]):
    """A method that trains a mix block so that the teacher recognizes both images.

    The student minimizes `CE(clean(x), y) + CE(mixed(x_mix), y_mix)` with constant masks. The block
    minimizes `CE(teacher(x'_mix), y'_mix) + mask_weight · mask_loss` through its own masks.
    """

    requires = frozenset({Requirement.STAGE_FEATURES, Requirement.TEACHER})
    cost = 9.0
    label_rule = LabelRule.LAMBDA
    label_note = "λ is drawn, masks are learned"
    heads = ("clean", "mixed")
    needs_float32 = True
    supports_own_teacher_buffers = True

    def build(self, model: nn.Module | None) -> None:
        """Create the block for the feature map of the tapped stage."""
        network = self.network_with(model, "tap_shape")
        self.tap = self.settings.tap or network.default_tap()
        channels = tapped_channels(network, self.tap, merged=self.settings.merged_tap)
        self.generator = self.make_block(channels)

    @abstractmethod
    def make_block(self, channels: int) -> MixBlock:
        """Create a block for feature maps with that many channels."""

    @property
    def warms_up(self) -> bool:
        """Whether the learning rate of the block warms up like the student's."""
        return self.settings.generator_warmup

    def learning_rates(self, lr: float, min_lr: float) -> tuple[float, float]:
        """Return the block's own learning rates where they are set."""
        s = self.settings
        return s.generator_lr or lr, min_lr if s.generator_min_lr is None else s.generator_min_lr

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
        statistics, which every clean batch must update.
        """
        if updates_running_stats(teacher):
            feature_map = teacher.features(images, self.tap).tap
            assert feature_map is not None
        else:
            feature_map = teacher.feature_map(images, self.tap)
        return {"features": merge_if(self.settings.merged_tap, teacher, feature_map, self.tap)}

    def mix(
        self, images: Tensor, targets: Tensor, params: MixBlockParams, **features: Tensor
    ) -> Mixed:
        """Return the mixes that the student is trained on; no gradient reaches the block.

        Mixes with λ near 0 or 1 are plain Mixup.
        """
        perm, lam = params.classifier
        with torch.no_grad():
            masks = self.generator(features["features"], perm, lam, images.shape[2:])
            if self.settings.mask_adjust:
                scaled = scale_to_lam(masks, lam)
                masks = torch.where(params.adjusted[:, None, None, None], scaled, masks)
            masks = use_lam_near_edge(masks, lam, self.settings.lam_margin)
            return mix_by_masks(images, targets, perm, lam, masks)

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Classifier, params: MixBlockParams
    ) -> dict[str, Tensor]:
        """Compute the sum of the student's and the block's loss, which share no parameters."""
        student_loss, student_parts = self.student_loss(sources, student, params)
        block_loss, block_parts = self.block_loss(sources, teacher, params)
        return {"loss": student_loss + block_loss, **student_parts, **block_parts}

    def student_loss(
        self, sources: MixInputs, student: Classifier, params: MixBlockParams
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the clean images and of the mixes, each with its own head.

        Returns:
            The loss, and its parts, detached.
        """
        images, targets, own = sources.images, sources.targets, sources.own
        # The masks are constants here, so this loss trains the student alone.
        mixed = self.mix(images, targets, params, **sources.features)
        views = [
            View("clean", 1.0, "clean", images[own], targets[own]),
            View("mixed", 1.0, "mixed", mixed.images, mixed.targets),
        ]
        logits = view_logits(student, views)
        clean_loss, mixed_loss = (
            self.cross_entropy(view_logit, view.targets)
            for view_logit, view in zip(logits, views, strict=True)
        )
        return clean_loss + mixed_loss, {
            "clean": clean_loss.detach(),
            "mixed": mixed_loss.detach(),
            "mixture_accuracy": mixture_accuracy(logits[1], mixed.targets),
        }

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
        parts = {"generator_teacher": teacher_loss.detach(), "generator_mask": mask.detach()}
        return teacher_loss + s.mask_weight * mask, parts

    def _draw_mix(self, batch: int, generator: torch.Generator) -> Combination:
        s = self.settings
        lam = draw_lam(batch, s.alpha, generator, per_sample=s.per_sample)
        return Combination(draw_partners(batch, generator, derange=s.derange), lam)
