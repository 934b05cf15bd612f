"""SMMix: the most attended square of one image over the least attended square of another.

Paper: Chen, Lin, Lin, Zhang, Chao, Ji, "SMMix: Self-Motivated Image Mixing for Vision
Transformers", ICCV 2023, arXiv 2212.12977.
Computes: a first forward of the student on the clean images, in evaluation mode and without
gradient, gives logits z and a `[P]`, the attention of all patches to each patch in the last block,
mean over heads. A side of k patches is drawn, uniform from a quarter to three quarters of the
grid's. The k×k patches of the partner with the largest sum of a replace those of the image with
the smallest; λ = 1 - k²/P. Then, with p the logits of the mix and f those of a head of the method's
own on the mean of the patches of one source:

    CE(p, y_mix) + (CE(f(image's patches), y₁) + CE(f(partner's patches), y₂)) / 2
        + KL(softmax(λ z₁ + (1 - λ) z₂) ‖ softmax(p))

Needs: attention over patches (ViT and DeiT of timm). Cost: 4F at the steps so mixed, 3F at those
of Mixup.
Defaults: as released: half of the steps so mixed, the others by Mixup with Beta(0.8, 0.8); one
side a batch.
Deviations: partners are a random permutation where the released code pairs a batch with itself
reversed. The mask of the partner says where it shows, not whence the patches were taken. PVT and
CaiT, which the paper trains too, are not supported.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.methods.base import FeatureDict, MixInputs
from adautomix.methods.base_attention import (
    AlternatingParams,
    AlternatingSettings,
    AttentionMethod,
    Grid,
    attend_clean,
    draw_turn,
    to_patches,
)
from adautomix.methods.facts import Paper
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.boxes import box_mask
from adautomix.mixing.ops import Mixed, mix_by_lam, weighted_sum
from adautomix.mixing.params import Shape
from adautomix.models import Classifier


@dataclass(frozen=True)
class SMMixParams(AlternatingParams):
    """With `side` `[B]`, of the squares, in patches."""

    side: Tensor


class SMMixSettings(AlternatingSettings):
    """Settings of SMMix."""

    min_side: float = Field(0.25, gt=0, le=1, description="least side, as a share of the grid's")
    max_side: float = Field(0.75, gt=0, le=1, description="largest side, as a share of the grid's")
    fine_weight: float = Field(1.0, ge=0, description="of the loss of each source's patches")
    consistency_weight: float = Field(1.0, ge=0, description="of the divergence from clean logits")


def draw_sides(
    batch: int, grid: Grid, settings: SMMixSettings, generator: torch.Generator
) -> Tensor:
    """Sides of the squares in patches, `[B]`: one for the batch, or each mix its own."""
    least = max(1, int(min(grid) * settings.min_side))
    largest = max(least, int(min(grid) * settings.max_side))
    count = batch if settings.per_sample else 1
    return torch.randint(least, largest + 1, (count,), generator=generator).repeat(batch // count)


def draw_smmix(
    batch: int, grid: Grid, settings: SMMixSettings, generator: torch.Generator
) -> SMMixParams:
    """Partners, whose turn it is, Mixup's shares and the sides."""
    turn = draw_turn(batch, settings, generator)
    return SMMixParams(*turn, draw_sides(batch, grid, settings, generator))


def square_sums(maps: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """The sum in the square below and right of each patch, and whether that square is whole.

    Args:
        maps: `[M, h, w]`.
        side: of the squares of each map, `[M]`.

    Returns:
        Float64 `[M, h, w]` and bool `[M, h, w]`.
    """
    _, height, width = maps.shape
    # Differences of running sums, in double precision: near-equal squares are to be told apart.
    integral = F.pad(maps.double().cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))
    bottom = torch.arange(height, device=side.device) + side[:, None]
    right = torch.arange(width, device=side.device) + side[:, None]
    below = bottom.clamp(max=height)[:, :, None].expand(-1, -1, width + 1)
    rows = integral.gather(1, below) - integral[:, :height]
    beside = right.clamp(max=width)[:, None, :].expand(-1, height, -1)
    sums = rows.gather(2, beside) - rows[:, :, :width]
    return sums, (bottom <= height)[:, :, None] & (right <= width)[:, None, :]


