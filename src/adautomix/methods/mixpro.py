"""MixPro: cells of two images mixed at random, labels that trust attention as it becomes good.

Paper: Zhao, Huang, Hu, Zhang, Liu, "MixPro: Data Augmentation with MaskMix and Progressive
Attention Labeling for Vision Transformer", ICLR 2023, arXiv 2304.12043.
Computes: MaskMix: u ~ Beta(a, a) a batch; of the c×c cells of each mix ⌈u c²⌉ random ones show the
image, the others its partner: λ_area. Progressive attention labeling, from the forward that the
loss needs anyway: λ_attn, the share of the class token's attention (last block, mean over heads)
that falls on the image's cells; q = cosine(label by area, predicted probabilities), 0 to 1;
λ = q λ_attn + (1 - q) λ_area, for each mix its own.
Needs: attention over patches (ViT and DeiT of timm); without `attention_labels` nothing, and the
cells may be those of any network. Cost: 3F a step, as no mixing.
Defaults: as released: MaskMix with a = 1 at half of the steps; at the others Mixup with
Beta(0.8, 0.8) or CutMix with Beta(1, 1), by a fair coin. 4×4 cells, i.e. 56 of 224 pixels; where
they are no whole patches the nearest number that is (7 for the 14×14 patches of DeiT/16, whose
authors cut patches of 14 pixels instead).
Deviations: no gradient flows through q, a weight of labels; the released code leaves it attached.
Label smoothing, where the run asks for it, smooths the loss of these steps like any other; the
released code drops it here. A network that is not pooled by its class token is asked for the mean
over all patches' attention. Swin and other networks without attention to all patches train with
MaskMix alone, as the authors train them.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods.base_attention import (
    AlternatingParams,
    AlternatingSettings,
    Grid,
    RelabelingMethod,
    draw_turn,
    relabeled,
    share_inside,
    to_patches,
    to_pixels,
)
from adautomix.methods.facts import LabelRule, Paper
from adautomix.mixing.boxes import draw_box, outside_box, paste
from adautomix.mixing.ops import Mixed, mix_by_lam
from adautomix.mixing.params import Shape, draw_beta

CELLS = 4  # a side, as the authors have them


@dataclass(frozen=True)
class MixProParams(AlternatingParams):
    """With `partner` `[B, c, c]`, true where the partner shows, and `box` `[B, 4]` of CutMix.

    Where `plain` is true, `boxed` says that CutMix has its turn and not Mixup.
    """

    partner: Tensor
    box: Tensor
    boxed: bool


class MixProSettings(AlternatingSettings):
    """Settings of MixPro."""

    switch: float = Field(
        0.5, ge=0, le=1, description="share of steps mixed so; others by Mixup or CutMix"
    )
    alpha: float = Field(
        1.0, gt=0, description="u ~ Beta(alpha, alpha), share of the image's cells"
    )
    cutmix_share: float = Field(
        0.5, ge=0, le=1, description="share of CutMix among the steps not mixed so"
    )
    cutmix_alpha: float = Field(1.0, gt=0, description="λ₀ ~ Beta(a, a) of the steps of CutMix")
    cells: int | None = Field(
        None, ge=1, description="cells a side; none: 4, or the nearest that are whole patches"
    )
    attention_labels: bool = Field(True, description="off: labels by area, MaskMix alone")


def draw_cells(share: Tensor, cells: int, generator: torch.Generator) -> Tensor:
    """Random cells, all but ⌈share c²⌉ of each mix: `share` `[B]`, result bool `[B, c, c]`."""
    rank = torch.rand(len(share), cells * cells, generator=generator).argsort(dim=1).argsort(dim=1)
    return (rank >= (share * cells * cells).ceil()[:, None]).view(-1, cells, cells)


def draw_mixpro(
    shape: Shape, cells: int, settings: MixProSettings, generator: torch.Generator
) -> MixProParams:
    """Partners, whose turn it is, and the numbers of each of the three mixes."""
    batch, _, height, width = shape
    count = batch if settings.per_sample else 1
    turn = draw_turn(batch, settings, generator)
    boxed = bool(torch.rand((), generator=generator) < settings.cutmix_share)
    lam = draw_beta(count, 1, settings.cutmix_alpha, generator)[:, 0]
    box = draw_box(lam, height, width, generator).expand(batch, 4).contiguous()
    share = draw_beta(count, 1, settings.alpha, generator)[:, 0].expand(batch)
    return MixProParams(*turn, draw_cells(share, cells, generator), box, boxed)


def suited_cells(grid: Grid, cells: int | None) -> int:
    """Cells a side that are whole patches of the grid.

    Raises:
        UsageError: those asked for are none.
    """
    both = math.gcd(*grid)
    possible = [count for count in range(1, both + 1) if both % count == 0]
    if cells is None:
        return min(possible, key=lambda count: abs(math.log(count / CELLS)))
    if cells not in possible:
        numbers = ", ".join(map(str, possible))
        raise UsageError(
            f"mixpro.cells = {cells}: {grid[0]}×{grid[1]} patches fall into {numbers} cells a side"
        )
    return cells


class MixPro(RelabelingMethod[MixProSettings, MixProParams]):
    """MixPro (Zhao et al., ICLR 2023)."""

    name = "mixpro"
    summary = "random cells; labels trust attention as it becomes good"
    paper = Paper(
        authors="Zhao, Huang, Hu, Zhang, Liu",
        title="MixPro: Data Augmentation with MaskMix and Progressive Attention Labeling for "
        "Vision Transformer",
        venue="ICLR",
        year=2023,
        arxiv="2304.12043",
    )
    label_rule = LabelRule.ATTENTION
    label_note = "labels follow attention and area"
    Settings = MixProSettings

    def patch_size(self, model: nn.Module | None) -> Grid:
        """A patch of the network, or one pixel if labels do not follow its attention."""
        return super().patch_size(model) if self.settings.attention_labels else (1, 1)

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> MixProParams:
        """Partners, whose turn it is, and the numbers of each of the three mixes."""
        cells = suited_cells(self.grid_of(shape), self.settings.cells)
        return draw_mixpro(shape, cells, self.settings, generator)

    def mix(
        self, images: Tensor, targets: Tensor, params: MixProParams, **features: Tensor
    ) -> Mixed:
        """MaskMix, or CutMix or Mixup where they have their turn; labels by area."""
        height, width = images.shape[2:]
        if params.plain and not params.boxed:
            return mix_by_lam(images, targets, params.perm, params.lam)
        if params.plain:
            return paste(images, targets, params.perm, outside_box(params.box, height, width))
        cells = params.partner.shape[1]
        inside = to_pixels(params.partner, (height // cells, width // cells))
        return paste(images, targets, params.perm, ~inside)

    def relabels(self, params: MixProParams) -> bool:
        """Only mixes of cells are labeled by attention."""
        return self.settings.attention_labels and not params.plain

    def relabel(self, mixed: Mixed, targets: Tensor, attention: Tensor, logits: Tensor) -> Mixed:
        """λ = q λ_attn + (1 - q) λ_area; q says how well the mix is already predicted."""
        masks = mixed.masks
        assert masks is not None
        smoothed = (1 - self.label_smoothing) * mixed.targets
        smoothed = smoothed + self.label_smoothing / self.num_classes
        trust = F.cosine_similarity(smoothed, logits.float().softmax(dim=1), dim=1)
        attended = share_inside(attention, to_patches(masks[:, 1], self.patch))
        second = torch.lerp(mixed.lam[:, 1], attended, trust)
        return relabeled(mixed, targets, torch.stack([1 - second, second], dim=1))
