"""The mix block of AutoMix and SAMix, and the training that both share.

A block turns the teacher's feature maps of two images, `z_a` and `z_b` `[C, h, w]`, into a mask of
the second: its value at a position of a is a sigmoid of what attention from there gathers in b.

    P = softmax_rows(qᵀ k / √d)   [hw, hw]   a row is a position of a, a column one of b
    m = σ(up(P v))                [H, W]     v is read from b;  M_a = 1 - m,  M_b = m

How q, k and v come from the maps, and where λ enters, is what the two methods differ in.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods.adautomix import (
    MixDraw,
    TwoMixesDraw,
    View,
    use_lam_near_edge,
    view_logits,
)
from adautomix.methods.base import (
    Method,
    MethodSettings,
    Mixed,
    Seen,
    Shape,
    Sources,
    captured_share,
    draw_lam,
    draw_partners,
    mix_by_masks,
)
from adautomix.methods.generator import Upsampling
from adautomix.models import Classifier, keeps_statistics
from adautomix.processes import AllSum, world


class MixBlock(nn.Module, ABC):
    """Masks for mixes of two images from the feature maps of those images.

    Args:
        upsampling: how the h×w maps become H×W masks.
    """

    def __init__(self, upsampling: Upsampling) -> None:
        super().__init__()
        self.upsampling = upsampling

    @abstractmethod
    def project(self, features: Tensor, perm: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query of the first image and key of the second, `[M, d, hw]`, and its value `[M, 1, hw]`.

        Args and shapes as in `forward`.
        """

    def forward(self, features: Tensor, perm: Tensor, lam: Tensor, size: Sequence[int]) -> Tensor:
        """Masks of both images, which sum to 1 at every pixel.

        Args:
            features: one map an image, `[B, C, h, w]`.
            perm: which image is the first and which the second of a mix, `[M, 2]`.
            lam: their shares, `[M, 2]`.
            size: (H, W) of the masks.

        Returns:
            Float32 `[M, 2, H, W]`.
        """
        projected = self.project(features, perm, lam)
        with torch.autocast(features.device.type, enabled=False):
            query, key, value = (part.float().mT for part in projected)
            maps = F.scaled_dot_product_attention(query, key, value)
            maps = maps.mT.unflatten(2, features.shape[2:])
            second = self._upsample(maps, size).sigmoid()
            return torch.cat([1 - second, second], dim=1)

    def _upsample(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        align_corners = False if self.upsampling == "bilinear" else None
        large: Tensor = F.interpolate(
            maps, list(size), mode=self.upsampling, align_corners=align_corners
        )
        return large


def initialised(conv: nn.Conv2d) -> nn.Conv2d:
    """Weights N(0, 0.01) and no bias, as released: all masks start at about 1/2."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def picked(maps: Tensor, rows: Tensor) -> Tensor:
    """The maps `[B, C, h, w]` of some images, flat: `[M, C, hw]`.

    A 1×1 convolution acts on each image alone, so B maps are convolved and then picked.
    """
    # index_select and not [rows]: the backward of that adds up in no fixed order.
    return maps.flatten(2).index_select(0, rows)


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


@dataclass(frozen=True)
class MixBlockDraw(TwoMixesDraw):
    """The generator is the block.

    `adjusted` `[B]` says whether the student's mask is scaled to λ, `judged` whether the block
    learns at this step.
    """

    adjusted: Tensor
    judged: bool = True


class MixBlockMethod(Method):
    """A block that learns to mix so that the teacher recognises both images.

    The student minimises `CE(clean(x), y) + CE(mixed(x_mix), y_mix)` on masks that are constants
    to it, the block `CE(teacher(x'_mix), y'_mix) + mask_weight · mask_loss` through its own.
    """

    cost = "9F"
    needs = "a stage's feature map, the teacher"
    heads = ("clean", "mixed")
    uses_teacher = True

    def __init__(self, settings: MixBlockSettings, **common: Any) -> None:
        super().__init__(settings, **common)
        model: Any = common.get("model")
        if not hasattr(model, "tap_shape"):
            raise UsageError(f"{self.name} looks inside the network: pass model=build_model(...)")
        self.tap = settings.tap or model.default_tap()
        channels, _, _ = model.tap_shape(self.tap)
        self.generator = self.make_block(channels)

    @abstractmethod
    def make_block(self, channels: int) -> MixBlock:
        """A new block for feature maps of so many channels."""

    def learning_rates(self, lr: float, min_lr: float) -> tuple[float, float]:
        """The block's own learning rates where they are set."""
        s = self.settings
        return s.generator_lr or lr, min_lr if s.generator_min_lr is None else s.generator_min_lr

    def draw(self, shape: Shape, generator: torch.Generator, step: int) -> MixBlockDraw:
        """Two independent sets of partners and shares, and whether masks are scaled to λ."""
        s, batch = self.settings, shape[0]
        classifier, judged = (self._draw_mix(batch, generator) for _ in range(2))
        adjusted = (torch.rand(1, generator=generator) < s.mask_adjust).repeat(batch)
        return MixBlockDraw(*classifier, *judged, adjusted, judged=step % s.generator_every == 0)

    @torch.no_grad()
    def look(
        self,
        images: Tensor,
        targets: Tensor,
        student: Classifier,
        teacher: Classifier,
        draw: MixBlockDraw,
    ) -> Seen:
        """The teacher's feature map.

        What lies behind the tap is left out, unless the teacher's batch norm keeps statistics of
        its own, which every clean batch is to move.
        """
        if keeps_statistics(teacher):
            feature_map = teacher.features(images, self.tap).tap
            assert feature_map is not None
            return {"features": feature_map}
        return {"features": teacher.feature_map(images, self.tap)}

    def mix(self, images: Tensor, targets: Tensor, draw: MixBlockDraw, **seen: Tensor) -> Mixed:
        """The mixes that the student learns from: no gradient, plain Mixup near the edges of λ."""
        perm, lam = draw.classifier
        with torch.no_grad():
            masks = self.generator(seen["features"], perm, lam, images.shape[2:])
            if self.settings.mask_adjust:
                scaled = scale_to_lam(masks, lam)
                masks = torch.where(draw.adjusted[:, None, None, None], scaled, masks)
            masks = use_lam_near_edge(masks, lam, self.settings.lam_margin)
            return mix_by_masks(images, targets, perm, lam, masks)

    def terms(
        self, sources: Sources, student: Classifier, teacher: Classifier, draw: MixBlockDraw
    ) -> dict[str, Tensor]:
        """The student's loss and the block's; their gradients do not meet."""
        student_loss, parts = self.student_loss(sources, student, draw)
        block_loss, judged = self.block_loss(sources, teacher, draw)
        return {"loss": student_loss + block_loss, **parts, **judged}

    def student_loss(
        self, sources: Sources, student: Classifier, draw: MixBlockDraw
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the clean images and of the mixes, each at its head."""
        images, targets, own = sources.images, sources.targets, sources.own
        mixed = self.mix(images, targets, draw, **sources.seen)
        views = [
            View("clean", 1.0, "clean", images[own], targets[own]),
            View("mixed", 1.0, "mixed", mixed.images, mixed.targets),
        ]
        outputs = view_logits(student, views)
        clean, mix = (
            self.cross_entropy(logits, view.targets)
            for view, logits in zip(views, outputs, strict=True)
        )
        captured = captured_share(outputs[1], mixed.targets)
        return clean + mix, {"clean": clean.detach(), "mixed": mix.detach(), "captured": captured}

    def block_loss(
        self, sources: Sources, teacher: Classifier, draw: MixBlockDraw
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the teacher makes of the block's mixes, and the loss of the masks themselves."""
        if not draw.judged:
            return sources.images.new_zeros((), dtype=torch.float32), {}
        perm, lam = draw.generator
        masks = self.generator(sources.seen["features"], perm, lam, sources.images.shape[2:])
        mixed = mix_by_masks(sources.images, sources.targets, perm, lam, masks)
        judgement = self.cross_entropy(teacher(mixed.images, head="mixed"), mixed.targets)
        s = self.settings
        split = len(masks) < len(sources.images)
        mask = mask_loss(masks, lam, s.mask_margin, s.variance_weight, split=split)
        parts = {"generator_teacher": judgement.detach(), "generator_mask": mask.detach()}
        return judgement + s.mask_weight * mask, parts

    def _draw_mix(self, batch: int, generator: torch.Generator) -> MixDraw:
        s = self.settings
        lam = draw_lam(batch, s.alpha, generator, per_sample=s.per_sample)
        return MixDraw(draw_partners(batch, generator), lam)


def mask_loss(
    masks: Tensor,
    lam: Tensor,
    margin: float,
    variance_weight: float = 0.0,
    *,
    split: bool = False,
) -> Tensor:
    """How far the masks' mean is from λ beyond a margin, less a reward of their variance.

    `max(|mean(M_a) - λ| - margin, 0) - variance_weight · var(M_a)`, where mean and variance are
    taken over all pixels of the whole batch and not image by image.

    Args:
        masks: `[M, 2, H, W]`.
        lam: `[M, 2]`; its mean counts where every mix has its own.
        margin: 0 to 1.
        variance_weight: 0 or more.
        split: these are a part of the batch, and other processes have the others.
    """
    first = masks[:, 0]
    means = torch.stack([first.mean(), lam[:, 0].mean()])
    mean, share = mean_of_processes(means, split=split)
    loss: Tensor = ((mean - share).abs() - margin).clamp_min(0)
    if variance_weight:
        variance = mean_of_processes((first - mean).square().mean(), split=split)
        loss = loss - variance_weight * variance
    return loss


def mean_of_processes(values: Tensor, *, split: bool) -> Tensor:
    """The mean over all processes of a tensor that each of them brings; differentiable.

    Only where they have split a batch: processes with batches of their own are left apart.
    """
    if world() == 1 or not split:
        return values
    total: Tensor = AllSum.apply(values)
    return total / world()


def scale_to_lam(masks: Tensor, lam: Tensor) -> Tensor:
    """Masks `[M, 2, H, W]` scaled so that their means are λ `[M, 2]`.

    The mask whose mean is above its share shrinks by a factor, and the other gains what it loses:
    all stays between 0 and 1.
    """
    tiny = 1e-8
    first = masks[:, :1].clamp(tiny, 1 - tiny)
    mean, share = first.mean(dim=(2, 3), keepdim=True), lam[:, :1, None, None]
    fewer = first * (share / mean)
    more = 1 - (1 - first) * ((1 - share) / (1 - mean).clamp_min(tiny))
    scaled = torch.where(mean > share, fewer, more)
    return torch.cat([scaled, 1 - scaled], dim=1)
