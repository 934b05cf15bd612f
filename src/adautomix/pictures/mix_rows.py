"""Mixed samples of any method as rows of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adautomix.data.batches import eval_batches
from adautomix.data.dataset import Color, ImageData
from adautomix.data.decoding.image_files import prepare_images
from adautomix.methods import Method, Mixed
from adautomix.mixing.ops import soft_targets
from adautomix.pictures.image_grid import MixRow
from adautomix.rng import generator_at

GREY = (0.5, 0.5, 0.5)
MOST = 0.8  # of a telling mix that one picture has
FLAT = 0.05


@dataclass(frozen=True)
class Batch:
    """Images to mix, and what they are.

    Attributes:
        images: normalized `[B, 3, H, W]`.
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
    images = prepare_images(files, image_size=size, mean=mean, std=std)
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
    choose_from: int = 0,
    note: str = "",
) -> list[MixRow]:
    """The first mixes that a method makes of a batch.

    Args:
        method: any method.
        batch: what to mix; repeated where it is too small for the method.
        count: rows to make.
        student: needed by methods that look inside the network.
        teacher: its moving average.
        step: names the draw.
        choose_from: make so many mixes and leave out those that hardly show a second picture.
        note: a word below the method's name.
    """
    pictures = len(batch.images)
    batch = batch.filled(max(count, method.min_batch, choose_from))
    params = method.params_for_step(batch.images.shape, step).to(batch.images.device)
    targets = soft_targets(batch.labels, len(batch.classes))
    with torch.no_grad():
        mixed = method.mix_batch(batch.images, targets, student, teacher, params)
    chosen = telling(mixed, pictures, count) if choose_from else list(range(count))
    sources = to_pixels(batch.images[:pictures], batch.mean, batch.std)
    mixes = to_pixels(mixed.images, batch.mean, batch.std)
    rows = []
    for b in chosen:
        lam, masks = of_pictures(mixed, b, pictures)
        shown = list(lam)
        names = tuple(batch.classes[k] for k in batch.labels[shown].tolist())
        weights = tuple(lam.values())
        rows.append(MixRow(method.name, sources[shown], masks, mixes[b], weights, names, note))
    return rows


def of_pictures(mixed: Mixed, b: int, pictures: int) -> tuple[dict[int, float], Tensor | None]:
    """Weight in the label of each picture that mix `b` holds, and its mask `[N, H, W]` if any.

    Sources that are the same picture count as one.
    """
    perm, lam = (mixed.perm[b] % pictures).tolist(), mixed.lam[b].tolist()
    weights = dict.fromkeys(perm, 0.0)
    for picture, weight in zip(perm, lam, strict=True):
        weights[picture] += weight
    by_source = mixed.masks
    if by_source is None:
        return {k: weight for k, weight in weights.items() if weight > 0}, None
    masks = dict.fromkeys(perm, torch.zeros(()))
    for picture, mask in zip(perm, by_source[b].cpu(), strict=True):
        masks[picture] = masks[picture] + mask
    held = [k for k in weights if weights[k] > 0 or masks[k].any()]
    return {k: weights[k] for k in held}, torch.stack([masks[k] for k in held])


def telling(mixed: Mixed, pictures: int, count: int) -> list[int]:
    """The mixes that show most: some whose masks differ from place to place, if there are any.

    Among these the first in which no picture has more than `MOST` of the label, else the most even.

    Args:
        mixed: of a batch that repeats so many pictures.
        pictures: how many there are.
        count: mixes to choose.
    """
    shares = mixed.lam.new_zeros(len(mixed.lam), pictures)
    largest = shares.scatter_add(1, mixed.perm % pictures, mixed.lam).amax(dim=1)
    flat = torch.zeros_like(largest)
    masks = mixed.masks
    if masks is not None:
        low, high = masks.flatten(2).aminmax(dim=2)
        flat = ((high - low).amax(dim=1) < FLAT).float()
    order = (flat + largest.clamp_min(MOST)).argsort(stable=True)
    return sorted(order[:count].tolist())


def to_pixels(images: Tensor, mean: Color, std: Color) -> Tensor:
    """Normalized images as uint8 on the CPU."""
    scale, shift = (torch.tensor(c, device=images.device)[:, None, None] for c in (std, mean))
    return ((images.float() * scale + shift) * 255).round().clamp(0, 255).byte().cpu()
