"""What a loaded data set is: its classes, its splits and how it likes to be augmented."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from adautomix.data.cache import PictureStore
from adautomix.data.color import Color as Color
from adautomix.data.decoding.decoders import DecoderPool, Request, Source
from adautomix.data.preparation import Crop, Interpolation, Preparation
from adautomix.data.rendering import render
from adautomix.data.split_record import SplitRecord
from adautomix.decoder.reading import Rules, View


class Split(Protocol):
    """Labeled square images that can be read in any order."""

    @property
    def labels(self) -> Tensor:
        """Class indices, int64 `[n]`, or 0 and 1 for each class, float32 `[n, K]`.

        They are on the split's device.
        """

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> "Split":
        """The same images with batches on `device`. What is in memory is copied: do it once."""

    def subset(self, rows: Tensor) -> "Split":
        """The images at `rows` (int64 `[m]`), in that order."""

    def read(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each int64 `[B]`: images uint8 `[B, 3, S, S]` and labels `[B]`, on the device."""


@dataclass(frozen=True)
class ImageData:
    """A data set ready to train on."""

    name: str
    classes: tuple[str, ...]
    image_size: int
    """Side of the squares that the network sees; stored images may be larger or smaller."""
    train: Split
    val: Split | None
    test: Split
    mean: Color
    """Of the training pixels in [0, 1]."""
    std: Color
    crop: Crop
    """The random crop that suits the set."""
    pad: int
    """Pixels of padding that suit the "pad" crop."""
    flip: bool
    """Whether mirrored images belong to the same class."""
    bad_files: tuple[str, ...]
    """Unreadable files that were left out."""
    record: SplitRecord | None = None
    """Which images are in which split, to be written into the run folder."""
    notes: tuple[str, ...] = ()
    """What was decided and passed over, for the data summary."""
    warnings: tuple[str, ...] = ()
    """What looks wrong with the data set, for the data summary."""
    plain_files: tuple[str, ...] = ()
    """Files of only a few colors: they may have been misread."""
    preparation: Preparation | None = None
    """How an image file becomes an input; None for a set that has no such way of its own."""
    interpolation: Interpolation = "bilinear"
    """Filter with which stored images are resized on the device."""

    def to(self, device: torch.device) -> Self:
        """The same set with its splits on `device`."""
        val = self.val and self.val.to(device)
        return replace(self, train=self.train.to(device), val=val, test=self.test.to(device))

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.train.labels.ndim == 2

    def splits(self) -> dict[str, Split]:
        """The splits there are, by name."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in every.items() if split is not None}


@dataclass(frozen=True)
class Collection:
    """What one source gives: labeled images before anything is held out."""

    classes: tuple[str, ...]
    images: Split
    given: dict[str, Tensor]
    """Rows of "train", "test" and perhaps "val" where the source has them, else of "all"."""
    image_size: int
    measure: Callable[[Tensor], tuple[Color, Color]]
    """Mean and deviation of the pixels of the images at some rows."""
    pad: int
    """Pixels of padding that suit the "pad" crop."""
    flip: bool = True
    """Whether mirrored images belong to the same class."""
    bad_files: tuple[str, ...] = ()
    """Unreadable files that were left out."""
    plain_files: tuple[str, ...] = ()
    """Files of only a few colors."""
    preparation: Preparation | None = None
    """How an image file becomes an input; None where images come as arrays."""


@dataclass(frozen=True)
class InMemory:
    """A split whose pixels are in memory, or mapped from the cache."""

    images: Tensor
    """uint8 `[m, S, S, 3]`; splits of one set share it."""
    rows: Tensor
    """int64 `[n]`: which of `images` are this split's."""
    labels: Tensor
    """int64 `[n]`."""

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Self:
        """The split with only its own images copied to `device`."""
        here = self.images.device
        if device.type == here.type and device.index in (None, here.index):
            return self
        rows = torch.arange(len(self), device=device)
        images = self.images.index_select(0, self.rows)
        return type(self)(images.to(device), rows, self.labels.to(device))

    def subset(self, rows: Tensor) -> Self:
        """The images at `rows`; the pixels are shared."""
        return type(self)(self.images, self.rows[rows], self.labels[rows])

    def read(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Gather each batch on the device."""
        for batch in batches:
            index = batch.to(self.images.device, non_blocking=True)
            images = self.images.index_select(0, self.rows[index])
            yield images.permute(0, 3, 1, 2), self.labels[index]

    def sources(self, rows: Tensor) -> Sequence[Source]:
        """The pixels; the split must be on the CPU."""
        _, height, width, _ = self.images.shape
        picked = self.images.index_select(0, self.rows[rows]).numpy()
        return [
            Source((width, height), image.data, f"image {row}")
            for row, image in zip(rows.tolist(), picked, strict=True)
        ]


@dataclass(frozen=True)
class OnDisk:
    """A split whose images are made in decoding processes a few batches ahead, at each reading.

    They are decoded from their files, or cut out of whole pictures that were decoded before. Files
    are not tried beforehand: an unreadable one ends the reading with a RunError that names it.
    """

    paths: Sequence[str]
    side: int
    """Of the images that `read` gives."""
    decoders: DecoderPool
    labels: Tensor
    """int64 `[n]`."""
    view: View = ("square",)
    """What `read` sees of a picture, see `adautomix.decoder.views`."""
    how: Rules = field(default_factory=Rules)
    """How files become pictures."""
    store: PictureStore | None = None
    rows: Tensor | None = None
    """int64 `[n]`: which pictures of the store are this split's."""

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device) -> Self:
        """The split with its batches delivered to `device`."""
        return replace(self, labels=self.labels.to(device))

    def subset(self, rows: Tensor) -> Self:
        """The files at `rows`."""
        paths = [self.paths[row] for row in rows.tolist()]
        picked = None if self.rows is None else self.rows[rows.cpu()]
        return replace(self, paths=paths, labels=self.labels[rows], rows=picked)

    def read(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Decode ahead; copy to the device without waiting for it."""
        jobs = (
            (batch, [Request(source, self.view) for source in self.sources(batch)])
            for batch in batches
        )
        return render(jobs, self.side, self.how, self.decoders, self.labels)

    def sources(self, rows: Tensor) -> Sequence[Source]:
        """The files, or where their pictures are stored."""
        paths = [self.paths[row] for row in rows.tolist()]
        if self.store is None or self.rows is None:
            return [Source(path) for path in paths]
        store, limit = str(self.store.path), self.store.limit
        entries = self.store.index[self.rows[rows].numpy()].tolist()
        return [
            Source((store, *entry, path, limit), None, path)
            for entry, path in zip(entries, paths, strict=True)
        ]
