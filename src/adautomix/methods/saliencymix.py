"""SaliencyMix: CutMix whose box is centered on the most salient pixel of its image.

Paper: Uddin, Monira, Shin, Chung, Bae, "SaliencyMix: A Saliency Guided Data Augmentation Strategy
for Better Regularization", ICLR 2021, arXiv 2006.01791.
Computes: λ₀ ~ Beta(a, a) for the batch, and a box with sides ⌊H√(1-λ₀)⌋ and ⌊W√(1-λ₀)⌋ around the
peak of the saliency map `[H, W]` of x[π], with half-widths rounded down, clipped to the image.
Inside the box the mix `[B, C, H, W]` shows x[π], outside it shows x, at the same place in both;
ỹ = λ y + (1 - λ) y[π] `[B, K]` with λ = 1 - area / HW after clipping.
Requires: only images and labels; the maps are computed from the pixels on the device.
Cost: 3F per step, as plain training, and a few box means.
Settings:
- alpha: 1 in the authors' commands. The openmixup benchmark uses 0.2 on CIFAR-100.
- prob: 1 in the authors' ImageNet command and in openmixup. Their CIFAR commands use 0.5.
  `mix.prob` does the same for every method.
- detector: `fine_grained` is the map of OpenCV that the paper chose. `spectral_residual` (Hou and
  Zhang, 2007) is cheaper and noisier: no two implementations agree on the peak of most images.
- saliency: `paper`: each image has the peak of its own map, computed from its pixels. `released`:
  what the authors' code computes, see below.
- per_sample: off, as in the authors' code.
Deviations:
- The authors' code differs from the paper in two ways, which `saliency: released` reproduces. It
  passes OpenCV the normalized float image, whose bytes OpenCV then reads as if they were 8-bit
  pixels, so that the peak is an almost random place: on 300 test images of CIFAR-100 such a map
  has a correlation of 0.0075 with that of the 8-bit image. And it uses the peak of the first
  partner for the whole batch. openmixup does the same.
- `saliency: paper` computes OpenCV's map from normalized pixels without rounding to bytes. On 500
  images of CIFAR-100 its correlation with OpenCV's map of the 8-bit image is 0.9998 (median;
  smallest 0.996); the peak is the same pixel in 71 % and within two pixels in 96 % of them.
Evidence: 79.75 / 79.64 / 79.12 % top-1 accuracy with ResNet-18 on CIFAR-100 after 200 / 400 / 800
epochs, with a = 0.2 and the released saliency (openmixup benchmark; median of the last 10 epochs).
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
    fine_grained_of_bytes,
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
    saliency: Literal["paper", "released"] = Field(
        "paper",
        description="peak of each image's map as in the paper, or the almost random place, the "
        "same for all images, of the authors' code",
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
        box = boxes_around(self.centers(images, params), params.lam[:, 1], height, width)
        return paste(images, targets, params.perm, outside_mask(box, height, width))

    def centers(self, images: Tensor, params: SaliencyMixParams) -> Tensor:
        """Return the row and column that each box is centered on, int64 `[M, 2]`."""
        partners = params.perm[:, 1]
        if self.settings.saliency == "released":
            first = fine_grained_of_bytes(images[partners[:1]])
            return peak_positions(first).expand(len(partners), -1)
        return peak_positions(DETECTORS[self.settings.detector](images[partners]))
