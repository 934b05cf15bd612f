"""Boxes: drawn around a center, turned into masks, and pasted."""

from dataclasses import dataclass

import torch
from torch import Tensor

from adautomix.mixing.ops import Mixed, weighted_sum


def box_around(center: Tensor, side: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First pixel and end of a stretch of `side` pixels around `center`, clipped to `size`."""
    half = side // 2
    return (center - half).clamp(0, size), (center + half).clamp(0, size)


def boxes_around(center: Tensor, share: Tensor, height: int, width: int) -> Tensor:
    """Boxes of about a share `[n]` of the image around the pixels `[n, 2]` (y, x): `[n, 4]`."""
    cut = share.sqrt()
    top, bottom = box_around(center[:, 0], (height * cut).long(), height)
    left, right = box_around(center[:, 1], (width * cut).long(), width)
    return torch.stack([top, bottom, left, right], dim=1)


def draw_box(lam: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Boxes that leave about a share `lam` `[n]` of the image outside, `[n, 4]`."""
    sides = (height, width)
    center = [torch.randint(size, lam.shape, generator=generator) for size in sides]
    return boxes_around(torch.stack(center, dim=1), 1 - lam, height, width)


def box_sides(box: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which rows and which columns the boxes `[B, 4]` span: bool `[B, H]` and `[B, W]`."""
    top, bottom, left, right = box[:, :, None].unbind(dim=1)
    y = torch.arange(height, device=box.device)
    x = torch.arange(width, device=box.device)
    return (y >= top) & (y < bottom), (x >= left) & (x < right)


def box_mask(box: Tensor, height: int, width: int) -> Tensor:
    """True inside the boxes `[B, 4]`: `[B, H, W]`."""
    rows, columns = box_sides(box, height, width)
    return rows[:, :, None] & columns[:, None, :]


def outside_box(box: Tensor, height: int, width: int) -> Tensor:
    """0 inside the boxes `[B, 4]` and 1 outside, float32 `[B, H, W]`.

    Numbers, as PyTorch vectorizes their products on the CPU and not those of bools.
    """
    rows, columns = box_sides(box, height, width)
    return torch.maximum((~rows).float()[:, :, None], (~columns).float()[:, None, :])


@dataclass(frozen=True)
class BoxMasks:
    """Masks of `count` mixes of two images from the weight of the first, `[B or 1, 1, H, W]`."""

    first: Tensor
    count: int

    def float(self) -> Tensor:
        """`[count, 2, H, W]`."""
        return torch.cat([self.first, 1 - self.first], dim=1).expand(self.count, -1, -1, -1)


def paste(images: Tensor, targets: Tensor, perm: Tensor, outside: Tensor) -> Mixed:
    """The first image where `outside` `[B, H, W]` is true or 1, else the second; labels by area.

    The first source is each image itself, as `draw_partners` has it: `perm[:, 0]` counts the
    images, unless some of them are not mixed. `outside` may be `[1, H, W]`, to serve all mixes.
    """
    first = outside[:, None].float()
    kept, pixels = first.sum(dim=(2, 3)), first[0].numel()
    lam = (torch.cat([kept, pixels - kept], dim=1) / pixels).expand(len(perm), -1)
    own = images if len(perm) == len(images) else images[perm[:, 0]]
    # Weights of 0 and 1 are exact, and filling in place spares another copy of the batch.
    pasted = images[perm[:, 1]].lerp_(own, first.to(images.dtype))
    labels = weighted_sum(targets, perm, lam[:, :, None])
    return Mixed(pasted, labels, lam, perm, BoxMasks(first, len(perm)))
