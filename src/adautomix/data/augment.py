"""Batched crop, flip and normalization on the device.

Drawing random parameters and applying them are separate: a draw is a small object of CPU tensors,
and applying it is a pure function of the images and the draw. Images are square, `[B, C, S, S]`.
"""

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from adautomix.data.preparation import Interpolation
from adautomix.decoder.views import RATIO
from adautomix.device import to_device
from adautomix.errors import UsageError

_TRIES = 10  # boxes drawn per image before the fallback box, as in torchvision


@dataclass(frozen=True)
class _Params:
    flip: Tensor
    """bool `[B]`: whether to mirror the image left to right."""

    def to(self, device: torch.device) -> Self:
        """Return the draw on `device`."""
        moved = {field.name: to_device(getattr(self, field.name), device) for field in fields(self)}
        return type(self)(**moved)

    def rows(self, some: slice) -> Self:
        """Return the draw of a slice of the batch."""
        return type(self)(**{field.name: getattr(self, field.name)[some] for field in fields(self)})


@dataclass(frozen=True)
class FlipParams(_Params):
    """Flips only, for images that were already cropped during decoding."""


@dataclass(frozen=True)
class CropParams(_Params):
    """Offset of each image's crop in its padded image."""

    top: Tensor
    """int64 `[B]`, from 0 to 2 · pad pixels."""
    left: Tensor
    """int64 `[B]`, from 0 to 2 · pad pixels."""


@dataclass(frozen=True)
class BoxParams(_Params):
    """Candidate crop boxes per picture, relative to its size; the first one that fits is used."""

    area: Tensor
    """float32 `[B, 10]`: area as a fraction of the picture."""
    ratio: Tensor
    """float32 `[B, 10]`: width divided by height."""
    top: Tensor
    """float32 `[B]` in [0, 1): vertical position, as a fraction of the possible offsets."""
    left: Tensor
    """float32 `[B]` in [0, 1): horizontal position, as a fraction of the possible offsets."""

    def views(self) -> list[tuple[Any, ...]]:
        """Return the view of each picture, see `adautomix.decoder.views`."""
        values = (self.area, self.ratio, self.top, self.left)
        return [("box", *view) for view in zip(*(v.tolist() for v in values), strict=True)]

    def in_squares(self, ratio: tuple[float, float]) -> "ResizedCropParams":
        """Choose the first box per image that fits a square, or else the largest centered box.

        Args:
            ratio: smallest and largest aspect ratio that a box may have.
        """
        width, height = (self.area * self.ratio).sqrt(), (self.area / self.ratio).sqrt()
        fits = (width <= 1) & (height <= 1)
        first = fits.int().argmax(1, keepdim=True)
        found = fits.any(1)
        widest = min(max(1.0, ratio[0]), ratio[1])  # the allowed shape nearest to a square
        return ResizedCropParams(
            flip=self.flip,
            height=torch.where(found, height.gather(1, first)[:, 0], min(1.0, 1 / widest)),
            width=torch.where(found, width.gather(1, first)[:, 0], min(1.0, widest)),
            top=torch.where(found, self.top, 0.5),
            left=torch.where(found, self.left, 0.5),
        )


