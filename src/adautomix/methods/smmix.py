"""SMMix: the most attended square of one image over the least attended square of another.

Paper: Chen, Lin, Lin, Zhang, Chao, Ji, "SMMix: Self-Motivated Image Mixing for Vision
Transformers", ICCV 2023, arXiv 2212.12977.
Computes: a first forward pass of the student on the clean images, in evaluation mode and without
gradient, gives logits z `[B, K]` and a `[B, P]`, the attention of all patches to each patch in the
last block, averaged over heads. A side of k patches is drawn for the batch, uniform from a quarter
to three quarters of the grid's. The k × k patches of the partner with the largest sum of a replace
those of the image with the smallest; the label `[B, K]` has λ = 1 - k²/P. Then, with p the logits
of the mix and f those of the method's own head on the mean of the patches of one source,

    CE(p, y_mix) + (CE(f(image's patches), y₁) + CE(f(partner's patches), y₂)) / 2
        + KL(softmax(λ z₁ + (1 - λ) z₂) ‖ softmax(p))

Requires: attention over patches (timm's ViT and DeiT).
Cost: 3.5F per step on average: 4F at the steps of this method, 3F at those of Mixup.
Settings:
- switch: 0.5, as in the authors' code.
- mixup_alpha: 0.8, as in the authors' code.
- per_sample: off, one side per batch, as in the authors' code.
- min_side: 0.25, as in the authors' code.
- max_side: 0.75, as in the authors' code.
- fine_weight: 1, as in the authors' code.
- consistency_weight: 1, as in the authors' code.
Deviations:
- Partners are a random permutation. The authors' code pairs a batch with itself reversed.
- The mask of the partner tells where it shows, not where in the partner the patches come from.
- PVT and CaiT, which the paper also trains, are not supported.
Evidence: none published for ResNet-18, which has no attention. On CIFAR-100 the openmixup benchmark
has 74.49 % with DeiT-S and 81.55 % with Swin-T after 200 epochs.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.device import exact
from adautomix.methods.base import FeatureDict, MixInputs
from adautomix.methods.base_attention import (
    AlternatingParams,
    AlternatingSettings,
    AttentionMethod,
    Grid,
    draw_alternating,
    eval_with_attention,
    pixels_to_patches,
)
from adautomix.methods.facts import Paper
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.boxes import box_mask
from adautomix.mixing.ops import Mixed, mix_by_lam, weighted_sum
from adautomix.mixing.params import Shape
from adautomix.models import Classifier


@dataclass(frozen=True)
class SMMixParams(AlternatingParams):
    """Parameters of SMMix.

    Attributes:
        side: side of the squares in patches, int64 `[B]`.
    """

    side: Tensor


class SMMixSettings(AlternatingSettings):
    """Settings of SMMix."""

    min_side: float = Field(
        0.25, gt=0, le=1, description="smallest side of the square, as a fraction of the grid's"
    )
    max_side: float = Field(
        0.75, gt=0, le=1, description="largest side of the square, as a fraction of the grid's"
    )
    fine_weight: float = Field(
        1.0, ge=0, description="weight of the loss of each source's own patches"
    )
    consistency_weight: float = Field(
        1.0, ge=0, description="weight of the divergence from the clean logits"
    )


def draw_sides(
    batch: int, grid: Grid, settings: SMMixSettings, generator: torch.Generator
) -> Tensor:
    """Draw the sides of the squares in patches, int64 `[B]`."""
    smallest = max(1, int(min(grid) * settings.min_side))
    largest = max(smallest, int(min(grid) * settings.max_side))
    count = batch if settings.per_sample else 1
    return torch.randint(smallest, largest + 1, (count,), generator=generator).repeat(
        batch // count
    )


def draw_smmix(
    batch: int, grid: Grid, settings: SMMixSettings, generator: torch.Generator
) -> SMMixParams:
    """Draw partners, the kind of step, Mixup's weights and the sides of the squares."""
    alternating = draw_alternating(batch, settings, generator)
    return SMMixParams(*alternating, draw_sides(batch, grid, settings, generator))


