"""ResizeMix: the whole of one image is shrunk and pasted into another; labels follow the area.

Paper: Qin, Fang, Zhang, Liu, Wang, Wang, "ResizeMix: Mixing Data with Preserved Object Information
and True Labels", Computational Visual Media 2023, arXiv 2012.11101.
Computes: τ ~ U(0.1, 0.8) for the batch. The partner x[π] is resized to ⌊τH⌋ × ⌊τW⌋ pixels by
nearest-neighbor interpolation and pasted around a pixel drawn for each image, moved inwards where
it would reach beyond the border. The result is mixes `[B, C, H, W]` and labels
ỹ = λ y + (1 - λ) y[π] `[B, K]`, λ = 1 - area / HW.
Requires: only images and labels.
Cost: 3F per step, as plain training.
Settings:
- scale_min: 0.1, as in the paper.
- scale_max: 0.8, as in the paper.
- per_sample: off: one τ per batch but a place per mix, as in the authors' code.
Deviations:
- A patch has at least one pixel per side.
- The authors' call of the resampling function skips up to one pixel at the far border where τH is
  not an integer. Here the patch always spans the whole image.
- openmixup clips the box at the border and squeezes the image into what is left, which is not
  followed. It draws τ from Beta(1, 1) and again from U(0.1, 0.8) where that is out of range, which
  is this uniform distribution.
Evidence: 79.56 / 79.19 / 80.01 % top-1 accuracy with ResNet-18 on CIFAR-100 after 200 / 400 / 800
epochs (openmixup benchmark; median of the last 10 epochs).
"""

from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods.base import InputMixing, MethodSettings
from adautomix.methods.facts import Paper
from adautomix.mixing.boxes import box_mask
from adautomix.mixing.ops import Mixed, weighted_sum
from adautomix.mixing.params import MixParams, Shape, draw_partners


@dataclass(frozen=True)
class ResizeMixParams(MixParams):
    """Parameters of ResizeMix.

    Attributes:
        perm: rows of the image and its partner, int64 `[B, 2]`.
        box: box (top, bottom, left, right; ends exclusive) that is filled, int64 `[B, 4]`.
    """

    perm: Tensor
    box: Tensor


class ResizeMixSettings(MethodSettings):
    """Settings of ResizeMix."""

    scale_min: float = Field(
        0.1, gt=0, le=1, description="smallest side of the patch, as a fraction of the image's"
    )
    scale_max: float = Field(
        0.8, gt=0, le=1, description="largest side; τ ~ U(scale_min, scale_max)"
    )
    per_sample: bool = Field(False, description="draw one τ per mix instead of one per batch")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale_min > self.scale_max:
            raise UsageError(
                f"resizemix.scale_min = {self.scale_min} is above scale_max = {self.scale_max}: "
                "swap them"
            )
        return self


def draw_interval(scale: Tensor, count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Draw intervals inside `size` pixels.

    Args:
        scale: length as a fraction of `size`, `[count]` or `[1]`.
        count: number of intervals.
        size: height or width of the image.
        generator: a CPU generator.

    Returns:
        First pixels and exclusive ends, both int64 `[count]`.
    """
    side = (scale.double() * size).long().clamp_min(1)
    center = torch.randint(size, (count,), generator=generator)
    begin = (center - side // 2).clamp_min(0).minimum(size - side)
    return [begin, begin + side]


def draw_resizemix(
    batch: int, height: int, width: int, s: ResizeMixSettings, generator: torch.Generator
) -> ResizeMixParams:
    """Draw a partner for each image and the box that the partner fills."""
    perm = draw_partners(batch, generator)
    u = torch.rand(batch if s.per_sample else 1, generator=generator)
    scale = s.scale_min + (s.scale_max - s.scale_min) * u
    edges = [
        edge for size in (height, width) for edge in draw_interval(scale, batch, size, generator)
    ]
    return ResizeMixParams(perm, torch.stack(edges, dim=1))


def nearest_source(begin: Tensor, end: Tensor, size: int) -> Tensor:
    """Return the pixel of the whole image that each pixel of an interval shows.

    Follows PyTorch's nearest-neighbor interpolation. Values outside the interval are arbitrary.

    Args:
        begin: first pixel of the interval, `[M]`.
        end: exclusive end, `[M]`.
        size: height or width of the image.

    Returns:
        Int64 `[M, size]`.
    """
    pixel = torch.arange(size, device=begin.device) - begin[:, None]
    step = torch.full_like(begin, size, dtype=torch.float32) / (end - begin).clamp_min(1)
    return (pixel * step[:, None]).floor().long().clamp(0, size - 1)


def resize_into(images: Tensor, rows: Tensor, box: Tensor) -> Tensor:
    """Resize whole images into boxes.

    Args:
        images: `[B, C, H, W]`.
        rows: which image fills each box, int64 `[M]`.
        box: `[M, 4]`.

    Returns:
        `[M, C, H, W]`; values outside the boxes are arbitrary.
    """
    top, bottom, left, right = box.unbind(dim=1)
    y = nearest_source(top, bottom, images.shape[2])
    x = nearest_source(left, right, images.shape[3])
    pixels = images.permute(0, 2, 3, 1)[rows[:, None, None], y[:, :, None], x[:, None, :]]
    return pixels.permute(0, 3, 1, 2)


class ResizeMix(InputMixing[ResizeMixSettings, ResizeMixParams]):
    """ResizeMix (Qin et al., 2020)."""

    name = "resizemix"
    summary = "a whole image, shrunk and pasted into another"
    paper = Paper(
        authors="Qin, Fang, Zhang, Liu, Wang, Wang",
        title="ResizeMix: Mixing Data with Preserved Object Information and True Labels",
        venue="Computational Visual Media",
        year=2023,
        arxiv="2012.11101",
    )
    Settings = ResizeMixSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> ResizeMixParams:
        """Draw a partner for each image and the box that the partner fills."""
        batch, _, height, width = shape
        return draw_resizemix(batch, height, width, self.settings, generator)

    def mix(
        self, images: Tensor, targets: Tensor, params: ResizeMixParams, **features: Tensor
    ) -> Mixed:
        """Return the shrunk partner inside the box and the image outside."""
        perm, box = params.perm, params.box
        inside = box_mask(box, images.shape[2], images.shape[3])
        masks = torch.stack([~inside, inside], dim=1).float()
        lam = masks.mean(dim=(2, 3))
        base, small = images[perm[:, 0]], resize_into(images, perm[:, 1], box)
        # Weights of 0 and 1 are exact; in-place interpolation keeps the images' memory format.
        pasted = base.lerp_(small, masks[:, 1:].to(images.dtype))
        return Mixed(pasted, weighted_sum(targets, perm, lam[:, :, None]), lam, perm, masks)
