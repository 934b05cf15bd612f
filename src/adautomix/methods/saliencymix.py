"""SaliencyMix: CutMix whose box is taken from the most salient place of its image.

Paper: Uddin et al., "SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better
Regularization", ICLR 2021, arXiv 2006.01791.
Computes: λ₀ ~ Beta(a, a); the peak of the saliency map of x[π]; a box with sides ⌊H√(1-λ₀)⌋ and
⌊W√(1-λ₀)⌋ around that peak, half-widths floored, clipped to the image; inside it x[π], outside x,
at the same place in both; λ = 1 - area / HW after clipping, so the label is the share of pixels.
Requires: nothing, the maps are made from the pixels on the device. Cost: 3F per step and box means.
Defaults: a = 1 and every batch is mixed, as on ImageNet; the paper mixes half of the batches of
CIFAR (`prob` 0.5). The published CIFAR-100 rows use a = 0.2.
Deviations:
- Each image has its own peak, as the paper has it; the authors' code takes the peak of one image
  of the batch for all.
- The map is OpenCV's fine-grained saliency, which the paper chose, without its roundings to bytes
  and from normalized pixels. On 500 images of CIFAR-100 the maps correlate with OpenCV's of the
  unnormalized bytes by 0.9998 (median; least 0.996); the peak is the same pixel in 71 % and within
  two pixels in 96 % of them.
- `detector: spectral_residual` is the cheaper map of Hou and Zhang, from images shrunk to 64
  pixels; it is noisier: no two implementations agree on the peak of most images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from adautomix.methods.base import InputMixing, MethodSettings
from adautomix.methods.facts import Paper
from adautomix.mixing.boxes import boxes_around, outside_mask, paste
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import PairParams, Shape, draw_lam, draw_partners
from adautomix.mixing.saliency import (
    fine_grained,
    gaussian_blur,
    peak_positions,
    resize,
    spectral_residual,
)


@dataclass(frozen=True)
class SaliencyMixParams(PairParams):
    """Parameters of SaliencyMix; the box covers a fraction `lam[:, 1]` before it is clipped."""


class SaliencyMixSettings(MethodSettings):
    """Settings of SaliencyMix."""

    alpha: float = Field(1.0, gt=0, description="λ₀ ~ Beta(alpha, alpha)")
    prob: float = Field(1.0, ge=0, le=1, description="probability that a batch is mixed")
    per_sample: bool = Field(
        False, description="draw one box size per mix instead of one per batch"
    )
    detector: Literal["fine_grained", "spectral_residual"] = Field(
        "fine_grained", description="saliency map whose peak the box is centered on"
    )


def draw_saliencymix(
    batch: int, alpha: float, prob: float, generator: torch.Generator, *, per_sample: bool = False
) -> SaliencyMixParams:
    """Draw a partner for each image and the size of the box, which is 0 if nothing is mixed."""
    perm = draw_partners(batch, generator)
    lam = draw_lam(batch, alpha, generator, per_sample=per_sample)
    mixed = torch.rand((), generator=generator) < prob
    return SaliencyMixParams(perm, torch.where(mixed, lam, torch.tensor([1.0, 0.0])))


def spectral_map(images: Tensor) -> Tensor:
    """Compute the smoothed spectral residual of images at their size, `[B, H, W]`."""
    small = gaussian_blur(spectral_residual(images, size=64), kernel_size=5, sigma=8.0)
    return small if small.shape[1:] == images.shape[2:] else resize(small, *images.shape[2:])


DETECTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "fine_grained": fine_grained,
    "spectral_residual": spectral_map,
}


class SaliencyMix(InputMixing[SaliencyMixSettings, SaliencyMixParams]):
    """SaliencyMix (Uddin et al., ICLR 2021)."""

    name = "saliencymix"
    summary = "CutMix with the box around the most salient pixel of its image"
    paper = Paper(
        authors="Uddin, Monira, Shin, Chung, Bae",
        title="SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better Regularization",
        venue="ICLR",
        year=2021,
        arxiv="2006.01791",
    )
    Settings = SaliencyMixSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> SaliencyMixParams:
        """Draw a partner for each image and the size of the box."""
        s = self.settings
        return draw_saliencymix(shape[0], s.alpha, s.prob, generator, per_sample=s.per_sample)

    def mix(
        self, images: Tensor, targets: Tensor, params: SaliencyMixParams, **features: Tensor
    ) -> Mixed:
        """Return the partner inside the box around its peak and the image outside."""
        height, width = images.shape[2:]
        center = peak_positions(DETECTORS[self.settings.detector](images[params.perm[:, 1]]))
        box = boxes_around(center, params.lam[:, 1], height, width)
        return paste(images, targets, params.perm, outside_mask(box, height, width))
