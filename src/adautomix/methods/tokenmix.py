"""TokenMix: scattered blocks of patches of one image in another, labels by their content.

Paper: Liu, Liu, Zhou, Li, Liu, "TokenMix: Rethinking Image Mixing for Data Augmentation in Vision
Transformers", ECCV 2022, arXiv 2207.08409.
Computes: a mask of t of the P patches, t = ⌊P/2⌋ + P/14 as released, laid out as BEiT masks are:
rectangles of a random area (uniform up to what is left) and aspect (log-uniform from 0.3 to
1/0.3) are put down one after the other until t patches are covered or ten attempts in a row fail.
There the partner shows, elsewhere the image. With A `[P]` the activation map of an image, which
sums to 1, the label weighs the image by w₁ = Σ A over the patches that remain of it and the
partner by w₂ = Σ A over those that show, for each mix its own.
Needs: attention over patches (ViT and DeiT of timm), the teacher. Cost: 4F at the steps so mixed
(the teacher's forward on the clean images), 3F at those of Mixup.
Defaults: as released: half of the steps so mixed, the others by Mixup with Beta(0.8, 0.8); one
mask a batch; 14 patches more than half of 14×14, in proportion for other grids.
Deviations: the paper's maps are class scores that a large pretrained network computed offline for
the data set (NFNet-F6). Here A is the attention of the class token in the last block, mean over
heads, of the run's own moving average (`guide: teacher`) or of the student in evaluation mode:
the content of an image as this run sees it, with nothing to download. Weights are divided by
their sum, so that labels keep mass 1 under cross-entropy; `normalize: false` leaves them as
released, where a binary cross-entropy takes them. Partners are a random permutation where the
released code pairs a batch with itself reversed.
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
    attend_clean,
    draw_turn,
    relabeled,
    share_inside,
    to_pixels,
)
from adautomix.methods.facts import LabelRule, Paper, Requirement
from adautomix.mixing.boxes import box_mask, paste
from adautomix.mixing.ops import Mixed, mix_by_lam
from adautomix.mixing.params import Shape

ATTEMPTS = 10  # to find a place for one more rectangle
MIN_ASPECT = 0.3


@dataclass(frozen=True)
class TokenMixParams(AlternatingParams):
    """With `partner` `[B, h, w]`, true at the patches where the partner shows."""

    partner: Tensor


class TokenMixSettings(AlternatingSettings):
    """Settings of TokenMix."""

    share: float = Field(0.5, ge=0, le=1, description="least share of patches of the partner")
    extra_tokens: int | None = Field(
        None, ge=0, description="patches of the partner beyond that; none: a fourteenth of all"
    )
    guide: Literal["teacher", "student"] = Field(
        "teacher", description="whose attention to the clean images says what they show where"
    )
    normalize: bool = Field(True, description="labels of mass 1; off: as released")


def partner_tokens(grid: Grid, settings: TokenMixSettings) -> int:
    """How many patches the partner is to have."""
    count = math.prod(grid)
    extra = settings.extra_tokens
    extra = round(count / 14) if extra is None else extra
    return min(count, int(settings.share * count) + extra)


def propose_boxes(room: Tensor, grid: Grid, generator: torch.Generator) -> Tensor:
    """A rectangle for each mask, of an area up to its `room` `[n]`: `[n, 4]`, see `draw_box`.

    One that does not fit into the grid comes out empty.
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
    """Masks of at most `tokens` patches made of rectangles, as BEiT draws them: `[count, h, w]`.

    All masks grow side by side, each until it is full or `ATTEMPTS` in a row have failed.
    """
    masks = torch.zeros(count, *grid, dtype=torch.bool)
    failed = torch.zeros(count, dtype=torch.long)
    room = torch.full((count,), tokens)
    while ((room > 0) & (failed < ATTEMPTS)).any():
        grown = masks | box_mask(propose_boxes(room, grid, generator), *grid)
        left = tokens - grown.sum(dim=(1, 2))
        better = (left >= 0) & (left < room) & (failed < ATTEMPTS)
        masks = torch.where(better[:, None, None], grown, masks)
        room = torch.where(better, left, room)
        failed = torch.where(better, 0, failed + 1)
    return masks


def draw_tokenmix(
    batch: int, grid: Grid, settings: TokenMixSettings, generator: torch.Generator
) -> TokenMixParams:
    """Partners, whose turn it is, Mixup's shares and the masks."""
    perm, lam, plain = draw_turn(batch, settings, generator)
    count = batch if settings.per_sample else 1
    tokens = 0 if plain else partner_tokens(grid, settings)
    masks = draw_blocks(count, grid, tokens, generator)
    return TokenMixParams(perm, lam, plain, masks.expand(batch, -1, -1).contiguous())


def content_weights(maps: Tensor, perm: Tensor, partner: Tensor, *, normalize: bool) -> Tensor:
    """What of each source's map shows in the mix.

    Args:
        maps: one an image, `[B, P]`.
        perm: `[M, 2]`.
        partner: where the second source shows, `[M, P]`.
        normalize: make the weights of a mix sum to 1.

    Returns:
        `[M, 2]`.
    """
    mask_source = torch.stack([~partner, partner], dim=1)
    weights = share_inside(maps[perm].flatten(0, 1), mask_source.flatten(0, 1)).view_as(perm)
    if not normalize:
        return weights
    second = weights[:, 1] / weights.sum(dim=1).clamp_min(torch.finfo(weights.dtype).tiny)
    return torch.stack([1 - second, second], dim=1)


class TokenMix(AttentionMethod[TokenMixSettings, TokenMixParams]):
    """TokenMix (Liu et al., ECCV 2022)."""

    name = "tokenmix"
    summary = "scattered blocks of patches, labels by their content"
    paper = Paper(
        authors="Liu, Liu, Zhou, Li, Liu",
        title="TokenMix: Rethinking Image Mixing for Data Augmentation in Vision Transformers",
        venue="ECCV",
        year=2022,
        arxiv="2207.08409",
    )
    requires = frozenset({Requirement.PATCH_ATTENTION, Requirement.TEACHER})
    cost = 3.5
    supports_own_teacher_buffers = True  # a plain transformer has no batch norm statistics
    label_rule = LabelRule.ATTENTION
    label_note = "labels follow attention"
    Settings = TokenMixSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> TokenMixParams:
        """Partners, whose turn it is, Mixup's shares and the masks."""
        return draw_tokenmix(shape[0], self.grid_of(shape), self.settings, generator)

    def extract_features(
        self, images: Tensor, targets: Tensor, student: Any, teacher: Any, params: TokenMixParams
    ) -> FeatureDict:
        """What the guide attends to in each clean image, `[B, P]`; nothing at steps of Mixup."""
        if params.plain:
            return {}
        guide = teacher if self.settings.guide == "teacher" else student
        return {"attention": attend_clean(guide, images).attention}

    def mix(
        self, images: Tensor, targets: Tensor, params: TokenMixParams, **features: Tensor
    ) -> Mixed:
        """The partner where the mask says so, labels by content; or Mixup where it has its turn."""
        if params.plain:
            return mix_by_lam(images, targets, params.perm, params.lam)
        mixed = paste(images, targets, params.perm, to_pixels(~params.partner, self.patch))
        lam = content_weights(
            features["attention"],
            params.perm,
            params.partner.flatten(1),
            normalize=self.settings.normalize,
        )
        return relabeled(mixed, targets, lam)
