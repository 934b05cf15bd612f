"""Mixup or CutMix, chosen at random: the mixing of the recipes for vision transformers.

Paper: Touvron, Cord, Douze, Massa, Sablayrolles, Jégou, "Training data-efficient image transformers
& distillation through attention" (DeiT), ICML 2021, arXiv 2012.12877. The code is timm's `Mixup`
(timm.data.mixup).
Computes: for the batch, with probability `switch_prob` CutMix with λ₀ ~ Beta(1, 1), else Mixup with
λ ~ Beta(0.8, 0.8). A box has sides ⌊H√(1-λ₀)⌋ and ⌊W√(1-λ₀)⌋ around a uniform pixel and is clipped
to the image; λ = 1 - area / HW after clipping. The result is mixes `[B, C, H, W]` and labels
λ y + (1 - λ) y[π] `[B, K]`.
Requires: only images and labels.
Cost: 3F per step, as plain training.
Settings:
- mixup_alpha: 0.8 in the recipes of DeiT, Swin and ConvNeXt.
- cutmix_alpha: 1 in the recipes of DeiT, Swin and ConvNeXt.
- prob: 1 in the recipes of DeiT, Swin and ConvNeXt. `mix.prob` does the same for every method.
- switch_prob: 0.5 in the recipes of DeiT, Swin and ConvNeXt.
- odd_boxes: on, as in timm 1.0.31. timm 0.4.12, with which DeiT, Swin and ConvNeXt were trained,
  rounded both half-sides down, as CutMix's authors do: set `odd_boxes: false` for that. At 32
  pixels 46 % of the boxes differ, and they cover 0.299 instead of 0.310 of the image on average.
- per_sample: off, as timm's mode "batch".
Deviations: timm pairs image i with image B-1-i and requires an even batch. Here partners are a
random permutation, and any batch size works. With the flipped batch as partners, the mixes equal
timm's in all its modes.
Evidence: none published for ResNet-18 on CIFAR-100. The openmixup benchmark has 75.92 % with
DeiT-S, 81.25 % with Swin-T and 83.09 % with ConvNeXt-T on CIFAR-100 after 200 epochs.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from adautomix.methods.base import InputMixing, MethodSettings
from adautomix.methods.facts import Paper
from adautomix.mixing.boxes import outside_mask, paste
from adautomix.mixing.ops import Mixed, mix_by_lam, mix_by_masks
from adautomix.mixing.params import PairParams, Shape, draw_lam, draw_partners


@dataclass(frozen=True)
class MixupCutMixParams(PairParams):
    """Parameters of Mixup or CutMix; `lam` is used by Mixup only.

    Attributes:
        box: CutMix boxes (top, bottom, left, right; ends exclusive), int64 `[B, 4]`.
        cut: which mixes are CutMix, bool `[B]`; the others are Mixup.
        kind: which of the two this batch contains; unless it is "both", all mixes have the same λ
            or box.
    """

    box: Tensor
    cut: Tensor
    kind: Literal["mixup", "cutmix", "both"]


class MixupCutMixSettings(MethodSettings):
    """Settings of the random choice between Mixup and CutMix."""

    mixup_alpha: float = Field(0.8, gt=0, description="Mixup: λ ~ Beta(alpha, alpha)")
    cutmix_alpha: float = Field(1.0, gt=0, description="CutMix: λ₀ ~ Beta(alpha, alpha)")
    prob: float = Field(1.0, ge=0, le=1, description="probability that a batch is mixed")
    switch_prob: float = Field(
        0.5, ge=0, le=1, description="probability of CutMix instead of Mixup"
    )
    odd_boxes: bool = Field(
        True, description="keep odd sides of a box; off: make them one pixel smaller"
    )
    per_sample: bool = Field(
        False, description="draw all parameters once per mix instead of once per batch"
    )


def draw_interval(
    lam: Tensor, size: int, generator: torch.Generator, *, odd: bool = True
) -> list[Tensor]:
    """Draw intervals of ⌊size·√(1-λ)⌋ pixels around uniform pixels.

    Args:
        lam: λ₀, `[n]`.
        size: pixels per side of the image.
        generator: a CPU generator.
        odd: keep odd lengths instead of making them one pixel shorter.

    Returns:
        First pixels and exclusive ends, both int64 `[n]`, clipped to `size`.
    """
    side = (size * (1 - lam.double()).sqrt()).long()
    center = torch.randint(size, lam.shape, generator=generator)
    ends = center - side // 2, center + (side + odd) // 2
    return [end.clamp(0, size) for end in ends]


def draw_mixup_cutmix(
    batch: int, height: int, width: int, s: MixupCutMixSettings, generator: torch.Generator
) -> MixupCutMixParams:
    """Draw a partner for each image, and how the two are mixed.

    Batches or mixes that are not mixed are Mixup with λ = 1.
    """
    perm = draw_partners(batch, generator)
    rows = batch if s.per_sample else 1
    mixed = torch.rand(rows, generator=generator) < s.prob
    cut = mixed & (torch.rand(rows, generator=generator) < s.switch_prob)
    lam = draw_lam(rows, s.mixup_alpha, generator, per_sample=True)
    lam = torch.where(mixed[:, None], lam, torch.tensor([1.0, 0.0]))
    box_lam = draw_lam(rows, s.cutmix_alpha, generator, per_sample=True)[:, 0]
    intervals = (
        draw_interval(box_lam, size, generator, odd=s.odd_boxes) for size in (height, width)
    )
    box = torch.stack([end for interval in intervals for end in interval], dim=1)
    kind: Literal["mixup", "cutmix"] = "cutmix" if bool(cut[0]) else "mixup"
    lam, box, cut = (part.expand(batch, *part.shape[1:]).contiguous() for part in (lam, box, cut))
    return MixupCutMixParams(perm, lam, box, cut, "both" if s.per_sample else kind)


class MixupCutMix(InputMixing[MixupCutMixSettings, MixupCutMixParams]):
    """Mixup or CutMix (timm, DeiT)."""

    name = "mixup+cutmix"
    summary = "Mixup or CutMix, drawn at every step"
    paper = Paper(
        authors="Touvron, Cord, Douze, Massa, Sablayrolles, Jégou",
        title="Training data-efficient image transformers & distillation through attention",
        venue="ICML",
        year=2021,
        arxiv="2012.12877",
    )
    Settings = MixupCutMixSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> MixupCutMixParams:
        """Draw a partner for each image, and how the two are mixed."""
        batch, _, height, width = shape
        return draw_mixup_cutmix(batch, height, width, self.settings, generator)

    def mix(
        self, images: Tensor, targets: Tensor, params: MixupCutMixParams, **features: Tensor
    ) -> Mixed:
        """Return `λ x + (1 - λ) x[π]`, or the partner inside the box and the image outside."""
        if params.kind == "mixup":
            return mix_by_lam(images, targets, params.perm, params.lam)
        height, width = images.shape[2:]
        if params.kind == "cutmix":
            return paste(images, targets, params.perm, outside_mask(params.box[:1], height, width))
        outside = outside_mask(params.box, height, width)
        boxes = torch.stack([outside, 1 - outside], dim=1)
        masks = torch.where(params.cut[:, None, None, None], boxes, params.lam[:, :, None, None])
        lam = torch.where(params.cut[:, None], boxes.mean(dim=(2, 3)), params.lam)
        return mix_by_masks(images, targets, params.perm, lam, masks)
