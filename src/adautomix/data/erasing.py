"""Random erasing of normalized images, batched on the device.

Zhong et al., *Random Erasing Data Augmentation*, AAAI 2020, with the ranges and fills of timm,
which the Swin, DeiT and ConvNeXt recipes use (probability 0.25, "pixel").
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adautomix.device import exact, to_device

Fill = Literal["const", "rand", "pixel"]

AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)
_TRIES = 10


@dataclass(frozen=True)
class EraseParams:
    """The box erased in each image of a batch."""

    top: Tensor
    """int64 `[B]`, pixels."""
    left: Tensor
    """int64 `[B]`, pixels."""
    height: Tensor
    """int64 `[B]`, pixels; 0 where nothing is erased."""
    width: Tensor
    """int64 `[B]`, pixels; 0 where nothing is erased."""
    key: Tensor
    """int64 `[B]`: seed of the noise in each box."""

    def to(self, device: torch.device) -> "EraseParams":
        """Return the draw on `device`."""
        values = (self.top, self.left, self.height, self.width, self.key)
        return EraseParams(*(to_device(value, device) for value in values))

    def rows(self, some: slice) -> "EraseParams":
        """Return the draw of a slice of the batch."""
        values = (self.top, self.left, self.height, self.width, self.key)
        return EraseParams(*(value[some] for value in values))


def draw_erasing(
    batch: int, size: int, probability: float, generator: torch.Generator
) -> EraseParams:
    """Draw one box of random area, shape and position for each image to be erased.

    The first of ten candidates that fits the image is used; if none fits, nothing is erased.

    Args:
        batch: number of images B.
        size: side of the images in pixels.
        probability: probability that an image is erased.
        generator: CPU random number generator.
    """
    chosen = torch.rand(batch, generator=generator) < probability
    area = torch.empty(batch, _TRIES).uniform_(*AREA, generator=generator) * size**2
    bounds = math.log(ASPECT[0]), math.log(ASPECT[1])
    aspect = torch.empty(batch, _TRIES).uniform_(*bounds, generator=generator).exp()
    heights = (area * aspect).sqrt().round().long()
    widths = (area / aspect).sqrt().round().long()
    fits = (heights < size) & (widths < size)
    first = fits.int().argmax(1, keepdim=True)
    erased = chosen & fits.any(1)
    height = torch.where(erased, heights.gather(1, first)[:, 0], 0)
    width = torch.where(erased, widths.gather(1, first)[:, 0], 0)
    y, x = torch.rand(2, batch, generator=generator)
    key = torch.randint(2**31, (batch,), generator=generator)
    top = (y * (size - height + 1)).long().minimum(size - height)
    left = (x * (size - width + 1)).long().minimum(size - width)
    return EraseParams(top, left, height, width, key)


def erase(images: Tensor, params: EraseParams, fill: Fill) -> Tensor:
    """Fill the box of each normalized image `[B, C, S, S]`.

    Args:
        images: normalized images of a floating-point dtype.
        params: the boxes.
        fill: "const": zeros, the mean color; "rand": one normally distributed color per box;
            "pixel": one normally distributed value per pixel and channel.
    """
    row = torch.arange(images.shape[-2], device=images.device)
    column = torch.arange(images.shape[-1], device=images.device)
    rows = (row >= params.top[:, None]) & (row < (params.top + params.height)[:, None])
    columns = (column >= params.left[:, None]) & (column < (params.left + params.width)[:, None])
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]
    if fill == "const":
        return images.masked_fill(inside, 0.0)
    shape = images.shape[1:] if fill == "pixel" else (images.shape[1], 1, 1)
    return torch.where(inside, hashed_normal(params.key, shape).to(images.dtype), images)


def hashed_normal(key: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Return standard normal values `[B, *shape]`, float32, determined by one key per row.

    The values come from a hash of key and position instead of a generator. They are computed on
    the device and equal on all devices, and the host need not draw millions of numbers per step.

    Args:
        key: int64 `[B]` in [0, 2³¹).
        shape: shape of the values of one row.
    """
    position = torch.arange(math.prod(shape), device=key.device).view(shape)
    start = _mixed(key.view(-1, *(1 for _ in shape)) + 1)
    first = _mixed(start ^ _mixed(2 * position + 1))
    second = _mixed(first ^ _mixed(start + 2 * position + 2))
    # Box-Muller; the first uniform number is never 0.
    radius = (-2 * (exact(first + 1) / 2**32).log()).sqrt()
    angle = (2 * math.pi / 2**32) * exact(second)
    return (radius * angle.cos()).float()


def _mixed(value: Tensor) -> Tensor:
    """Return a 32-bit hash (the finalizer of MurmurHash3) as int64 in [0, 2³²)."""
    value = value & 0xFFFFFFFF
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return value ^ (value >> 16)
