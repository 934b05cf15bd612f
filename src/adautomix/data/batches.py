"""The batches of an epoch: read, augmented and normalized on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adautomix.data.augment import (
    BoxParams,
    CropParams,
    FlipParams,
    ResizedCropParams,
    apply_crop,
    apply_flip,
    apply_resized_crop,
    center_crop,
    draw_boxes,
    draw_crop,
    normalize,
    resize,
)
from adautomix.data.balance import balanced_order
from adautomix.data.dataset import ImageData, InMemory, OnDisk, Split
from adautomix.data.decoding.decoders import GRAY, DecoderPool, Request
from adautomix.data.erasing import EraseParams, Fill, draw_erasing, erase
from adautomix.data.policies import Policy
from adautomix.data.preparation import CropSetting
from adautomix.data.rendering import render
from adautomix.decoder.reading import Rules
from adautomix.decoder.views import RATIO
from adautomix.errors import UsageError
from adautomix.rng import generator_at

_CPU = torch.device("cpu")

Sampler = Literal["shuffle", "balanced"]


@dataclass(frozen=True)
class Erasing:
    """Random erasing of training images, see `data.erasing`."""

    probability: float
    fill: Fill = "pixel"


@dataclass(frozen=True)
class Batch:
    """A batch of stored training images and the random parameters of their augmentation.

    Attributes:
        pixels: uint8 `[B, 3, S, S]`, on the device.
        labels: class indices int64 `[B]` or multi-hot labels float32 `[B, K]`, on the device.
        crop: crop and flip per image; flips only if the images were cropped during decoding.
        erased: boxes of random erasing; None without it.
    """

    pixels: Tensor
    labels: Tensor
    crop: CropParams | ResizedCropParams | FlipParams
    erased: EraseParams | None = None


class TrainBatches:
    """Training batches of each epoch, determined by (seed, epoch) alone.

    With several processes, each process gets `batch_size / world_size` consecutive images of every
    batch, in order of `rank`.

    The random crops are:

    - "pad": random crop of the image padded by reflection. Stored images larger than
      `data.image_size` are center-cropped first; smaller ones are enlarged afterwards.
    - "resized": a random box, resized, as in torchvision's RandomResizedCrop.
    - "off": the center crop.

    Boxes of whole pictures and the operations of a `policy` are drawn here and applied ahead of
    time by decoding processes. All other augmentation runs on the device.

    Args:
        data: the data set.
        batch_size: images per batch, summed over all processes.
        seed: random seed.
        device: device that batches are delivered to.
        crop: random crop, see above; "auto" uses the default of the data set.
        pad: padding in pixels; None uses the default of the data set.
        flip: mirror each image with probability 1/2; None uses the default of the data set.
        scale_min: smallest area of a resized crop, as a fraction of the picture.
        scale_max: largest area of a resized crop, as a fraction of the picture.
        policy: automatic augmentation applied after the crop.
        erasing: random erasing applied after normalization.
        repeats: number of consecutive copies of each image, each augmented independently. The
            number of images per epoch stays the same, so fewer distinct images are used (repeated
            augmentation, Hoffer et al., CVPR 2020).
        drop_last: drop the last batch if it is incomplete.
        sampler: "shuffle" visits every image once per epoch; "balanced" draws every class with the
            same probability, see `balanced_order`.
        workers: number of decoding processes for a policy on images in memory.
        rank: rank of this process.
        world_size: number of processes.

    Raises:
        UsageError: a batch cannot be filled, cannot be divided among the processes, or would hold
            a single image (batch norm needs two).
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
        scale_max: float = 1.0,
        policy: Policy | None = None,
        erasing: Erasing | None = None,
        repeats: int = 1,
        drop_last: bool = True,
        sampler: Sampler = "shuffle",
        workers: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_batches(len(data.train), batch_size, drop_last, world_size)
        self.batch_size = batch_size
        self.image_size = data.image_size
        images = len(data.train)
        self.steps_per_epoch = images // batch_size if drop_last else -(-images // batch_size)
        self._data = data
        self._seed, self._device = seed, device
        self._crop = data.crop if crop == "auto" else crop
        self._pad = 0 if crop == "off" else data.pad if pad is None else pad
        self._flip = data.flip if flip is None else flip
        self._scale = (scale_min, scale_max)
        self._sampler = sampler
        self._policy, self._erasing, self._repeats = policy, erasing, repeats
        self._rank, self._world_size = rank, world_size
        self._whole = (
            isinstance(data.train, OnDisk)
            and data.train.view[0] != "square"
            and self._crop == "resized"
        )
        self._rendered = self._whole or policy is not None
        # Decoding processes read pixels from host memory.
        self._split = data.train.to(_CPU if self._rendered else device)
        if isinstance(self._split, OnDisk):
            self._decoders, self._rules = self._split.decoders, self._split.how
        elif self._rendered:
            self._decoders = DecoderPool(workers)
            self._rules = Rules(resample=data.interpolation)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from step `start` on, as in a complete epoch."""
        order = self._order(epoch)
        order = order.repeat_interleave(self._repeats, dim=0)[: len(order)]
        batches = torch.split(order, self.batch_size)[start : self.steps_per_epoch]
        first_step = epoch * self.steps_per_epoch + start
        read = self._render if self._rendered else self._read
        for number, (pixels, labels) in enumerate(read(batches, first_step)):
            images, step = len(batches[number]), first_step + number
            share = self._share(images)
            crop = self._draw(images, step)
            left = self._left_to_do(crop).rows(share).to(pixels.device)
            yield Batch(pixels, labels, left, self._draw_erasing(images, step))

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
        """Crop, flip, normalize and erase a batch: float32 `[B, 3, H, W]`, channels last."""
        size, pixels, data = self._data.image_size, batch.pixels, self._data
        if isinstance(batch.crop, FlipParams):
            images = apply_flip(pixels, batch.crop.flip)
        elif isinstance(batch.crop, ResizedCropParams):
            images = apply_resized_crop(pixels, batch.crop, size, data.interpolation)
        else:
            images = apply_crop(center_crop(pixels, size), batch.crop, self._pad)
            images = resize(images, size, data.interpolation)
        images = normalize(images, data.mean, data.std)
        if batch.erased is None or self._erasing is None:
            return images
        return erase(images, batch.erased, self._erasing.fill)

    def _read(self, batches: Sequence[Tensor], first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._split.read([batch[self._share(len(batch))] for batch in batches])

    def _render(
        self, batches: Sequence[Tensor], first_step: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Crop and augment this process's part of each batch in decoding processes."""
        split = self._split
        assert isinstance(split, InMemory | OnDisk)
        jobs = (
            self._requests(split, batch, first_step + number)
            for number, batch in enumerate(batches)
        )
        fill = GRAY if self._policy is None else self._policy.fill
        labels = split.labels.to(self._device)
        return render(jobs, self.image_size, self._rules, self._decoders, labels, fill)

    def _requests(
        self, split: InMemory | OnDisk, batch: Tensor, step: int
    ) -> tuple[Tensor, list[Request]]:
        images, share = len(batch), self._share(len(batch))
        rows, crop = batch[share], self._draw(images, step).rows(share)
        operations: Sequence[Sequence[Sequence[object]]] = [()] * images
        if self._policy is not None:
            generator = generator_at(self._seed, step, "policy")
            operations = self._policy.operations(images, self.image_size, generator)
        parts = zip(split.sources(rows), self._views(split, crop), operations[share], strict=True)
        return rows, [Request(*part) for part in parts]

    def _views(
        self, split: InMemory | OnDisk, crop: CropParams | BoxParams
    ) -> Sequence[Sequence[object]]:
        if isinstance(crop, BoxParams):
            return crop.views()
        inner = split.view if isinstance(split, OnDisk) else None
        offsets = zip(crop.top.tolist(), crop.left.tolist(), strict=True)
        return [("padded", inner, self._pad, top, left) for top, left in offsets]

    def _left_to_do(
        self, crop: CropParams | BoxParams
    ) -> CropParams | ResizedCropParams | FlipParams:
        """Return the part of a crop that remains to be applied on the device."""
        if self._rendered:
            return FlipParams(crop.flip)
        return crop.in_squares(RATIO) if isinstance(crop, BoxParams) else crop

    def _draw(self, images: int, step: int) -> CropParams | BoxParams:
        generator = generator_at(self._seed, step, "augment")
        if self._crop == "resized":
            return draw_boxes(images, self._flip, generator, self._scale)
        return draw_crop(images, self._pad, self._flip, generator)

    def _draw_erasing(self, images: int, step: int) -> EraseParams | None:
        """Draw the boxes of random erasing for this process's images; None without erasing."""
        if self._erasing is None:
            return None
        generator = generator_at(self._seed, step, "erasing")
        boxes = draw_erasing(images, self.image_size, self._erasing.probability, generator)
        return boxes.rows(self._share(images)).to(self._device)

    def _share(self, images: int) -> slice:
        share = images // self._world_size
        return slice(self._rank * share, (self._rank + 1) * share)