@dataclass(frozen=True)
class ResizedCropParams(_Params):
    """The crop box of each image, relative to the image's side."""

    height: Tensor
    """float32 `[B]` in (0, 1]."""
    width: Tensor
    """float32 `[B]` in (0, 1]."""
    top: Tensor
    """float32 `[B]` in [0, 1): vertical position, as a fraction of the possible offsets."""
    left: Tensor
    """float32 `[B]` in [0, 1): horizontal position, as a fraction of the possible offsets."""

    def boxes(self, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return top, left, height and width in pixels, int64 `[B]` each, for images of `side`."""
        height = (self.height * side).round().long().clamp(1, side)
        width = (self.width * side).round().long().clamp(1, side)
        top = (self.top * (side - height + 1)).long().minimum(side - height)
        left = (self.left * (side - width + 1)).long().minimum(side - width)
        return top, left, height, width


def _draw_flip(batch: int, flip: bool, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, generator=generator) < (0.5 if flip else 0.0)


def draw_crop(batch: int, pad: int, flip: bool, generator: torch.Generator) -> CropParams:
    """Draw uniform crop offsets for images padded by `pad` pixels.

    Args:
        batch: number of images B.
        pad: padding on each side, in pixels.
        flip: mirror each image with probability 1/2.
        generator: source of the random numbers.
    """
    top, left = torch.randint(2 * pad + 1, (2, batch), generator=generator)
    return CropParams(flip=_draw_flip(batch, flip, generator), top=top, left=left)


def apply_crop(images: Tensor, draw: CropParams, pad: int) -> Tensor:
    """Pad images `[B, C, S, S]` by reflection, crop them back to S × S and flip them.

    The padded image is never materialized: each output pixel is gathered from its source pixel.

    Returns:
        Images of the same dtype and shape, in channels-last memory format.

    Raises:
        UsageError: `pad` is not smaller than S.
    """
    batch, channels, side, _ = images.shape
    if pad >= side:
        raise UsageError(f"pad {pad} does not fit images of {side} pixels: use at most {side - 1}")
    offset = torch.arange(side, device=images.device) - pad
    rows = _reflect(draw.top[:, None] + offset, side)
    columns = _reflect(draw.left[:, None] + offset, side)
    columns = torch.where(draw.flip[:, None], columns.flip(1), columns)
    sample = torch.arange(batch, device=images.device)[:, None, None]
    source = (sample * side + rows[:, :, None]) * side + columns[:, None, :]
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    cropped = pixels.index_select(0, source.flatten()).view(batch, side, side, channels)
    return cropped.permute(0, 3, 1, 2)


def _reflect(position: Tensor, side: int) -> Tensor:
    """Mirror positions outside [0, side) at the edge pixel, which is not repeated."""
    return (side - 1) - ((side - 1) - position.abs()).abs()


def draw_boxes(
    batch: int,
    flip: bool,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = RATIO,
) -> BoxParams:
    """Draw ten candidate boxes per picture, as torchvision's RandomResizedCrop does.

    Area, log aspect ratio and position are uniform.

    Args:
        batch: number of pictures B.
        flip: mirror each image with probability 1/2.
        generator: source of the random numbers.
        scale: smallest and largest area, as fractions of the picture.
        ratio: smallest and largest aspect ratio (width divided by height).
    """
    area = torch.empty(batch, _TRIES).uniform_(*scale, generator=generator)
    bounds = torch.tensor(ratio).log().tolist()
    shape = torch.empty(batch, _TRIES).uniform_(*bounds, generator=generator).exp()
    top, left = torch.rand(2, batch, generator=generator)
    return BoxParams(_draw_flip(batch, flip, generator), area, shape, top, left)


def draw_resized_crop(
    batch: int,
    flip: bool,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = RATIO,
) -> ResizedCropParams:
    """Draw one crop box per square image; see `draw_boxes` for the arguments.

    The first of ten candidates that fits the image is used; if none fits, the largest centered
    box.
    """
    return draw_boxes(batch, flip, generator, scale, ratio).in_squares(ratio)


def apply_flip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror images `[B, C, H, W]` left to right where `flip`, bool `[B]`, is true."""
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def apply_resized_crop(
    images: Tensor, draw: ResizedCropParams, size: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Resize each image's box to `size` × `size` with antialiasing, then flip.

    Resampling is separable and linear, so a batch with a different box per image takes two batched
    matrix products.

    Returns:
        float32 `[B, C, size, size]` in [0, 255].
    """
    side = images.shape[-1]
    top, left, height, width = draw.boxes(side)
    down = _resampling(top, height, side, size, interpolation)
    across = _resampling(left, width, side, size, interpolation)
    across = torch.where(draw.flip[:, None, None], across.flip(1), across)
    cropped = down[:, None] @ images.float() @ across.transpose(1, 2)[:, None]
    return cropped.clamp(0, 255) if interpolation == "bicubic" else cropped


def _resampling(
    start: Tensor, length: Tensor, side: int, size: int, interpolation: Interpolation
) -> Tensor:
    """Return weights `[B, size, side]` that resample [start, start + length) to `size` pixels."""
    start, length = start[:, None, None].float(), length[:, None, None].float()
    scale = length / size
    source = torch.arange(side, device=start.device) + 0.5
    target = torch.arange(size, device=start.device)[:, None] + 0.5
    distance = (source - (start + target * scale)).abs() / scale.clamp(min=1)
    inside = (source > start) & (source < start + length)
    kernel = _cubic(distance) if interpolation == "bicubic" else (1 - distance).clamp(min=0)
    weights = kernel * inside
    return weights / weights.sum(2, keepdim=True)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2, as Pillow and PyTorch use for antialiasing."""
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def center_crop(images: Tensor, size: int) -> Tensor:
    """Crop `[B, C, S, S]` to the center `size` × `size`; smaller images are returned unchanged."""
    start = max(0, (images.shape[-1] - size) // 2)
    return images[..., start : start + size, start : start + size]


def resize(images: Tensor, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Resize to `size` × `size` with antialiasing, as float32 in [0, 255].

    Images that already have this size are returned unchanged, in their own dtype.
    """
    if images.shape[-1] == size:
        return images
    resized = F.interpolate(images.float(), (size, size), mode=interpolation, antialias=True)
    return resized.clamp(0, 255) if interpolation == "bicubic" else resized


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalize pixels `[B, C, H, W]` in [0, 255] to mean 0 and standard deviation 1.

    Args:
        images: pixels in [0, 255].
        mean: one value per channel, of pixels scaled to [0, 1].
        std: one value per channel, of pixels scaled to [0, 1].

    Returns:
        float32 `[B, C, H, W]` in channels-last memory format.
    """
    scale, shift = _affine(mean, std, images.device)
    return (images * scale + shift).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=16)  # a copy to the device at every step would cost more than the arithmetic
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # cached tensors may be used with images that need gradients
        deviation = torch.tensor(std, dtype=torch.float64)[:, None, None]
        scale = 1 / (255 * deviation)
        shift = -torch.tensor(mean, dtype=torch.float64)[:, None, None] / deviation
        return scale.float().to(device), shift.float().to(device)
