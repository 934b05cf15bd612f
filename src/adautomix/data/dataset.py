"""Types of a loaded data set: its splits, its classes and its default augmentation."""

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
from adautomix.device import to_device


class Split(Protocol):
    """Labeled square images that can be read in any order."""

    @property
    def labels(self) -> Tensor:
        """Class indices int64 `[n]` or multi-hot labels float32 `[n, K]`, on the split's device."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> "Split":
        """Return the split with its batches on `device`.

        Images in memory are copied at every call, so call it once and keep the result.
        """

    def subset(self, rows: Tensor) -> "Split":
        """Return the split of the images at `rows` (int64 `[m]`), in that order."""

    def read(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels for each batch of row indices.

        Args:
            batches: row indices, int64 `[B]` per batch.

        Yields:
            Images uint8 `[B, 3, S, S]` and labels `[B]` or `[B, K]`, on the device.
        """


@dataclass(frozen=True)
class ImageData:
    """A data set that is ready for training."""

    name: str
    classes: tuple[str, ...]
    image_size: int
    """Side of the network's input in pixels; stored images may be larger or smaller."""
    train: Split
    val: Split | None
    test: Split
    mean: Color
    """Per-channel mean of the training pixels, scaled to [0, 1]."""
    std: Color
    """Per-channel standard deviation of the training pixels, scaled to [0, 1]."""
    crop: Crop
    """Default random crop for this data set."""
    pad: int
    """Default padding of the "pad" crop, in pixels."""
    flip: bool
    """Whether a mirrored image keeps its class."""
    bad_files: tuple[str, ...]
    """Unreadable files that were skipped."""
    record: SplitRecord | None = None
    """Which images are in which split; written to the run folder."""
    notes: tuple[str, ...] = ()
    """Choices made and files skipped while loading, for the data summary."""
    warnings: tuple[str, ...] = ()
    """Suspected problems of the data set, for the data summary."""
    plain_files: tuple[str, ...] = ()
    """Files with only a few colors, which may have been decoded wrongly."""
    preparation: Preparation | None = None
    """How an image file becomes a network input; None if the data set does not define it."""
    interpolation: Interpolation = "bilinear"
    """Filter that resizes stored images on the device."""

    def to(self, device: torch.device) -> Self:
        """Return the data set with its splits on `device`."""
        val = self.val and self.val.to(device)
        return replace(self, train=self.train.to(device), val=val, test=self.test.to(device))

    @property
    def multi_label(self) -> bool:
        """Whether an image can have any number of labels instead of exactly one."""
        return self.train.labels.ndim == 2

    def splits(self) -> dict[str, Split]:
        """Return the existing splits by name."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in every.items() if split is not None}


@dataclass(frozen=True)
class Collection:
    """Labeled images from one source, before any split is held out."""

    classes: tuple[str, ...]
    images: Split
    given: dict[str, Tensor]
    """Rows of the source's "train", "test" and optional "val" split, or of "all" without splits."""
    image_size: int
    """Side of the network's input in pixels."""
    measure: Callable[[Tensor], tuple[Color, Color]]
    """Returns the per-channel mean and standard deviation of the images at the given rows."""
    pad: int
    """Default padding of the "pad" crop, in pixels."""
    flip: bool = True
    """Whether a mirrored image keeps its class."""
    bad_files: tuple[str, ...] = ()
    """Unreadable files that were skipped."""
    plain_files: tuple[str, ...] = ()
    """Files with only a few colors."""
    preparation: Preparation | None = None
    """How an image file becomes a network input; None if the images come as arrays."""


@dataclass(frozen=True)
class InMemory:
    """A split whose pixels are in memory or memory-mapped from the cache."""

    images: Tensor
    """uint8 `[m, S, S, 3]`, shared by all splits of a data set."""
    rows: Tensor
    """int64 `[n]`: indices of this split's images in `images`."""
    labels: Tensor
    """int64 `[n]`, or float32 `[n, K]` for several labels per image."""

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Self:
        """Return the split with its images, and no others, copied to `device`."""
        here = self.images.device
        if device.type == here.type and device.index in (None, here.index):
            return self
        rows = torch.arange(len(self), device=device)
        images = self.images.index_select(0, self.rows)
        return type(self)(images.to(device), rows, self.labels.to(device))

    def subset(self, rows: Tensor) -> Self:
        """Return the split of the images at `rows`; both share the pixels."""
        return type(self)(self.images, self.rows[rows], self.labels[rows])

    def read(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Gather each batch on the split's device; see `Split.read`."""
        for batch in batches:
            index = to_device(batch, self.images.device)
            images = self.images.index_select(0, self.rows[index])
            yield images.permute(0, 3, 1, 2), self.labels[index]

    def sources(self, rows: Tensor) -> Sequence[Source]:
        """Return the pixels of the images at `rows`; the split must be on the CPU."""
        _, height, width, _ = self.images.shape
        picked = self.images.index_select(0, self.rows[rows]).numpy()
        return [
            Source((width, height), image.data, f"image {row}")
            for row, image in zip(rows.tolist(), picked, strict=True)
        ]


@dataclass(frozen=True)
class OnDisk:
    """A split whose images are decoded in worker processes each time they are read.

    Workers run a few batches ahead. They decode the image files, or crop whole pictures from
    `store`. Files are not checked in advance: `read` raises RunError, naming the file, when it
    meets an unreadable one.
    """

    paths: Sequence[str]
    """Image files, one per sample."""
    side: int
    """Side in pixels of the images that `read` yields."""
    decoders: DecoderPool
    labels: Tensor
    """int64 `[n]`, or float32 `[n, K]` for several labels per image."""
    view: View = ("square",)
    """Region of a picture that `read` returns, see `adautomix.decoder.views`."""
    how: Rules = field(default_factory=Rules)
    """Rules for decoding a file."""
    store: PictureStore | None = None
    """Cached whole pictures; None decodes from the files."""
    rows: Tensor | None = None
    """int64 `[n]`: indices of this split's pictures in `store`."""

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device) -> Self:
        """Return the split with its batches delivered to `device`."""
        return replace(self, labels=self.labels.to(device))

    def subset(self, rows: Tensor) -> Self:
        """Return the split of the files at `rows`."""
        paths = [self.paths[row] for row in rows.tolist()]
        picked = None if self.rows is None else self.rows[rows.cpu()]
        return replace(self, paths=paths, labels=self.labels[rows], rows=picked)

    def read(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Decode batches ahead and copy them to the device asynchronously; see `Split.read`."""
        jobs = (
            (batch, [Request(source, self.view) for source in self.sources(batch)])
            for batch in batches
        )
        return render(jobs, self.side, self.how, self.decoders, self.labels)

    def sources(self, rows: Tensor) -> Sequence[Source]:
        """Return the files at `rows`, or where the store holds their pictures."""
        paths = [self.paths[row] for row in rows.tolist()]
        if self.store is None or self.rows is None:
            return [Source(path) for path in paths]
        store, limit = str(self.store.path), self.store.limit
        entries = self.store.index[self.rows[rows].numpy()].tolist()
        return [
            Source((store, *entry, path, limit), None, path)
            for entry, path in zip(entries, paths, strict=True)
        ]


def split_files(data: ImageData, name: str) -> Sequence[str] | None:
    """Return the image file of each sample of a split; None if they are not files, or not known.

    They are not known of a sample of a split that is held in memory.
    """
    split = data.splits()[name]
    if isinstance(split, OnDisk):
        return split.paths
    if data.record is None or data.record.listing is None or name not in data.record.rows:
        return None
    files = data.record.files(name)
    return files if len(files) == len(split) else None
