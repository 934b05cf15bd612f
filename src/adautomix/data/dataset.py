"""What a loaded data set is: its classes, its splits and how it likes to be augmented."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from adautomix.data.color import Color as Color
from adautomix.data.decoding.decoders import BadRows, DecoderPool
from adautomix.data.decoding.worker_pool import ahead
from adautomix.data.split_record import SplitRecord
from adautomix.errors import RunError

_CHUNK = 16  # images of a batch that one decoding process takes
_PREFETCH = 4  # batches decoded ahead

SMALL = 96  # up to this side, images are shifted within padding; larger ones are zoomed into
Crop = Literal["pad", "resized"]


def default_crop(image_size: int) -> Crop:
    """The random crop that suits images of this side."""
    return "pad" if image_size <= SMALL else "resized"


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


@dataclass(frozen=True)
class OnDisk:
    """A split too big for memory: files, decoded in processes a few batches ahead.

    Gives the same numbers as `InMemory`. Files are not tried beforehand: an unreadable one ends
    the reading with a RunError that names it.
    """

    paths: Sequence[str]
    side: int
    decoders: DecoderPool
    labels: Tensor
    """int64 `[n]`."""

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device) -> Self:
        """The split with its batches delivered to `device`."""
        return type(self)(self.paths, self.side, self.decoders, self.labels.to(device))

    def subset(self, rows: Tensor) -> Self:
        """The files at `rows`."""
        paths = [self.paths[row] for row in rows.tolist()]
        return type(self)(paths, self.side, self.decoders, self.labels[rows])

    def read(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Decode ahead; copy to the device without waiting for it."""
        for pending in ahead((self._begin(batch) for batch in batches), _PREFETCH):
            yield self._finish(pending)

    def _begin(self, batch: Tensor) -> "_Pending":
        paths = [self.paths[row] for row in batch.tolist()]
        pinned = self.labels.device.type == "cuda"
        shape = (len(paths), self.side, self.side, 3)
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        pixels = images.numpy()
        chunks = [slice(start, start + _CHUNK) for start in range(0, len(paths), _CHUNK)]
        parts = [(paths[at], self.decoders.decode(paths[at], pixels[at])) for at in chunks]
        return _Pending(batch, images, parts)

    def _finish(self, pending: "_Pending") -> tuple[Tensor, Tensor]:
        for paths, decoding in pending.parts:
            for position, reason in decoding.result().items():
                raise RunError(
                    f"cannot read image {paths[position]}: {reason}; remove it, or set skip_bad "
                    "to check every image first and leave out the unreadable"
                )
        device = self.labels.device
        index = pending.batch.to(device, non_blocking=True)
        images = pending.images.to(device, non_blocking=True)
        return images.permute(0, 3, 1, 2), self.labels[index]


@dataclass(frozen=True)
class _Pending:
    """A batch being decoded."""

    batch: Tensor
    images: Tensor
    parts: list[tuple[list[str], Future[BadRows]]]
    """Paths and outcome of each chunk."""
