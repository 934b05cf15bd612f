"""Mixed samples of any method as rows of a picture."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adautomix.data.sets import Color
from adautomix.methods import Method
from adautomix.methods.base import soft_targets
from adautomix.reporting.grid import MixRow


def mix_rows(
    method: Method,
    images: Tensor,
    labels: Tensor,
    *,
    classes: Sequence[str],
    mean: Color,
    std: Color,
    count: int,
    student: Any = None,
    teacher: Any = None,
    step: int = 0,
) -> list[MixRow]:
    """The first mixes that a method makes of a batch.

    Args:
        method: any method.
        images: normalised `[B, 3, H, W]`.
        labels: class indices `[B]`.
        classes: class names.
        mean: of pixels in [0, 1].
        std: of pixels in [0, 1].
        count: rows to make, at most B.
        student: needed by methods that look inside the network.
        teacher: its moving average.
        step: names the draw.
    """
    draw = method.draw_at(images, step)
    targets = soft_targets(labels, len(classes))
    mixed = method.sample(images, targets, student, teacher, draw)
    sources, mixes = to_pixels(images, mean, std), to_pixels(mixed.images, mean, std)
    rows = []
    for b in range(min(count, len(images))):
        perm = mixed.perm[b].cpu()
        rows.append(
            MixRow(
                method=method.name,
                sources=sources[perm],
                masks=None if mixed.masks is None else mixed.masks[b].float().cpu(),
                mixed=mixes[b],
                lam=tuple(mixed.lam[b].tolist()),
                labels=tuple(classes[k] for k in labels.cpu()[perm].tolist()),
            )
        )
    return rows


def to_pixels(images: Tensor, mean: Color, std: Color) -> Tensor:
    """Normalised images as uint8 on the CPU."""
    scale, shift = (torch.tensor(c, device=images.device)[:, None, None] for c in (std, mean))
    return ((images.float() * scale + shift) * 255).round().clamp(0, 255).byte().cpu()
