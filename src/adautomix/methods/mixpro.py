"""MixPro: random cells of two images; labels trust attention as it improves.

Paper: Zhao, Huang, Hu, Zhang, Liu, "MixPro: Data Augmentation with MaskMix and Progressive
Attention Labeling for Vision Transformer", ICLR 2023, arXiv 2304.12043.
Computes: MaskMix: u ~ Beta(a, a) for the batch; ⌈u c²⌉ random ones of the c × c cells of each mix
`[B, C, H, W]` show the image, the others its partner, which gives λ_area. Progressive attention
labeling, from the forward pass of the loss: λ_attn is the fraction of the class token's attention
(last block, averaged over heads) on the image's cells, and q in [0, 1] the cosine similarity of the
label by area and the predicted probabilities. The label `[B, K]` has λ = q λ_attn + (1 - q) λ_area,
for each mix separately.
Requires: attention over patches (timm's ViT and DeiT); nothing without `attention_labels`, with
which cells may be those of any network.
Cost: 3F per step, as plain training.
Settings:
- switch: 0.5 in the authors' configurations (`MASKMIX_PROB`).
- mixup_alpha: 0.8 in the authors' configurations.
- per_sample: off, as in the authors' code.
- alpha: 1 in the authors' configurations (`MASKMIX_ALPHA`).
- cutmix_share: 0.5 in the authors' configurations (`MIXUP_SWITCH_PROB`).
- cutmix_alpha: 1 in the authors' configurations.
- cells: none: 4, which are the authors' 56 of 224 pixels, or the nearest number of whole patches,
  which is 7 for the 14 × 14 patches of DeiT/16. The authors train DeiT with patches of 14 pixels.
- attention_labels: on, because progressive attention labeling is half of the paper's method. It is
  off (`PAL_ATTN: False`) in the default and in all three DeiT configurations that the authors
  released, which therefore train MaskMix alone: set `mixpro.attention_labels: false` for that.
Deviations:
- No gradient flows through q, which is part of the label. The authors' code leaves it attached.
- Label smoothing applies to these steps as to any other. The authors' code drops it here.
- In a network that is not pooled by its class token, the attention is the mean over all patches'.
- Swin and other networks without attention between all patches are trained with MaskMix alone, as
  the authors do.
Evidence: none published for ResNet-18, which has no attention.
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
    draw_alternating,
    fraction_inside,
    patches_to_pixels,
    pixels_to_patches,
    with_lam,
)
from adautomix.methods.facts import LabelRule, Paper
from adautomix.mixing.boxes import draw_box, outside_mask, paste
from adautomix.mixing.ops import Mixed, mix_by_lam
from adautomix.mixing.params import Shape, draw_beta

CELLS = 4  # cells per side in the authors' settings


@dataclass(frozen=True)
class MixProParams(AlternatingParams):
    """Parameters of MixPro.

    Attributes:
        partner: cells that show the partner, bool `[B, c, c]`.
        box: CutMix boxes (top, bottom, left, right; ends exclusive), int64 `[B, 4]`.
        boxed: whether a plain step is CutMix instead of Mixup.
    """

    partner: Tensor
    box: Tensor
    boxed: bool


class MixProSettings(AlternatingSettings):
    """Settings of MixPro."""

    switch: float = Field(
        0.5,
        ge=0,
        le=1,
        description="fraction of steps that use this method; the rest use Mixup or CutMix",
    )
    alpha: float = Field(
        1.0, gt=0, description="u ~ Beta(alpha, alpha), fraction of cells that show the image"
    )
    cutmix_share: float = Field(
        0.5, ge=0, le=1, description="fraction of the other steps that use CutMix, not Mixup"
    )
    cutmix_alpha: float = Field(1.0, gt=0, description="CutMix steps: λ₀ ~ Beta(alpha, alpha)")
    cells: int | None = Field(
        None, ge=1, description="cells per side; none: 4, or the nearest count of whole patches"
    )
    attention_labels: bool = Field(
        True, description="weigh labels by attention; off: by area (MaskMix alone)"
    )


def draw_cells(fraction: Tensor, cells: int, generator: torch.Generator) -> Tensor:
    """Draw the cells that show the partner: all but ⌈fraction · c²⌉ random ones.

    Args:
        fraction: fraction of cells that show the image, `[B]`.
        cells: c, cells per side.
        generator: a CPU generator.

    Returns:
        Bool `[B, c, c]`.
    """
    rank = torch.rand(len(fraction), cells * cells, generator=generator)
    rank = rank.argsort(dim=1).argsort(dim=1)
    return (rank >= (fraction * cells * cells).ceil()[:, None]).view(-1, cells, cells)


def draw_mixpro(
    shape: Shape, cells: int, settings: MixProSettings, generator: torch.Generator
) -> MixProParams:
    """Draw partners, the kind of step, and the parameters of MaskMix, Mixup and CutMix."""
    batch, _, height, width = shape
    count = batch if settings.per_sample else 1
    alternating = draw_alternating(batch, settings, generator)
    boxed = bool(torch.rand((), generator=generator) < settings.cutmix_share)
    lam = draw_beta(count, 1, settings.cutmix_alpha, generator)[:, 0]
    box = draw_box(lam, height, width, generator).expand(batch, 4).contiguous()
    fraction = draw_beta(count, 1, settings.alpha, generator)[:, 0].expand(batch)
    return MixProParams(*alternating, draw_cells(fraction, cells, generator), box, boxed)


def choose_cells(grid: Grid, cells: int | None) -> int:
    """Return the number of cells per side, each of which consists of whole patches.

    Args:
        grid: patches per column and per row.
        cells: the wanted number; None: the possible one nearest to 4.

    Raises:
        UsageError: the patches cannot be divided into that many cells.
    """
    both = math.gcd(*grid)
    possible = [count for count in range(1, both + 1) if both % count == 0]
    if cells is None:
        return min(possible, key=lambda count: abs(math.log(count / CELLS)))
    if cells not in possible:
        numbers = ", ".join(map(str, possible))
        raise UsageError(
            f"mixpro.cells = {cells}: {grid[0]}×{grid[1]} patches can be divided into {numbers}"
            " cells per side"
        )
    return cells


class MixPro(RelabelingMethod[MixProSettings, MixProParams]):
    """MixPro (Zhao et al., ICLR 2023)."""

    name = "mixpro"
    summary = "random cells; labels follow attention more as predictions improve"
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
        """Draw partners, the kind of step, and the parameters of MaskMix, Mixup and CutMix."""
        cells = choose_cells(self.patch_grid(shape), self.settings.cells)
        return draw_mixpro(shape, cells, self.settings, generator)

    def mix(
        self, images: Tensor, targets: Tensor, params: MixProParams, **features: Tensor
    ) -> Mixed:
        """Return MaskMix, or CutMix or Mixup at their steps, with labels by area."""
        height, width = images.shape[2:]
        if params.plain and not params.boxed:
            return mix_by_lam(images, targets, params.perm, params.lam)
        if params.plain:
            return paste(images, targets, params.perm, outside_mask(params.box, height, width))
        cells = params.partner.shape[1]
        inside = patches_to_pixels(params.partner, (height // cells, width // cells))
        return paste(images, targets, params.perm, ~inside)

    def relabels(self, params: MixProParams) -> bool:
        """Whether labels of this step follow attention, which only those of MaskMix do."""
        return self.settings.attention_labels and not params.plain

    def relabel(self, mixed: Mixed, targets: Tensor, attention: Tensor, logits: Tensor) -> Mixed:
        """Compute λ = q λ_attn + (1 - q) λ_area, where q is how well the mix is predicted."""
        masks = mixed.masks
        assert masks is not None
        smoothed = (1 - self.label_smoothing) * mixed.targets
        smoothed = smoothed + self.label_smoothing / self.num_classes
        trust = F.cosine_similarity(smoothed, logits.float().softmax(dim=1), dim=1)
        attended = fraction_inside(attention, pixels_to_patches(masks[:, 1], self.patch))
        second = torch.lerp(mixed.lam[:, 1], attended, trust)
        return with_lam(mixed, targets, torch.stack([1 - second, second], dim=1))