def find_squares(maps: Tensor, side: Tensor, *, largest: bool) -> Tensor:
    """Top and left of the square of each map with the largest or smallest sum, `[M, 2]`."""
    sums, whole = square_sums(maps, side)
    sums = sums if largest else -sums
    best = sums.masked_fill(~whole, -torch.inf).flatten(1).argmax(dim=1)
    width = maps.shape[2]
    return torch.stack([best // width, best % width], dim=1)


def in_pixels(places: Tensor, patch: Grid) -> Tensor:
    """Rows and columns `[M, 2]`, counted in patches, as rows and columns of pixels."""
    return torch.stack([places[:, 0] * patch[0], places[:, 1] * patch[1]], dim=1)


def shifted(images: Tensor, rows: Tensor, by: Tensor) -> Tensor:
    """Some of the images, moved: `result[m, :, y, x] = images[rows[m], :, y + by₀, x + by₁]`.

    Args:
        images: `[B, C, H, W]`; what leaves at one edge comes in at the other.
        rows: `[M]`.
        by: in pixels, `[M, 2]`.
    """
    height, width = images.shape[2:]
    y = (torch.arange(height, device=by.device) + by[:, :1]) % height
    x = (torch.arange(width, device=by.device) + by[:, 1:]) % width
    return images[rows[:, None, None], :, y[:, :, None], x[:, None, :]].movedim(3, 1)


def move_squares(
    images: Tensor, perm: Tensor, onto: Tensor, origin: Tensor, side: Tensor
) -> tuple[Tensor, Tensor]:
    """A square of the second source over one of the first.

    Args:
        images: `[B, C, H, W]`.
        perm: `[M, 2]`.
        onto: top and left in the first source, in pixels, `[M, 2]`.
        origin: the same in the second.
        side: height and width in pixels, `[M, 2]`.

    Returns:
        The mixes `[M, C, H, W]` and where the second source shows, bool `[M, H, W]`.
    """
    box = torch.stack([onto, onto + side], dim=2).flatten(1)
    inside = box_mask(box, *images.shape[2:])
    moved = shifted(images, perm[:, 1], origin - onto)
    # In place on gathered rows: weights of 0 and 1 are exact and the memory layout stays.
    return images[perm[:, 0]].lerp_(moved, inside[:, None].to(images.dtype)), inside


class SMMix(AttentionMethod[SMMixSettings, SMMixParams]):
    """SMMix (Chen et al., ICCV 2023)."""

    name = "smmix"
    summary = "the most attended square over the least attended one"
    paper = Paper(
        authors="Chen, Lin, Lin, Zhang, Chao, Ji",
        title="SMMix: Self-Motivated Image Mixing for Vision Transformers",
        venue="ICCV",
        year=2023,
        arxiv="2212.12977",
    )
    cost = 3.5
    Settings = SMMixSettings

    def build(self, model: nn.Module | None) -> None:
        """Create the head that classifies the patches of one source."""
        super().build(model)
        width = self.network_with(model, "blocks").blocks().width
        self.token_head = nn.Linear(width, self.num_classes)
        nn.init.trunc_normal_(self.token_head.weight, std=0.02)
        nn.init.zeros_(self.token_head.bias)

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> SMMixParams:
        """Partners, whose turn it is, Mixup's shares and the sides."""
        return draw_smmix(shape[0], self.grid_of(shape), self.settings, generator)

    def extract_features(
        self,
        images: Tensor,
        targets: Tensor,
        student: Classifier,
        teacher: Any,
        params: SMMixParams,
    ) -> FeatureDict:
        """Attention over the patches `[B, P]` and logits `[B, K]` of the clean images."""
        if params.plain:
            return {}
        features = attend_clean(student, images, queries="patches")
        return {"attention": features.attention, "logits": student.logits(features.pooled).detach()}

    def mix(
        self, images: Tensor, targets: Tensor, params: SMMixParams, **features: Tensor
    ) -> Mixed:
        """The partner's most attended square over the image's least; or Mixup at its turn."""
        if params.plain:
            return mix_by_lam(images, targets, params.perm, params.lam)
        perm, maps = params.perm, features["attention"].unflatten(1, self.grid_of(images.shape))
        onto = find_squares(maps[perm[:, 0]], params.side, largest=False)
        origin = find_squares(maps[perm[:, 1]], params.side, largest=True)
        side = params.side[:, None].expand(-1, 2)
        places = [in_pixels(place, self.patch) for place in (onto, origin, side)]
        mixes, inside = move_squares(images, perm, *places)
        masks = torch.stack([~inside, inside], dim=1).float()
        lam = masks.mean(dim=(2, 3))
        return Mixed(mixes, weighted_sum(targets, perm, lam[:, :, None]), lam, perm, masks)

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Any, params: SMMixParams
    ) -> dict[str, Tensor]:
        """The mix's loss, that of each source's patches, and the divergence from clean logits."""
        if params.plain:
            return super().compute_loss(sources, student, teacher, params)
        mixed = self.mix(sources.images, sources.targets, params, **sources.features)
        blocks = student.blocks()
        pooled, patches = blocks.leave(blocks.enter(mixed.images, 1), 1)
        logits = student.logits(pooled)
        fine = self.fine_loss(mixed, patches, sources.targets)
        consistency = divergence(logits, mixed, sources.features["logits"])
        weighted = self.settings.fine_weight * fine + self.settings.consistency_weight * consistency
        return {
            "loss": self.cross_entropy(logits, mixed.targets) + weighted,
            "mixture_accuracy": mixture_accuracy(logits, mixed.targets),
            "fine": fine.detach(),
            "consistency": consistency.detach(),
        }

    def fine_loss(self, mixed: Mixed, patches: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the patches of each source, `[M, P, D]`, against its own label."""
        masks = mixed.masks
        assert masks is not None
        mask_source = to_patches(masks.flatten(0, 1), self.patch).unflatten(0, mixed.perm.shape)
        shares = mask_source / mask_source.sum(dim=2, keepdim=True).clamp_min(1)
        predicted = self.token_head(shares.to(patches.dtype) @ patches)
        return self.cross_entropy(predicted.flatten(0, 1), targets[mixed.perm].flatten(0, 1))


def divergence(logits: Tensor, mixed: Mixed, clean: Tensor) -> Tensor:
    """KL from what the sources' clean logits `[B, K]` mix to; mean over the mixes."""
    expected = weighted_sum(clean.float(), mixed.perm, mixed.lam[:, :, None]).softmax(dim=1)
    return F.kl_div(logits.float().log_softmax(dim=1), expected, reduction="batchmean")
