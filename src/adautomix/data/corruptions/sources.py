"""Sources of corrupted images: generated here and cached, or read from published files."""

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

_SMALLEST = 32  # smallest side in pixels that the library accepts
_BATCH = 256  # images per batch written to the cache


class CorruptionSource(ABC):
    """A source of corrupted images.

    Attributes:
        name: name of the source in reports.
        corruptions: available corruptions, in the order of `CORRUPTIONS`.
    """

    name: str
    corruptions: tuple[str, ...]

    @abstractmethod
    def split(self, corruption: str, severity: int) -> Split:
        """Return all images under one corruption at one severity."""

    def first(self, corruption: str, severity: int) -> Tensor:
        """Return the first of these images, uint8 `[3, S, S]`."""
        return first_image(self.split(corruption, severity))


def first_image(split: Split) -> Tensor:
    """Return the first image of a split, uint8 `[3, S, S]`."""
    images, _ = next(iter(split.read([torch.tensor([0])])))
    return images[0]


class GeneratedCorruptions(CorruptionSource):
    """Corruptions of the images of a split, generated here and cached.

    Args:
        clean: the split of clean images.
        image_size: side of the network's input in pixels.
        seed: random seed of the corruptions.
        corrupters: processes that corrupt images; the caller closes the pool.
        keep: nothing is cached if all corruptions at all severities exceed this size in bytes.

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
        """Return all images under one corruption at one severity, generated at every read."""
        rows = torch.arange(len(self.clean))
        return Corrupted(
            self.clean, rows, self.image_size, corruption, severity, self.seed, self.corrupters
        )

    def split(self, corruption: str, severity: int) -> Split:
        """Return the cached images, generating and caching them first if they are absent."""
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
        """Generate the first image without the others."""
        return first_image(self.fresh(corruption, severity))

    def _folder(self) -> Path:
        """Return the cache folder, which depends on the clean pixels, the seed and the library."""
        digest = blake2b(f"{version(LIBRARY)}/{self.seed}/{self.side}".encode(), digest_size=16)
        for pixels in chunks(self.clean, self.side):
            digest.update(pixels.data)
        return cache_folder(None, f"corrupted-{digest.hexdigest()}")


def chunks(split: Split, side: int) -> Iterator[Pixels]:
    """Yield the images of a split in order, in chunks `[k, side, side, 3]`."""
    for images, _ in split.read(torch.arange(len(split)).split(_BATCH)):
        yield channels_last(images, side)


class Arrays(CorruptionSource):
    """CIFAR-10-C and CIFAR-100-C as published, or arrays with the same layout.

    `<corruption>.npy` is uint8 `[5 n, S, S, 3]`, ordered by severity from 1 to 5, and `labels.npy`
    holds integers `[5 n]`.

    Args:
        folder: folder of the arrays.
        classes: class names of the network.

    Raises:
        UsageError: an array is missing, damaged or of the wrong shape, or the labels do not match
            the number of classes.
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
        """Return the fifth of a corruption's array that holds this severity."""
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
    """ImageNet-C, Tiny-ImageNet-C and similar folders: `<corruption>/<severity>/<class>/*`.

    Corruption folders may be nested in category folders, as in `blur/defocus_blur`. Images are
    decoded at every read, at the size of the network's input.

    Args:
        folder: root folder.
        classes: class names of the network.
        image_size: side of the network's input in pixels.
        decoders: processes that decode the images.

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
        """Return the files of one corruption at one severity."""
        folder = self.folders[corruption] / str(severity)
        if not folder.is_dir():
            raise UsageError(f"{folder} is missing: fetch it, or leave severity {severity} out")
        listing = list_folder(folder)
        for name in listing.classes:
            if name not in self.classes:
                raise UsageError(f"{folder} has a class {name!r} that the networks do not know")
        number = [self.classes.index(name) for name in listing.classes]
        labels = torch.tensor([number[label] for label in listing.class_indices])
        return OnDisk(listing.files.paths, self.image_size, self.decoders, labels)


def _find(folder: Path, corruption: str) -> Path | None:
    """Find the folder of a corruption in `folder` or in one of its subfolders."""
    places = [folder / corruption, *sorted(folder.glob(f"*/{corruption}"))]
    return next((place for place in places if place.is_dir()), None)


def open_published(
    folder: Path, classes: Sequence[str], *, image_size: int, decoders: DecoderPool
) -> CorruptionSource:
    """Open a folder of corrupted images in the layout of CIFAR-C or ImageNet-C.

    Args:
        folder: root folder.
        classes: class names of the network.
        image_size: side of the network's input in pixels.
        decoders: processes that decode image files.

    Raises:
        UsageError: the folder has neither layout, or its files are invalid.
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