def square_sums(maps: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """Sum maps over the square whose top left corner is each patch.

    Args:
        maps: `[M, h, w]`.
        side: side of the squares of each map, int64 `[M]`.

    Returns:
        The sums, float64 `[M, h, w]`, and whether the square lies inside the grid, bool
        `[M, h, w]`.
    """
    _, height, width = maps.shape
    # Differences of running sums, as exact as possible to tell nearly equal squares apart.
    integral = F.pad(exact(maps).cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))
    bottom = torch.arange(height, device=side.device) + side[:, None]
    right = torch.arange(width, device=side.device) + side[:, None]
    below = bottom.clamp(max=height)[:, :, None].expand(-1, -1, width + 1)
    rows = integral.gather(1, below) - integral[:, :height]
    beside = right.clamp(max=width)[:, None, :].expand(-1, height, -1)
    sums = rows.gather(2, beside) - rows[:, :, :width]
    return sums, (bottom <= height)[:, :, None] & (right <= width)[:, None, :]


def find_squares(maps: Tensor, side: Tensor, *, largest: bool) -> Tensor:
    """Find the square of each map with the largest or smallest sum.

    Args:
        maps: `[M, h, w]`.
        side: side of the squares of each map, int64 `[M]`.
        largest: largest instead of smallest sum.

    Returns:
        Row and column of its top left patch, int64 `[M, 2]`.
    """
    sums, inside = square_sums(maps, side)
    sums = sums if largest else -sums
    best = sums.masked_fill(~inside, -torch.inf).flatten(1).argmax(dim=1)
    width = maps.shape[2]
    return torch.stack([best // width, best % width], dim=1)


def in_pixels(positions: Tensor, patch: Grid) -> Tensor:
    """Convert rows and columns `[M, 2]` from patches to pixels."""
    return torch.stack([positions[:, 0] * patch[0], positions[:, 1] * patch[1]], dim=1)


def shift_images(images: Tensor, rows: Tensor, offset: Tensor) -> Tensor:
    """Compute `result[m, :, y, x] = images[rows[m], :, y + offset₀, x + offset₁]`, wrapping around.

    Args:
        images: `[B, C, H, W]`.
        rows: int64 `[M]`.
        offset: in pixels, int64 `[M, 2]`.

    Returns:
        `[M, C, H, W]`.
    """
    height, width = images.shape[2:]
    y = (torch.arange(height, device=offset.device) + offset[:, :1]) % height
    x = (torch.arange(width, device=offset.device) + offset[:, 1:]) % width
    return images[rows[:, None, None], :, y[:, :, None], x[:, None, :]].movedim(3, 1)


def paste_squares(
    images: Tensor, perm: Tensor, target: Tensor, source: Tensor, side: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste a square of the second image over one of the first.

    Args:
        images: `[B, C, H, W]`.
        perm: rows of both images, int64 `[M, 2]`.
        target: top and left of the square in the first image, in pixels, `[M, 2]`.
        source: top and left of the square in the second image, in pixels, `[M, 2]`.
        side: height and width in pixels, `[M, 2]`.

    Returns:
        The mixes `[M, C, H, W]`, and where the second image shows, bool `[M, H, W]`.
    """
    box = torch.stack([target, target + side], dim=2).flatten(1)
    inside = box_mask(box, *images.shape[2:])
    shifted = shift_images(images, perm[:, 1], source - target)
    # Weights of 0 and 1 are exact; in-place interpolation keeps the images' memory format.
    return images[perm[:, 0]].lerp_(shifted, inside[:, None].to(images.dtype)), inside


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
        width = self.network_with(model, "blocks").blocks().embed_dim
        self.token_head = nn.Linear(width, self.num_classes)
        nn.init.trunc_normal_(self.token_head.weight, std=0.02)
        nn.init.zeros_(self.token_head.bias)

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> SMMixParams:
        """Draw partners, the kind of step, Mixup's weights and the sides of the squares."""
        return draw_smmix(shape[0], self.patch_grid(shape), self.settings, generator)

    def extract_features(
        self,
        images: Tensor,
        targets: Tensor,
        student: Classifier,
        teacher: Any,
        params: SMMixParams,
    ) -> FeatureDict:
        """Return attention `[B, P]` and logits `[B, K]` of clean images; nothing at Mixup steps."""
        if params.plain:
            return {}
        output = eval_with_attention(student, images, queries="patches")
        logits = student.logits(output.pooled).detach()
        return {"attention": output.attention, "logits": logits}

    def mix(
        self, images: Tensor, targets: Tensor, params: SMMixParams, **features: Tensor
    ) -> Mixed:
        """Paste the partner's most attended square over the image's least attended; or Mixup."""
        if params.plain:
            return mix_by_lam(images, targets, params.perm, params.lam)
        perm, maps = params.perm, features["attention"].unflatten(1, self.patch_grid(images.shape))
        target = find_squares(maps[perm[:, 0]], params.side, largest=False)
        source = find_squares(maps[perm[:, 1]], params.side, largest=True)
        side = params.side[:, None].expand(-1, 2)
        pixels = [in_pixels(positions, self.patch) for positions in (target, source, side)]
        mixes, inside = paste_squares(images, perm, *pixels)
        masks = torch.stack([~inside, inside], dim=1).float()
        lam = masks.mean(dim=(2, 3))
        return Mixed(mixes, weighted_sum(targets, perm, lam[:, :, None]), lam, perm, masks)

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Any, params: SMMixParams
    ) -> dict[str, Tensor]:
        """Compute the loss of the mix, of each source's patches, and of the consistency."""
        if params.plain:
            return super().compute_loss(sources, student, teacher, params)
        mixed = self.mix(sources.images, sources.targets, params, **sources.features)
        # One forward pass with gradient serves all three losses.
        blocks = student.blocks()
        pooled, patches = blocks.forward_from(blocks.forward_to(mixed.images, 1), 1)
        logits = student.logits(pooled)
        # Trains the network and the token head.
        fine = self.fine_loss(mixed, patches, sources.targets)
        # Trains the network towards the mix of its own clean logits, which are constants.
        consistency = divergence(logits, mixed, sources.features["logits"])
        weighted = self.settings.fine_weight * fine + self.settings.consistency_weight * consistency
        return {
            "loss": self.cross_entropy(logits, mixed.targets) + weighted,
            "mixture_accuracy": mixture_accuracy(logits, mixed.targets),
            "fine": fine.detach(),
            "consistency": consistency.detach(),
        }

    def fine_loss(self, mixed: Mixed, patches: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean cross-entropy of each source's patches against its own label.

        Args:
            mixed: M mixes.
            patches: normalized last features of their patches, `[M, P, D]`.
            targets: soft labels of the sources, `[B, K]`.
        """
        masks = mixed.masks
        assert masks is not None
        visible = pixels_to_patches(masks.flatten(0, 1), self.patch).unflatten(0, mixed.perm.shape)
        weights = visible / visible.sum(dim=2, keepdim=True).clamp_min(1)
        logits = self.token_head(weights.to(patches.dtype) @ patches)
        return self.cross_entropy(logits.flatten(0, 1), targets[mixed.perm].flatten(0, 1))


def divergence(logits: Tensor, mixed: Mixed, clean: Tensor) -> Tensor:
    """KL divergence from the mix of the sources' clean logits, averaged over the mixes.

    Args:
        logits: logits of the mixes, `[M, K]`.
        mixed: the mixes.
        clean: logits of the clean images, `[B, K]`.
    """
    expected = weighted_sum(clean.float(), mixed.perm, mixed.lam[:, :, None]).softmax(dim=1)
    return F.kl_div(logits.float().log_softmax(dim=1), expected, reduction="batchmean")
