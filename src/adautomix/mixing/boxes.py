"""Boxes: drawn around a center, converted to masks, and pasted.

A box is (top, bottom, left, right) in pixels, int64; bottom and right are exclusive.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adautomix.mixing.ops import Mixed, weighted_sum


def clipped_interval(center: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First pixel and exclusive end of intervals of `length` around `center`, clipped to `size`.

    Half lengths are rounded down, so an odd length loses a pixel.
    """
    half = length // 2
    return (center - half).clamp(0, size), (center + half).clamp(0, size)


def boxes_around(center: Tensor, area: Tensor, height: int, width: int) -> Tensor:
    """Return boxes around given pixels, clipped to the image.

    Args:
        center: row and column, int64 `[n, 2]`.
        area: fraction of the image that a box covers before clipping, `[n]`.
        height: H.
        width: W.

    Returns:
        Int64 `[n, 4]`.
    """
    side = area.sqrt()
    top, bottom = clipped_interval(center[:, 0], (height * side).long(), height)
    left, right = clipped_interval(center[:, 1], (width * side).long(), width)
    return torch.stack([top, bottom, left, right], dim=1)


def draw_box(lam: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw boxes around uniform pixels that cover a fraction `1 - lam` of the image, as CutMix.

    Args:
        lam: `[n]`, in [0, 1].
        height: H.
        width: W.
        generator: a CPU generator.

    Returns:
        Int64 `[n, 4]`, clipped to the image.
    """
    sides = (height, width)
    center = [torch.randint(size, lam.shape, generator=generator) for size in sides]
    return boxes_around(torch.stack(center, dim=1), 1 - lam, height, width)


def rows_and_columns(box: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows and columns that boxes `[B, 4]` cover, bool `[B, H]` and `[B, W]`."""
    top, bottom, left, right = box[:, :, None].unbind(dim=1)
    y = torch.arange(height, device=box.device)
    x = torch.arange(width, device=box.device)
    return (y >= top) & (y < bottom), (x >= left) & (x < right)


def box_mask(box: Tensor, height: int, width: int) -> Tensor:
    """Masks that are true inside the boxes `[B, 4]`, bool `[B, H, W]`."""
    rows, columns = rows_and_columns(box, height, width)
    return rows[:, :, None] & columns[:, None, :]


def outside_mask(box: Tensor, height: int, width: int) -> Tensor:
    """Masks that are 0 inside the boxes `[B, 4]` and 1 outside, float32 `[B, H, W]`.

    Float rather than bool because PyTorch vectorizes such products on the CPU.
    """
    rows, columns = rows_and_columns(box, height, width)
    return torch.maximum((~rows).float()[:, :, None], (~columns).float()[:, None, :])


@dataclass(frozen=True)
class BoxMasks:
    """Masks of mixes of two images, computed when they are read.

    Attributes:
        first: weight of the first image, `[B, 1, H, W]` or `[1, 1, H, W]` for all mixes.
        count: number of mixes.
    """

    first: Tensor
    count: int

    def float(self) -> Tensor:
        """Return the masks of both images, `[count, 2, H, W]`."""
        return torch.cat([self.first, 1 - self.first], dim=1).expand(self.count, -1, -1, -1)


def paste(images: Tensor, targets: Tensor, perm: Tensor, outside: Tensor) -> Mixed:
    """Paste the second image into the first; labels follow the area.

    Args:
        images: `[B, C, H, W]`.
        targets: soft labels, `[B, K]`.
        perm: rows of the first and the second image, int64 `[M, 2]`. If M = B, `perm[:, 0]` must
            be 0, 1, …, B - 1, as `draw_partners` returns it.
        outside: 1 or true where the first image remains, `[M, H, W]` or `[1, H, W]` for all.
    """
    first = outside[:, None].float()
    area, pixels = first.sum(dim=(2, 3)), first[0].numel()
    lam = (torch.cat([area, pixels - area], dim=1) / pixels).expand(len(perm), -1)
    base = images if len(perm) == len(images) else images[perm[:, 0]]
    # Weights of 0 and 1 are exact, and interpolating in place saves another copy of the batch.
    pasted = images[perm[:, 1]].lerp_(base, first.to(images.dtype))
    labels = weighted_sum(targets, perm, lam[:, :, None])
    return Mixed(pasted, labels, lam, perm, BoxMasks(first, len(perm)))
