"""The batches of an epoch: read, augmented and normalized on the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adautomix.data.augment import (
    CropParams,
    ResizedCropParams,
    apply_crop,
    apply_resized_crop,
    center_crop,
    draw_crop,
    draw_resized_crop,
    normalize,
    resize,
)
from adautomix.data.balance import balanced_order
from adautomix.data.dataset import ImageData, Split
from adautomix.errors import UsageError
from adautomix.rng import generator_at

CropSetting = Literal["auto", "pad", "resized", "off"]
Sampler = Literal["shuffle", "balanced"]


@dataclass(frozen=True)
class Batch:
    """Training images as they are stored, and how each is to be augmented; all on the device.

    Attributes:
        pixels: uint8 `[B, 3, S, S]`.
        labels: int64 `[B]`.
        crop: the random part of the augmentation.
    """

    pixels: Tensor
    labels: Tensor
    crop: CropParams | ResizedCropParams


class TrainBatches:
    """The training batches of each epoch, as a function of (seed, epoch) and nothing else.

    Where several processes share the work, each gets its stretch of the same batches, in order
    of `rank`: of every batch `batch_size / world_size` images.

    `crop`, `pad` and `flip` left at "auto" / None are what suits the data set:

    - "pad": random crop out of the image padded by reflection; stored images larger than
      `data.image_size` are cropped to their center first, smaller ones enlarged afterwards;
    - "resized": a box of at least `scale_min` of the area, resized;
    - "off": the center as it is (still flipped if `flip`).

    `sampler` "shuffle" visits every image once per epoch; "balanced" draws every class with the
    same probability, see `balanced_order`.

    Raises UsageError where a batch cannot be filled or would hold one image: batch norm needs
    two.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        crop: CropSetting = "auto",
        pad: int | None = None,
        flip: bool | None = None,
        scale_min: float = 0.08,
        drop_last: bool = True,
        sampler: Sampler = "shuffle",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_batches(len(data.train), batch_size, drop_last, world_size)
        self.batch_size = batch_size
        self.image_size = data.image_size
        images = len(data.train)
        self.steps_per_epoch = images // batch_size if drop_last else -(-images // batch_size)
        self._data = data
        self._split = data.train.to(device)
        self._seed = seed
        self._crop = data.crop if crop == "auto" else crop
        self._pad = 0 if crop == "off" else data.pad if pad is None else pad
        self._flip = data.flip if flip is None else flip
        self._scale = (scale_min, 1.0)
        self._sampler = sampler
        self._rank, self._world_size = rank, world_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches from step `start` of the epoch on: those that the whole epoch would give."""
        batches = torch.split(self._order(epoch), self.batch_size)[start : self.steps_per_epoch]
        first_step = epoch * self.steps_per_epoch + start
        mine = [batch[self._share(len(batch))] for batch in batches]
        for number, (pixels, labels) in enumerate(self._split.read(mine)):
            images = len(batches[number])
            crop = self._draw(images, generator_at(self._seed, first_step + number, "augment"))
            share = crop.rows(self._share(images)).to(pixels.device)
            yield Batch(pixels, labels, share)

    def _order(self, epoch: int) -> Tensor:
        generator = generator_at(self._seed, epoch, "order")
        if self._sampler == "balanced":
            if self._data.multi_label:
                raise UsageError(
                    "sampler = balanced needs one class per image, and these images have several "
                    "labels: use class_weights = balanced"
                )
            return balanced_order(self._split.labels, generator)
        return torch.randperm(len(self._split), generator=generator)

    def augment(self, batch: Batch) -> Tensor:
        """Cropped, flipped and normalized: float32 `[B, 3, H, W]`, channels last."""
        size, pixels = self._data.image_size, batch.pixels
        if isinstance(batch.crop, ResizedCropParams):
            images = apply_resized_crop(pixels, batch.crop, size)
        else:
            images = resize(apply_crop(center_crop(pixels, size), batch.crop, self._pad), size)
        return normalize(images, self._data.mean, self._data.std)

    def _draw(self, images: int, generator: torch.Generator) -> CropParams | ResizedCropParams:
        if self._crop == "resized":
            return draw_resized_crop(images, self._flip, generator, self._scale)
        return draw_crop(images, self._pad, self._flip, generator)

    def _share(self, images: int) -> slice:
        share = images // self._world_size
        return slice(self._rank * share, (self._rank + 1) * share)


def eval_batches(
    split: Split, data: ImageData, *, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """The whole split in order, center-cropped and normalized; the last batch may be short.

    Pass a split that is on `device` already where it is read more than once.
    """
    for images, labels in _centered_batches(split, data.image_size, batch_size, device):
        yield normalize(images, data.mean, data.std), labels


def pixel_batches(
    split: Split, data: ImageData, *, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Like `eval_batches`, not normalized: float32 pixels in [0, 1]."""
    for images, labels in _centered_batches(split, data.image_size, batch_size, device):
        yield (images.float() / 255).clamp(0, 1), labels


def _centered_batches(
    split: Split, size: int, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.arange(len(split))
    for images, labels in split.to(device).read(torch.split(order, batch_size)):
        yield resize(center_crop(images, size), size), labels


def _check_batches(images: int, batch_size: int, drop_last: bool, world_size: int) -> None:
    last = 0 if drop_last else images % batch_size
    if batch_size % world_size or last % world_size:
        raise UsageError(
            f"batches of {batch_size} and a last one of {last} do not divide among {world_size} "
            "processes: use a multiple of them and drop the last batch"
        )
    if batch_size < 2:
        raise UsageError(f"batch size {batch_size}: batch norm needs at least 2 images per batch")
    if batch_size > images:
        raise UsageError(
            f"batch size {batch_size} is larger than the training set of {images} images: "
            f"use at most {images}"
        )
    if not drop_last and images % batch_size == 1:
        raise UsageError(
            f"batch size {batch_size} leaves a last batch of one of the {images} training images, "
            "and batch norm needs two: use another batch size or drop the last batch"
        )
