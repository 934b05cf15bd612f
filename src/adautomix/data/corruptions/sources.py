"""Where corrupted images come from: made here and kept, or as somebody published them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adautomix.data.cache import cache_folder, load_pixels, store_pixels
from adautomix.data.color import Pixels
from adautomix.data.corruptions.corrupted import (
    CORRUPTIONS,
    LIBRARY,
    SEVERITIES,
    Corrupted,
    CorrupterPool,
    channels_last,
)
from adautomix.data.dataset import InMemory, OnDisk, Split
from adautomix.data.decoding.decoders import DecoderPool
from adautomix.data.sources.folders import list_folder
from adautomix.errors import UsageError

_SMALLEST = 32  # pixels per side that the library takes
_BATCH = 256  # images made at a time for the cache


class CorruptionSource(ABC):
    """Where corrupted images come from.

    Attributes:
        name: for the record.
        corruptions: which there are, in the usual order.
    """

    name: str
    corruptions: tuple[str, ...]

    @abstractmethod
    def split(self, corruption: str, severity: int) -> Split:
        """All images under one corruption at one severity."""

    def first(self, corruption: str, severity: int) -> Tensor:
        """The first of them, uint8 `[3, S, S]`."""
        return first_image(self.split(corruption, severity))


def first_image(split: Split) -> Tensor:
    """The first image of a split, uint8 `[3, S, S]`."""
    images, _ = next(iter(split.read([torch.tensor([0])])))
    return images[0]


class GeneratedCorruptions(CorruptionSource):
    """The images of a split, corrupted here and kept in the cache.

    Args:
        clean: the split.
        image_size: side of what the network sees.
        seed: of the corruptions.
        corrupters: the processes that make them; the caller's to close.
        keep: bytes of all corruptions at all severities above which none is kept.

    Raises:
        UsageError: the library is not installed, or the images are too small for it.
    """

    name = "generated"
    corruptions = CORRUPTIONS

    def __init__(
        self, clean: Split, *, image_size: int, seed: int, corrupters: CorrupterPool, keep: float
    ) -> None:
        if find_spec("imagecorruptions") is None:
            raise UsageError(
                "corrupted images are made by a library that is not installed: pip install "
                "'adautomix[corruption]', or name a folder of them with --corruption.folder"
            )
        self.side = min(image_size, first_image(clean).shape[-1])
        if self.side < _SMALLEST:
            raise UsageError(
                f"corruptions need images of at least {_SMALLEST} pixels per side and these have "
                f"{self.side}: leave the suite out, or train with --image-size {_SMALLEST} or more"
            )
        self.clean, self.image_size = clean, image_size
        self.seed, self.corrupters = seed, corrupters
        parts = len(CORRUPTIONS) * len(SEVERITIES)
        kept = parts * len(clean) * self.side**2 * 3 <= keep
        self.cache = self._folder() if kept else None

    def fresh(self, corruption: str, severity: int) -> Corrupted:
        """All images under one corruption at one severity, made when they are read."""
        rows = torch.arange(len(self.clean))
        return Corrupted(
            self.clean, rows, self.image_size, corruption, severity, self.seed, self.corrupters
        )

    def split(self, corruption: str, severity: int) -> Split:
        """The kept images; they are made and kept first where they are not there."""
        fresh = self.fresh(corruption, severity)
        if self.cache is None:
            return fresh
        folder = self.cache / f"{corruption}-{severity}"
        shape = (len(fresh), self.side, self.side, 3)
        pixels = load_pixels(folder, shape)
        if pixels is None:
            pixels = store_pixels(folder, shape, chunks(fresh, self.side))
        return InMemory(torch.from_numpy(pixels), torch.arange(len(fresh)), fresh.labels)

    def first(self, corruption: str, severity: int) -> Tensor:
        """The first image, made for itself."""
        return first_image(self.fresh(corruption, severity))

    def _folder(self) -> Path:
        """Where the images are kept: it changes with their pixels, seed and library."""
        digest = blake2b(f"{version(LIBRARY)}/{self.seed}/{self.side}".encode(), digest_size=16)
        for pixels in chunks(self.clean, self.side):
            digest.update(pixels.data)
        return cache_folder(None, f"corrupted-{digest.hexdigest()}")


def chunks(split: Split, side: int) -> Iterator[Pixels]:
    """The images of a split in order, some at a time: `[k, side, side, 3]`."""
    for images, _ in split.read(torch.arange(len(split)).split(_BATCH)):
        yield channels_last(images, side)


class Arrays(CorruptionSource):
    """CIFAR-10-C and CIFAR-100-C as published, or others that are laid out like them.

    `<corruption>.npy` is uint8 `[5 n, S, S, 3]`, severity 1 to 5 one after the other, and
    `labels.npy` integers `[5 n]`.

    Raises:
        UsageError: an array is missing, damaged or of another shape, or the labels are not those
            of so many classes.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.name = folder.name
        self.folder = folder
        self.corruptions = tuple(name for name in CORRUPTIONS if self._path(name).is_file())
        labels = _load(self._path("labels"))
        self.labels = torch.from_numpy(labels.astype(np.int64))
        found = self.labels.unique().tolist()
        if found != list(range(len(classes))):
            raise UsageError(
                f"{self._path('labels')} tells {len(found)} classes from {found[0]} to {found[-1]} "
                f"and there are {len(classes)}: are these the corruptions of another data set?"
            )

    def split(self, corruption: str, severity: int) -> Split:
        """A fifth of the array of a corruption."""
        path = self._path(corruption)
        pixels = _load(path)
        whole, shape = len(self.labels), pixels.shape
        sound = len(shape) == 4 and shape[0] == whole and shape[1] == shape[2] and shape[3] == 3
        if not sound or pixels.dtype != np.uint8 or whole % len(SEVERITIES):
            raise UsageError(
                f"{path} is {pixels.dtype} {list(shape)}: it should be uint8 [n, S, S, 3] with as "
                f"many images as labels.npy has labels ({whole}), a fifth for each severity"
            )
        images = whole // len(SEVERITIES)
        rows = torch.arange(images) + (severity - 1) * images
        return InMemory(torch.from_numpy(pixels), rows, self.labels[rows])

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def _load(path: Path) -> npt.NDArray[np.generic]:
    try:
        array: npt.NDArray[np.generic] = np.load(path, mmap_mode="c")
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: fetch the whole set again") from None
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} is damaged ({error}): fetch it again") from None
    return array


