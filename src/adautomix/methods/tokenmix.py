"""TokenMix: scattered blocks of patches of one image in another; labels follow their content.

Paper: Liu, Liu, Zhou, Li, Liu, "TokenMix: Rethinking Image Mixing for Data Augmentation in Vision
Transformers", ECCV 2022, arXiv 2207.08409.
Computes: a mask `[h, w]` of t of the P patches, t = ⌊P/2⌋ + P/14, laid out as BEiT masks are:
rectangles of a random area (uniform up to what is left) and aspect (log-uniform from 0.3 to 1/0.3)
are placed one after the other until t patches are covered or ten attempts in a row fail. There the
mix `[B, C, H, W]` shows the partner, elsewhere the image. With A `[P]` the activation map of an
image, which sums to 1, the label `[B, K]` weighs the image by w₁ = Σ A over its visible patches and
the partner by w₂ = Σ A over its own, for each mix separately.
Requires: attention over patches (timm's ViT and DeiT), and the teacher.
Cost: 3.5F per step on average: 4F at the steps of this method, which include the teacher's forward
pass on the clean images, 3F at those of Mixup.
Settings:
- switch: 0.5, as in the authors' code (`--mixup-switch-prob`).
- mixup_alpha: 0.8, as in the authors' script for DeiT-S.
- share: 0.5, as in the authors' code.
- extra_tokens: none: 14 patches of 14 × 14 as in the authors' code, in proportion for other grids.
- guide: `teacher` is a choice of this implementation, see below.
- normalize: on is a choice of this implementation for cross-entropy. The authors' code, which uses
  a binary cross-entropy, has it off.
- per_sample: off, as in the authors' code.
Deviations:
- The paper's maps are class scores that a large pretrained network (NFNet-F6) computed for the
  whole data set. Here A is the attention of the class token in the last block, averaged over heads,
  of the teacher (`guide: teacher`) or of the student in evaluation mode, so nothing is downloaded.
- Weights are divided by their sum, so that labels sum to 1; `normalize: false` leaves them as
  released.
- Partners are a random permutation. The authors' code pairs a batch with itself reversed.
Evidence: none published for ResNet-18, which has no attention. The openmixup benchmark has 80.80 %
with DeiT-S on ImageNet after 300 epochs, run with the authors' code.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from adautomix.methods.base import FeatureDict
from adautomix.methods.base_attention import (
    AlternatingParams,
    AlternatingSettings,
    AttentionMethod,
    Grid,
    draw_alternating,
    eval_with_attention,
    fraction_inside,
    patches_to_pixels,
    with_lam,
)
from adautomix.methods.facts import LabelRule, Paper, Requirement
from adautomix.mixing.boxes import box_mask, paste
from adautomix.mixing.ops import Mixed, mix_by_lam
from adautomix.mixing.params import Shape

ATTEMPTS = 10  # failed attempts in a row after which a mask is complete
MIN_ASPECT = 0.3


@dataclass(frozen=True)
class TokenMixParams(AlternatingParams):
    """Parameters of TokenMix.

    Attributes:
        partner: patches that show the partner, bool `[B, h, w]`.
    """

    partner: Tensor


class TokenMixSettings(AlternatingSettings):
    """Settings of TokenMix."""

    share: float = Field(
        0.5, ge=0, le=1, description="fraction of patches from the partner, before extra_tokens"
    )
    extra_tokens: int | None = Field(
        None, ge=0, description="additional patches from the partner; none: 1/14 of all patches"
    )
    guide: Literal["teacher", "student"] = Field(
        "teacher", description="network whose attention to the clean images weighs the labels"
    )
    normalize: bool = Field(
        True, description="scale label weights to sum 1; off: leave them as released"
    )


def partner_tokens(grid: Grid, settings: TokenMixSettings) -> int:
    """Number of patches that show the partner."""
    count = math.prod(grid)
    extra = settings.extra_tokens
    extra = round(count / 14) if extra is None else extra
    return min(count, int(settings.share * count) + extra)


def propose_boxes(room: Tensor, grid: Grid, generator: torch.Generator) -> Tensor:
    """Draw a rectangle of patches for each mask.

    Args:
        room: largest area of each rectangle, `[n]`.
        grid: patches per column and per row.
        generator: a CPU generator.

    Returns:
        Boxes (top, bottom, left, right; ends exclusive), int64 `[n, 4]`; empty if a rectangle does
        not fit into the grid.
    """
    area, aspect, down, right = torch.rand(4, len(room), generator=generator)
    area = 1 + area * (room - 1)
    aspect = MIN_ASPECT ** (2 * aspect - 1)
    height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (height < grid[0]) & (width < grid[1])
    top = (down * (grid[0] - height + 1)).floor()
    left = (right * (grid[1] - width + 1)).floor()
    box: Tensor = torch.stack([top, top + height, left, left + width], dim=1)
    box = box * fits[:, None]
    return box.long()


def draw_blocks(count: int, grid: Grid, tokens: int, generator: torch.Generator) -> Tensor:
    """Draw masks made of rectangles, as BEiT does.

    All masks grow at once, each until it is full or `ATTEMPTS` rectangles in a row do not fit.

    Args:
        count: number of masks.
        grid: patches per column and per row.
        tokens: largest number of patches per mask.
        generator: a CPU generator.

    Returns:
        Bool `[count, h, w]`.
    """
    masks = torch.zeros(count, *grid, dtype=torch.bool)
    failed = torch.zeros(count, dtype=torch.long)
    room = torch.full((count,), tokens)
    while ((room > 0) & (failed < ATTEMPTS)).any():
        grown = masks | box_mask(propose_boxes(room, grid, generator), *grid)
        left = tokens - grown.sum(dim=(1, 2))
        accepted = (left >= 0) & (left < room) & (failed < ATTEMPTS)
        masks = torch.where(accepted[:, None, None], grown, masks)
        room = torch.where(accepted, left, room)
        failed = torch.where(accepted, 0, failed + 1)
    return masks


def draw_tokenmix(
    batch: int, grid: Grid, settings: TokenMixSettings, generator: torch.Generator
) -> TokenMixParams:
    """Draw partners, the kind of step, Mixup's weights and the masks."""
    perm, lam, plain = draw_alternating(batch, settings, generator)
    count = batch if settings.per_sample else 1
    tokens = 0 if plain else partner_tokens(grid, settings)
    masks = draw_blocks(count, grid, tokens, generator)
    return TokenMixParams(perm, lam, plain, masks.expand(batch, -1, -1).contiguous())


