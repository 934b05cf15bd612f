"""Listed image files: decoded once into the cache, or at every reading if it is too big."""

import hashlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adautomix.data.cache import Entry, cache_folder, load_entry, remembered, store_entry
from adautomix.data.color import Color, Pixels, image_moments, mean_and_std
from adautomix.data.dataset import SMALL, Collection, InMemory, OnDisk, Split, default_crop
from adautomix.data.decoding.decoders import BadRows, DecoderPool, decode_all
from adautomix.data.decoding.worker import is_readable
from adautomix.data.sources.listing import Listing
from adautomix.errors import UsageError

_LARGE = 224  # what the network sees of images that are larger or of several sizes
_SAMPLE = 2048  # training images that a set too big for memory is measured on


def stored_side(image_size: int) -> int:
    """Side of the squares kept for a network that sees `image_size`: room to crop from."""
    return image_size if default_crop(image_size) == "pad" else round(image_size * 256 / 224)


class ImageFolder:
    """Listed image files and how they are read.

    `image_size` None takes the images' own size where all are squares of one small size, else
    224.
    """

    def __init__(
        self,
        listing: Listing,
        *,
        image_size: int | None,
        workers: int | None,
        cache_dir: Path | None,
        progress: bool,
    ) -> None:
        self.listing = listing
        self.paths = [file.path for file in self.listing.files]
        self.workers = workers
        self.progress = progress
        self.cache = cache_folder(cache_dir, self.listing.fingerprint())
        if image_size is None:
            image_size = int(remembered(self.cache / "size", lambda: _natural_size(self.paths)))
        self.image_size = image_size
        self.side = stored_side(image_size)

    def read(self, *, skip_bad: bool, memory_limit: int) -> Collection:
        """The folder's images, in memory if they take at most `memory_limit` bytes.

        Raises UsageError for an unreadable image unless `skip_bad`. Of images that are not kept
        in memory this is found out only for `skip_bad`, else when they are met.
        """
        labels = torch.tensor(self.listing.labels)
        if len(self.paths) * self.side**2 * 3 > memory_limit:
            files = OnDisk(self.paths, self.side, DecoderPool(self.workers), labels)
            return self._collection(files, self._tried() if skip_bad else {}, self._measure_sample)
        entry = self._entry()
        if not skip_bad:
            _refuse(self.paths, entry.bad)
        images = InMemory(torch.from_numpy(entry.pixels), torch.arange(len(labels)), labels)
        return self._collection(
            images, entry.bad, lambda rows: mean_and_std(entry.moments[rows.numpy()])
        )

    def _collection(
        self, images: Split, bad: BadRows, measure: Callable[[Tensor], tuple[Color, Color]]
    ) -> Collection:
        given = {
            split: torch.tensor([row for row in rows if row not in bad], dtype=torch.int64)
            for split, rows in self.listing.given.items()
        }
        return Collection(
            classes=self.listing.classes,
            images=images,
            given=given,
            image_size=self.image_size,
            measure=measure,
            pad=round(self.image_size / 8),
            bad_files=tuple(self.paths[row] for row in bad),
        )

    def _entry(self) -> Entry:
        """The decoded images, from the cache unless a bad file has become readable."""
        folder = self.cache / f"pixels-{self.side}"
        entry = load_entry(folder, len(self.paths))
        if entry is None or any(is_readable(self.paths[row], self.side) for row in entry.bad):
            shape = (len(self.paths), self.side, self.side, 3)
            entry = store_entry(folder, shape, self._decode(self.paths))
        return entry

    def _tried(self) -> BadRows:
        """Which files are unreadable, found out by decoding every one."""
        rows: dict[str, str] = remembered(
            self.cache / "bad",
            lambda: {row: why for _, bad in self._decode(self.paths) for row, why in bad.items()},
        )
        return {int(row): reason for row, reason in rows.items()}

    def _measure_sample(self, rows: Tensor) -> tuple[Color, Color]:
        sample = rows[:: -(-len(rows) // _SAMPLE)]
        paths = [self.paths[row] for row in sample.tolist()]
        name = hashlib.blake2b(sample.numpy().tobytes(), digest_size=8).hexdigest()

        def measure() -> tuple[Color, Color]:
            moments = []
            for pixels, bad in self._decode(paths):
                _refuse(paths, bad)
                moments.append(image_moments(pixels))
            return mean_and_std(np.concatenate(moments))

        mean, std = remembered(self.cache / f"color-{self.side}-{name}", measure)
        return tuple(mean), tuple(std)

    def _decode(self, paths: Sequence[str]) -> Generator[tuple[Pixels, BadRows]]:
        return decode_all(paths, self.side, workers=self.workers, progress=self.progress)


def _refuse(paths: Sequence[str], bad: BadRows) -> None:
    for row, reason in bad.items():
        raise UsageError(
            f"cannot read image {paths[row]}: {reason} (one of {len(bad)} unreadable); mend or "
            "remove it, or set skip_bad to go on without such files"
        )


def _natural_size(paths: Sequence[str]) -> int:
    """The side of the images if all are squares of one small size, else 224."""
    sizes: set[tuple[int, int]] = set()
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.add(image.size)
        except Exception:  # it will be named when it is decoded
            continue
        width, height = image.size
        if len(sizes) > 1 or width != height or width > SMALL:
            return _LARGE
    return sizes.pop()[0] if sizes else _LARGE