class Folders(CorruptionSource):
    """ImageNet-C, Tiny-ImageNet-C and the like: `<corruption>/<severity>/<class>/*`.

    The folders of corruptions may lie in folders of their kinds. Images are decoded as they are
    read, at the size of what the network sees.

    Raises:
        UsageError: a severity is missing or a class is unknown.
    """

    def __init__(
        self, folder: Path, classes: Sequence[str], *, image_size: int, decoders: DecoderPool
    ) -> None:
        self.name = folder.name
        self.classes, self.image_size, self.decoders = classes, image_size, decoders
        self.folders = {
            name: found for name in CORRUPTIONS if (found := _find(folder, name)) is not None
        }
        self.corruptions = tuple(self.folders)

    def split(self, corruption: str, severity: int) -> Split:
        """The files of one severity."""
        folder = self.folders[corruption] / str(severity)
        if not folder.is_dir():
            raise UsageError(f"{folder} is missing: fetch it, or leave severity {severity} out")
        listing = list_folder(folder)
        for name in listing.classes:
            if name not in self.classes:
                raise UsageError(f"{folder} has a class {name!r} that the networks do not know")
        number = [self.classes.index(name) for name in listing.classes]
        labels = torch.tensor([number[label] for label in listing.class_indices])
        return OnDisk([file.path for file in listing.files], self.image_size, self.decoders, labels)


def _find(folder: Path, corruption: str) -> Path | None:
    """The folder of a corruption, in `folder` or in a folder in it."""
    places = [folder / corruption, *sorted(folder.glob(f"*/{corruption}"))]
    return next((place for place in places if place.is_dir()), None)


def open_published(
    folder: Path, classes: Sequence[str], *, image_size: int, decoders: DecoderPool
) -> CorruptionSource:
    """The corrupted images that somebody made and put into a folder.

    Raises:
        UsageError: there are none, in either layout, or they are not as they should be.
    """
    if any((folder / f"{name}.npy").is_file() for name in CORRUPTIONS):
        return Arrays(folder, classes)
    source = Folders(folder, classes, image_size=image_size, decoders=decoders)
    if not source.corruptions:
        raise UsageError(
            f"no corrupted images in {folder}: it should hold fog.npy and so on with labels.npy, "
            "or fog/1/<class>/ and so on"
        )
    return source
