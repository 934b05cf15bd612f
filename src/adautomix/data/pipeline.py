"""The batches of an epoch: read, augmented and normalised on the device."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from adautomix.data.augment import (
    apply_crop,
    apply_resized_crop,
    center_crop,
    draw_crop,
    draw_resized_crop,
    normalize,
    resize,
)
from adautomix.data.sets import ImageData, Split
from adautomix.errors import UsageError
from adautomix.rng import generator_at

CropSetting = Literal["auto", "pad", "resized", "off"]


class TrainBatches:
    """The training batches of each epoch, as a function of (seed, epoch) and nothing else.

    `crop`, `pad` and `flip` left at "auto" / None are what suits the data set:

    - "pad": random crop out of the image padded by reflection; stored images larger than
      `data.image_size` are cropped to their centre first, smaller ones enlarged afterwards;
    - "resized": a box of at least `scale_min` of the area, resized;
    - "off": the centre as it is (still flipped if `flip`).

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
    ) -> None:
        _check_batches(len(data.train), batch_size, drop_last)
        self.batch_size = batch_size
        images = len(data.train)
        self.steps_per_epoch = images // batch_size if drop_last else -(-images // batch_size)
        self._data = data
        self._split = data.train.to(device)
        self._seed = seed
        self._crop = data.crop if crop == "auto" else crop
        self._pad = 0 if crop == "off" else data.pad if pad is None else pad
        self._flip = data.flip if flip is None else flip
        self._scale = (scale_min, 1.0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 `[B, 3, H, W]`, channels last, and labels int64 `[B]`, on the device.

        `start` is the first step within the epoch: the batches are those that the whole epoch
        would give from there on.
        """
        order = torch.randperm(len(self._split), generator=generator_at(self._seed, epoch, "order"))
        batches = torch.split(order, self.batch_size)[start : self.steps_per_epoch]
        first_step = epoch * self.steps_per_epoch + start
        for step, (images, labels) in enumerate(self._split.read(batches), first_step):
            augmented = self._augment(images, generator_at(self._seed, step, "augment"))
            yield normalize(augmented, self._data.mean, self._data.std), labels

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        size = self._data.image_size
        if self._crop == "resized":
            box = draw_resized_crop(len(images), self._flip, generator, self._scale)
            return apply_resized_crop(images, box.to(images.device), size)
        crop = draw_crop(len(images), self._pad, self._flip, generator).to(images.device)
        return resize(apply_crop(center_crop(images, size), crop, self._pad), size)


def eval_batches(
    split: Split, data: ImageData, *, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """The whole split in order, centre-cropped and normalised; the last batch may be short.

    Pass a split that is on `device` already where it is read more than once.
    """
    order = torch.arange(len(split))
    for images, labels in split.to(device).read(torch.split(order, batch_size)):
        centred = resize(center_crop(images, data.image_size), data.image_size)
        yield normalize(centred, data.mean, data.std), labels


def _check_batches(images: int, batch_size: int, drop_last: bool) -> None:
    if batch_size < 2:
        raise UsageError(f"batch size {batch_size}: batch norm needs at least 2 images a batch")
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
