"""The mix block of AutoMix and SAMix, and the training that both share.

A block turns the teacher's feature maps of two images, `z_a` and `z_b` `[C, h, w]`, into a mask of
the second: its value at a position of a is a sigmoid of what attention from there gathers in b.

    P = softmax_rows(qᵀ k / √d)   [hw, hw]   a row is a position of a, a column one of b
    m = σ(up(P v))                [H, W]     v is read from b;  M_a = 1 - m,  M_b = m

How q, k and v come from the maps, and where λ enters, is what the two methods differ in.
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
from adautomix.mixing.params import (
    MixParams,
    Shape,
    draw_lam,
    draw_partners,
)
from adautomix.models import Classifier, has_batch_norm, keeps_statistics


class Combination(NamedTuple):
    """Sources and shares of one set of mixes, both `[B, N]`."""

    perm: Tensor
    lam: Tensor


class View(NamedTuple):
    """One batch that the student is shown: its weight in the loss, its head, its labels."""

    name: str
    weight: float
    head: str
    images: Tensor
    targets: Tensor


@dataclass(frozen=True)
class TwoMixParams(MixParams):
    """Sources and shares, `[B, N]`, of the classifier's mixes and of the generator's."""

    classifier_perm: Tensor
    classifier_lam: Tensor
    generator_perm: Tensor
    generator_lam: Tensor

    @property
    def classifier(self) -> Combination:
        """The mixes that the classifier learns from."""
        return Combination(self.classifier_perm, self.classifier_lam)

    @property
    def generator(self) -> Combination:
        """The mixes that the generator is judged by."""
        return Combination(self.generator_perm, self.generator_lam)


def use_lam_near_edge(masks: Tensor, lam: Tensor, margin: float) -> Tensor:
    """Constant masks λ where λ_1 is within `margin` of 0 or 1: the label is then nearly hard."""
    first = lam[:, :1, None, None]
    near_edge = (first <= margin) | (first > 1 - margin)
    return torch.where(near_edge, lam[:, :, None, None], masks)


def view_logits(student: Classifier, views: Sequence[View]) -> list[Tensor]:
    """Logits of each view, from one forward of all where no batch norm would mix their statistics.

    Without batch norm every image goes through the network alone, so the numbers are the same.
    """
    if has_batch_norm(student):
        return [student(view.images, head=view.head) for view in views]
    pooled = student.features(torch.cat([view.images for view in views])).pooled
    parts = pooled.split([len(view.images) for view in views])
    return [student.logits(part, view.head) for part, view in zip(parts, views, strict=True)]


class MixBlockSettings(MethodSettings):
    """What AutoMix and SAMix both can be told."""

    alpha: float = Field(2.0, gt=0, description="λ ~ Beta(alpha, alpha)")
    per_sample: bool = Field(False, description="one λ a mix instead of one a batch")
    lam_margin: float = Field(
        0.08, ge=0, lt=0.5, description="plain Mixup where λ is this close to 0 or 1"
    )
    mask_adjust: float = Field(
        0.0, ge=0, le=1, description="how often the student's masks are scaled to have the mean λ"
    )
    mask_weight: float = Field(0.1, ge=0, description="weight of the masks' own loss")
    mask_margin: float = Field(
        0.1, ge=0, le=1, description="how far their mean may be from λ before it costs anything"
    )
    variance_weight: float = Field(0.0, ge=0, description="reward of their variance in that loss")
    upsampling: Upsampling = Field("nearest", description="of the masks: bilinear or nearest")
    tap: int | None = Field(
        None, ge=1, description="stage that feeds the block; none: third of four, middle block"
    )
    generator_every: int = Field(1, ge=1, description="train the block at every k-th step")
    generator_lr: float | None = Field(None, gt=0, description="none: that of the student")
    generator_min_lr: float | None = Field(None, ge=0, description="none: that of the student")

    @property
    def step_cycle(self) -> int:
        """Steps from one that trains the block to the next."""
        return self.generator_every


@dataclass(frozen=True)
class MixBlockParams(TwoMixParams):
    """The generator is the block.

    `adjusted` `[B]` says whether the student's mask is scaled to λ, `judged` whether the block
    learns at this step.
    """

    adjusted: Tensor
    trains_generator: bool = True


B = TypeVar("B", bound=MixBlockSettings, default=Any)


class MixBlockMethod(Method[B, MixBlockParams]):
    """A block that learns to mix so that the teacher recognizes both images.

    The student minimizes `CE(clean(x), y) + CE(mixed(x_mix), y_mix)` on masks that are constants
    to it, the block `CE(teacher(x'_mix), y'_mix) + mask_weight · mask_loss` through its own.
    """

    requires = frozenset({Requirement.STAGE_FEATURES, Requirement.TEACHER})
    cost = 9.0
    label_rule = LabelRule.LAMBDA
    label_note = "λ is drawn, masks are learned"
    heads = ("clean", "mixed")
    supports_own_teacher_buffers = True

    def build(self, model: nn.Module | None) -> None:
        """Create the block for the feature map of the tapped stage."""
        network = self.network_with(model, "tap_shape")
        self.tap = self.settings.tap or network.default_tap()
        channels, _, _ = network.tap_shape(self.tap)
        self.generator = self.make_block(channels)

    @abstractmethod
    def make_block(self, channels: int) -> MixBlock:
        """A new block for feature maps of so many channels."""

    def learning_rates(self, lr: float, min_lr: float) -> tuple[float, float]:
        """The block's own learning rates where they are set."""
        s = self.settings
        return s.generator_lr or lr, min_lr if s.generator_min_lr is None else s.generator_min_lr

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> MixBlockParams:
        """Two independent sets of partners and shares, and whether masks are scaled to λ."""
        s, batch = self.settings, shape[0]
        classifier, trains_generator = (self._draw_mix(batch, generator) for _ in range(2))
        adjusted = (torch.rand(1, generator=generator) < s.mask_adjust).repeat(batch)
        return MixBlockParams(
            *classifier, *trains_generator, adjusted, trains_generator=step % s.generator_every == 0
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
        """The teacher's feature map.

        What lies behind the tap is left out, unless the teacher's batch norm keeps statistics of
        its own, which every clean batch is to move.
        """
        if keeps_statistics(teacher):
            feature_map = teacher.features(images, self.tap).tap
            assert feature_map is not None
            return {"features": feature_map}
        return {"features": teacher.feature_map(images, self.tap)}

    def mix(
        self, images: Tensor, targets: Tensor, params: MixBlockParams, **features: Tensor
    ) -> Mixed:
        """The mixes that the student learns from: no gradient, plain Mixup near the edges of λ."""
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
        """The student's loss and the block's; their gradients do not meet."""
        student_loss, parts = self.student_loss(sources, student, params)
        block_loss, trains_generator = self.block_loss(sources, teacher, params)
        return {"loss": student_loss + block_loss, **parts, **trains_generator}

    def student_loss(
        self, sources: MixInputs, student: Classifier, params: MixBlockParams
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the clean images and of the mixes, each at its head."""
        images, targets, own = sources.images, sources.targets, sources.own
        mixed = self.mix(images, targets, params, **sources.features)
        views = [
            View("clean", 1.0, "clean", images[own], targets[own]),
            View("mixed", 1.0, "mixed", mixed.images, mixed.targets),
        ]
        outputs = view_logits(student, views)
        clean, mix = (
            self.cross_entropy(logits, view.targets)
            for view, logits in zip(views, outputs, strict=True)
        )
        captured = mixture_accuracy(outputs[1], mixed.targets)
        return clean + mix, {
            "clean": clean.detach(),
            "mixed": mix.detach(),
            "mixture_accuracy": captured,
        }

    def block_loss(
        self, sources: MixInputs, teacher: Classifier, params: MixBlockParams
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the teacher makes of the block's mixes, and the loss of the masks themselves."""
        if not params.trains_generator:
            return sources.images.new_zeros((), dtype=torch.float32), {}
        perm, lam = params.generator
        masks = self.generator(sources.features["features"], perm, lam, sources.images.shape[2:])
        mixed = mix_by_masks(sources.images, sources.targets, perm, lam, masks)
        judgement = self.cross_entropy(teacher(mixed.images, head="mixed"), mixed.targets)
        s = self.settings
        split = len(masks) < len(sources.images)
        mask = mask_loss(masks, lam, s.mask_margin, s.variance_weight, split=split)
        parts = {"generator_teacher": judgement.detach(), "generator_mask": mask.detach()}
        return judgement + s.mask_weight * mask, parts

    def _draw_mix(self, batch: int, generator: torch.Generator) -> Combination:
        s = self.settings
        lam = draw_lam(batch, s.alpha, generator, per_sample=s.per_sample)
        return Combination(draw_partners(batch, generator), lam)
