"""Mixed samples of any method as rows of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adautomix.data.pictures import prepare_pictures
from adautomix.data.pipeline import eval_batches
from adautomix.data.sets import Color, ImageData
from adautomix.methods import Method
from adautomix.methods.base import soft_targets
from adautomix.reporting.grid import MixRow
from adautomix.rng import generator_at

GREY = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Batch:
    """Images to mix, and what they are.

    Attributes:
        images: normalised `[B, 3, H, W]`.
        labels: class indices `[B]`.
        classes: class names.
        mean: of pixels in [0, 1].
        std: of pixels in [0, 1].
    """

    images: Tensor
    labels: Tensor
    classes: Sequence[str]
    mean: Color
    std: Color

    def filled(self, count: int) -> "Batch":
        """The batch with its images repeated until there are at least `count`."""
        have = len(self.images)
        rows = torch.arange(max(count, have), device=self.images.device) % have
        return replace(self, images=self.images[rows], labels=self.labels[rows])


def picture_batch(files: Sequence[Path], size: int, mean: Color = GREY, std: Color = GREY) -> Batch:
    """Picture files; each is a class of its own, named after its file.

    Raises:
        UsageError: a file cannot be read.
    """
    images = prepare_pictures(files, image_size=size, mean=mean, std=std)
    return Batch(images, torch.arange(len(files)), [path.stem for path in files], mean, std)


def data_batch(data: ImageData, seed: int, device: torch.device, count: int = 16) -> Batch:
    """A few test images, the same for every method."""
    rows = torch.randperm(len(data.test), generator=generator_at(seed, 0, "preview"))[:count]
    some = data.test.subset(rows)
    images, labels = next(eval_batches(some, data, batch_size=count, device=device))
    return Batch(images, labels, data.classes, data.mean, data.std)


def mix_rows(
    method: Method,
    batch: Batch,
    *,
    count: int,
    student: Any = None,
    teacher: Any = None,
    step: int = 0,
) -> list[MixRow]:
    """The first mixes that a method makes of a batch.

    Args:
        method: any method.
        batch: what to mix; repeated where it is too small for the method.
        count: rows to make.
        student: needed by methods that look inside the network.
        teacher: its moving average.
        step: names the draw.
    """
    batch = batch.filled(max(count, method.min_batch))
    draw = method.draw_at(batch.images.shape, step).to(batch.images.device)
    targets = soft_targets(batch.labels, len(batch.classes))
    mixed = method.sample(batch.images, targets, student, teacher, draw)
    sources = to_pixels(batch.images, batch.mean, batch.std)
    mixes = to_pixels(mixed.images, batch.mean, batch.std)
    rows = []
    for b in range(count):
        perm = mixed.perm[b].cpu()
        names = [batch.classes[k] for k in batch.labels.cpu()[perm].tolist()]
        masks = None if mixed.masks is None else mixed.masks[b].float().cpu()
        lam = tuple(mixed.lam[b].tolist())
        rows.append(MixRow(method.name, sources[perm], masks, mixes[b], lam, tuple(names)))
    return rows


def to_pixels(images: Tensor, mean: Color, std: Color) -> Tensor:
    """Normalised images as uint8 on the CPU."""
    scale, shift = (torch.tensor(c, device=images.device)[:, None, None] for c in (std, mean))
    return ((images.float() * scale + shift) * 255).round().clamp(0, 255).byte().cpu()