def content_weights(maps: Tensor, perm: Tensor, partner: Tensor, *, normalize: bool) -> Tensor:
    """Compute the fraction of each source's attention that is visible in the mix.

    Args:
        maps: attention, one map per image, `[B, P]`.
        perm: rows of both sources, int64 `[M, 2]`.
        partner: patches that show the second source, bool `[M, P]`.
        normalize: scale the weights of a mix to sum 1.

    Returns:
        `[M, 2]`.
    """
    visible = torch.stack([~partner, partner], dim=1)
    weights = fraction_inside(maps[perm].flatten(0, 1), visible.flatten(0, 1)).view_as(perm)
    if not normalize:
        return weights
    second = weights[:, 1] / weights.sum(dim=1).clamp_min(torch.finfo(weights.dtype).tiny)
    return torch.stack([1 - second, second], dim=1)


class TokenMix(AttentionMethod[TokenMixSettings, TokenMixParams]):
    """TokenMix (Liu et al., ECCV 2022)."""

    name = "tokenmix"
    summary = "scattered blocks of patches; labels follow their content"
    paper = Paper(
        authors="Liu, Liu, Zhou, Li, Liu",
        title="TokenMix: Rethinking Image Mixing for Data Augmentation in Vision Transformers",
        venue="ECCV",
        year=2022,
        arxiv="2207.08409",
    )
    requires = frozenset({Requirement.PATCH_ATTENTION, Requirement.TEACHER})
    cost = 3.5
    label_rule = LabelRule.ATTENTION
    label_note = "labels follow attention"
    supports_own_teacher_buffers = True  # a plain transformer has no batch norm statistics
    Settings = TokenMixSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> TokenMixParams:
        """Draw partners, the kind of step, Mixup's weights and the masks."""
        return draw_tokenmix(shape[0], self.patch_grid(shape), self.settings, generator)

    def extract_features(
        self, images: Tensor, targets: Tensor, student: Any, teacher: Any, params: TokenMixParams
    ) -> FeatureDict:
        """Return the guide's attention to each clean image, `[B, P]`; nothing at Mixup steps."""
        if params.plain:
            return {}
        guide = teacher if self.settings.guide == "teacher" else student
        return {"attention": eval_with_attention(guide, images).attention}

    def mix(
        self, images: Tensor, targets: Tensor, params: TokenMixParams, **features: Tensor
    ) -> Mixed:
        """Return the partner in the masked patches, with labels by content; or Mixup."""
        if params.plain:
            return mix_by_lam(images, targets, params.perm, params.lam)
        outside = patches_to_pixels(~params.partner, self.patch)
        mixed = paste(images, targets, params.perm, outside)
        lam = content_weights(
            features["attention"],
            params.perm,
            params.partner.flatten(1),
            normalize=self.settings.normalize,
        )
        return with_lam(mixed, targets, lam)