def eval_batches(
    split: Split, data: ImageData, *, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the whole split in order, center-cropped and normalized.

    To read a split more than once, move it to `device` first; otherwise it is copied each time.

    Args:
        split: the images.
        data: data set whose image size, mean and standard deviation are used.
        batch_size: images per batch; the last batch may be smaller.
        device: device that batches are delivered to.

    Yields:
        Images float32 `[B, 3, S, S]` and labels `[B]` or `[B, K]`, on the device.
    """
    for images, labels in _centered_batches(split, data, batch_size, device):
        yield normalize(images, data.mean, data.std), labels


def pixel_batches(
    split: Split, data: ImageData, *, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Like `eval_batches`, but yield pixels in [0, 1] that are not normalized."""
    for images, labels in _centered_batches(split, data, batch_size, device):
        yield (images.float() / 255).clamp(0, 1), labels


def _centered_batches(
    split: Split, data: ImageData, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    order, size = torch.arange(len(split)), data.image_size
    for images, labels in split.to(device).read(torch.split(order, batch_size)):
        yield resize(center_crop(images, size), size, data.interpolation), labels


def _check_batches(images: int, batch_size: int, drop_last: bool, world_size: int) -> None:
    last = 0 if drop_last else images % batch_size
    if batch_size % world_size or last % world_size:
        raise UsageError(
            f"batches of {batch_size} and a last one of {last} do not divide among {world_size} "
            "processes: use a multiple of them and drop the last batch"
        )
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: use at least 1 image per batch")
    if batch_size > images:
        raise UsageError(
            f"batch size {batch_size} is larger than the training set of {images} images: "
            f"use at most {images}"
        )
