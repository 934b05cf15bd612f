"""GuidedMixup: every pixel is mixed from two images by their saliency; partners differ in saliency.

Paper: Kang, Kim, "GuidedMixup: An Efficient Mixup Strategy Guided by Saliency Maps", AAAI 2023,
arXiv 2306.16612.
Computes: a saliency map s_i `[H, W]` of each image, blurred (7 × 7, σ = 3), with sum 1; partners π
along one cycle through the batch with a large Σ_i ‖s_i - s_π(i)‖₂; then

    M = s_i / (s_i + s_π(i))             [B, H, W]
    x̃ = M ⊙ x + (1 - M) ⊙ x[π]           [B, C, H, W]
    ỹ = λ y + (1 - λ) y[π],  λ = mean(M) [B, K]

The saliency is the spectral residual of the gray image (`spectral_residual`, the paper's SR,
blurred twice as in the authors' code), or the norm of dCE/dx (`gradient`, the paper's AP).
Requires: only images and labels with SR; the gradient of the loss with respect to the images with
AP.
Cost: 3F per step with SR; 5F with gradients on the batches that are mixed.
Settings:
- saliency: `spectral_residual` (SR) is the paper's variant that needs no gradient.
- pairing: `distant`, as in the paper.
- rounds: 16 is a choice of this implementation.
- prob: none: 0.5 with SR and 0.8 with gradients, as in the authors' commands (`--mix_prob`).
Deviations:
- The paper builds its cycle greedily, from each image to the farthest that is left, in B
  sequential steps. Here the batch is the first cycle, and in each of `rounds` rounds every second
  image of it may change places with another of these, where both gain most by each other: a few
  batched operations whatever B is. The sum of distances never decreases. Measured on spectral
  residuals of CIFAR-100 in batches of 15 to 512, it is 0.98 to 1.04 times that of the greedy cycle
  (mean above 1 up to 256); without exchanges it is 0.82 to 0.90. On blurred noise it is 0.98 to
  1.01.
- The gradient pass keeps batch norm in the student's mode and has no dropout, gives no gradient to
  any weight, and the clean loss is not trained on (`clean_lam` 0 in the authors' code).
- The loss is cross-entropy. The authors train with the binary cross-entropy of the softmax.
Evidence: none published for ResNet-18 on CIFAR-100 in the openmixup benchmark.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from adautomix.methods.base import FeatureDict, Method, MethodSettings
from adautomix.methods.facts import Paper
from adautomix.mixing.ops import Mixed, mix_by_masks
from adautomix.mixing.params import MixParams, Shape, draw_partners
from adautomix.mixing.saliency import (
    gaussian_blur,
    gradient_saliency,
    normalize_sum,
    resize,
    spectral_residual,
)

BLUR, SIGMA = 7, 3.0
LARGEST = 128  # pixels per side above which images are resized for the spectral residual
PROB = {"spectral_residual": 0.5, "gradient": 0.8}


@dataclass(frozen=True)
class GuidedMixupParams(MixParams):
    """Parameters of GuidedMixup.

    Attributes:
        perm: rows of the image and a random partner, int64 `[B, 2]`; with pairing `distant` the
            partner is replaced.
        mixed: whether this batch is mixed at all.
    """

    perm: Tensor
    mixed: bool


class GuidedMixupSettings(MethodSettings):
    """Settings of GuidedMixup."""

    saliency: Literal["spectral_residual", "gradient"] = Field(
        "spectral_residual", description="saliency: from pixels alone, or norm of dCE/dx"
    )
    pairing: Literal["distant", "random"] = Field(
        "distant", description="partners: with different saliency, or random"
    )
    rounds: int = Field(
        16, ge=0, description="rounds of exchanges; more rounds give more distant partners"
    )
    prob: float | None = Field(
        None,
        ge=0,
        le=1,
        description="probability that a batch is mixed; none: 0.5, with gradients 0.8",
    )


def spectral_saliency(images: Tensor) -> Tensor:
    """Compute the spectral residual, blurred once, at the size of the images: `[B, H, W]`."""
    maps = gaussian_blur(spectral_residual(images, LARGEST), BLUR, SIGMA)
    return maps if maps.shape[1:] == images.shape[2:] else resize(maps, *images.shape[2:])


def distant_partners(maps: Tensor, rounds: int) -> Tensor:
    """Pair images along one cycle through the batch, so that the total distance is large.

    Args:
        maps: saliency, `[B, H, W]`.
        rounds: number of rounds of exchanges; 0 pairs each image with the next one.

    Returns:
        Partner of each image, int64 `[B]`.
    """
    flat = maps.flatten(1)
    distance = torch.cdist(flat, flat)
    cycle = torch.arange(len(maps), device=maps.device)
    for _ in range(rounds if len(maps) > 3 else 0):  # all cycles of three images are the same
        cycle = exchange_images(cycle.roll(-1), distance)
    return torch.empty_like(cycle).scatter(0, cycle, cycle.roll(-1))


def exchange_images(cycle: Tensor, distance: Tensor) -> Tensor:
    """Let every second image of a cycle change places with another one where that gains most.

    Their neighbors stay, so the gain of a pair does not depend on what others do, and all pairs
    that prefer each other can change places at once.

    Args:
        cycle: the images in order, int64 `[B]`.
        distance: distances between all images, `[B, B]`.

    Returns:
        The new cycle, int64 `[B]`.
    """
    count = len(cycle) // 2
    movers, right = cycle[: 2 * count].view(count, 2).unbind(dim=1)
    left = cycle.roll(1)[: 2 * count : 2]
    rows = distance.index_select(0, movers)
    value = rows.index_select(1, left) + rows.index_select(1, right)  # of mover m at position p
    gain = value - value.diagonal()
    choice = (gain + gain.T).argmax(dim=1)
    mutual = choice[choice] == torch.arange(count, device=cycle.device)
    moved = torch.where(mutual, movers[choice], movers)
    return torch.cat([torch.stack([moved, right], dim=1).flatten(), cycle[2 * count :]])


def guided_masks(first: Tensor, second: Tensor) -> Tensor:
    """Divide each pixel between two maps `[M, H, W]` in proportion; 1/2 each where both are 0.

    Returns:
        `[M, 2, H, W]`.
    """
    pair = torch.stack([first, second], dim=1)
    total = pair.sum(dim=1, keepdim=True)
    return torch.where(total > 0, pair / total, 0.5)


class GuidedMixup(Method[GuidedMixupSettings, GuidedMixupParams]):
    """GuidedMixup (Kang and Kim, AAAI 2023)."""

    name = "guidedmixup"
    summary = "each pixel mixed from both images by their saliency"
    paper = Paper(
        authors="Kang, Kim",
        title="GuidedMixup: An Efficient Mixup Strategy Guided by Saliency Maps",
        venue="AAAI",
        year=2023,
        arxiv="2306.16612",
    )
    Settings = GuidedMixupSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> GuidedMixupParams:
        """Draw a partner for each image, and whether this batch is mixed."""
        s = self.settings
        perm = draw_partners(shape[0], generator)
        prob = PROB[s.saliency] if s.prob is None else s.prob
        return GuidedMixupParams(perm, bool(torch.rand((), generator=generator) < prob))

    def extract_features(
        self, images: Tensor, targets: Tensor, student: Any, teacher: Any, params: GuidedMixupParams
    ) -> FeatureDict:
        """Return the blurred saliency of each image, normalized to sum 1, `[B, H, W]`."""
        if not params.mixed:
            return {}
        if self.settings.saliency == "gradient":
            maps = gradient_saliency(student, images, targets)
        else:
            maps = spectral_saliency(images)
        return {"saliency": normalize_sum(gaussian_blur(maps, BLUR, SIGMA))}

    def mix(
        self, images: Tensor, targets: Tensor, params: GuidedMixupParams, **features: Tensor
    ) -> Mixed:
        """Mix each pixel by the saliency of both images; an unmixed batch stays as it is."""
        first, second = params.perm.unbind(dim=1)
        if not params.mixed:
            ones = torch.ones(len(first), device=images.device)
            lam = torch.stack([ones, 1 - ones], dim=1)
            return Mixed(images[first], targets[first], lam, torch.stack([first, first], dim=1))
        saliency = features["saliency"]
        if self.settings.pairing == "distant":
            second = distant_partners(saliency, self.settings.rounds)[first]
        perm = torch.stack([first, second], dim=1)
        masks = guided_masks(saliency[first], saliency[second])
        return mix_by_masks(images, targets, perm, masks.mean(dim=(2, 3)), masks)
