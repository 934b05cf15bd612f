"""Chains of random image operations, another one for each image, for a whole batch on any device.

The operations and their strengths are those of AugMix's released code, which applies them to single
8-bit images with Pillow: autocontrast, equalize, posterize, rotate, solarize, shear and translate.
Pixels are float32 from 0 to 255, `[M, C, H, W]`, and integers after each operation.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATIONS = (
    "autocontrast",
    "equalize",
    "posterize",
    "rotate",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y = (
    OPERATIONS.index(name)
    for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
)
# Strength at level 10.
MAX_POSTERIZE, MAX_DEGREES, MAX_SOLARIZE, MAX_SHEAR, MAX_SHIFT = 4, 30, 256, 0.3, 1 / 3


def apply_operation(pixels: Tensor, operation: Tensor, level: Tensor) -> Tensor:
    """Apply one operation to each image.

    Args:
        pixels: integers from 0 to 255, float32 `[M, C, H, W]`.
        operation: position in `OPERATIONS`, int64 `[M]`.
        level: strength, -10 to 10; the sign is the direction of the geometric ones, float32 `[M]`.

    Returns:
        Integers from 0 to 255, float32 `[M, C, H, W]`.
    """
    # Imported here because it takes seconds, which most methods need not wait for.
    from torchvision.transforms.v2 import functional as tvf

    strength = level.abs()
    moved = _move(pixels, operation, level)
    results = {
        "autocontrast": tvf.autocontrast_image(pixels.to(torch.uint8)),
        "equalize": tvf.equalize_image(pixels.to(torch.uint8)),
        "posterize": _posterize(pixels, strength),
        "solarize": _solarize(pixels, strength),
    }
    for name, result in results.items():
        chosen = (operation == OPERATIONS.index(name))[:, None, None, None]
        moved = torch.where(chosen, result.to(pixels.dtype), moved)
    return moved


def _posterize(pixels: Tensor, strength: Tensor) -> Tensor:
    """Keep the 4 highest bits of each pixel, or fewer the higher the strength."""
    bits = MAX_POSTERIZE - (strength * MAX_POSTERIZE / 10).floor()
    step = (8 - bits).exp2()[:, None, None, None]
    return (pixels / step).floor() * step


def _solarize(pixels: Tensor, strength: Tensor) -> Tensor:
    """Invert the pixels above a threshold, which is lower the higher the strength."""
    threshold = MAX_SOLARIZE - (strength * MAX_SOLARIZE / 10).floor()
    return torch.where(pixels < threshold[:, None, None, None], pixels, 255 - pixels)


def _move(pixels: Tensor, operation: Tensor, level: Tensor) -> Tensor:
    """Rotate, shear or translate each image with black corners; other operations change nothing."""
    height, width = pixels.shape[2:]
    theta = affine_maps(operation, level, height, width)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False).round()


def affine_maps(operation: Tensor, level: Tensor, height: int, width: int) -> Tensor:
    """Maps from the pixels of the result to those of the image, in coordinates from -1 to 1.

    Angles and distances are whole degrees and pixels. Shears leave the top left corner in place.

    Args:
        operation: position in `OPERATIONS`, int64 `[M]`.
        level: -10 to 10, float32 `[M]`.
        height: H.
        width: W.

    Returns:
        Float32 `[M, 2, 3]`.
    """
    zero = torch.zeros_like(level)

    def amount(which: int, largest: float, *, whole: bool = False) -> Tensor:
        value = level * largest / 10
        return torch.where(operation == which, value.trunc() if whole else value, zero)

    angle = amount(ROTATE, MAX_DEGREES, whole=True) * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    shear_x, shear_y = (amount(which, MAX_SHEAR) for which in (SHEAR_X, SHEAR_Y))
    right = amount(TRANSLATE_X, MAX_SHIFT * width, whole=True)
    down = amount(TRANSLATE_Y, MAX_SHIFT * height, whole=True)
    # A shear about the top left corner is one about the center and a shift.
    x = [cos, (shear_x - sin) * height / width, shear_x * height / width + 2 * right / width]
    y = [(shear_y + sin) * width / height, cos, shear_y * width / height + 2 * down / height]
    return torch.stack([torch.stack(x, dim=1), torch.stack(y, dim=1)], dim=1)


def apply_chain(pixels: Tensor, operations: Tensor, levels: Tensor, depth: Tensor) -> Tensor:
    """Apply the first `depth` operations of a chain to each image.

    Args:
        pixels: integers from 0 to 255, float32 `[M, C, H, W]`.
        operations: positions in `OPERATIONS`, int64 `[M, D]`.
        levels: -10 to 10, float32 `[M, D]`.
        depth: 1 to D, int64 `[M]`.

    Returns:
        Integers from 0 to 255, float32 `[M, C, H, W]`.
    """
    for number in range(operations.shape[1]):
        changed = apply_operation(pixels, operations[:, number], levels[:, number])
        pixels = torch.where((number < depth)[:, None, None, None], changed, pixels)
    return pixels
