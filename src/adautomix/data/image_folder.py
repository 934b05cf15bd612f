"""Read listed image files: decode them once into the cache, or at every read if they are large."""

import hashlib
import shutil
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adautomix.data.cache import (
    PictureStore,
    cache_folder,
    load_entry,
    load_store,
    remembered,
    store_entry,
    store_pictures,
)
from adautomix.data.color import Color, Pixels, image_moments, mean_and_std
from adautomix.data.dataset import Collection, InMemory, OnDisk, Split
from adautomix.data.decoding.decoders import (
    BadRows,
    DecoderPool,
    Outcome,
    decode_squares,
    decode_whole,
)
from adautomix.data.preparation import (
    SMALL,
    PictureOptions,
    Preparation,
    default_crop,
    stored_side,
    whole,
)
from adautomix.data.sources.listing import Listing
from adautomix.decoder.files import open_file, open_image
from adautomix.errors import RunError, UsageError

_LARGE = 224  # default input size for images that are larger or of several sizes
_SAMPLE = 2048  # training images that moments are measured on if the data set exceeds the memory
_SAMPLE_SIDE = 256  # largest side in pixels of the squares that moments are measured on
_NATURAL = 20_000  # files whose headers are read to see whether all images have the same size
_SIZED = 256  # files whose headers are read to estimate the decoded size of all files


class ImageFolder:
    """Reader of listed image files.

    Args:
        listing: the files with their labels.
        image_size: side of the network's input in pixels. None uses the size of the images if all
            are squares of the same small size, else 224. Of more than 20,000 images, that many
            spread over the list are looked at.
        workers: number of decoding processes; None: one per processor.
        cache_dir: root of the cache, see `cache_folder`.
        progress: show a progress bar on standard error while decoding.
        options: the user's settings.
    """

    def __init__(
        self,
        listing: Listing,
        *,
        image_size: int | None,
        workers: int | None,
        cache_dir: Path | None,
        progress: bool,
        options: PictureOptions | None = None,
    ) -> None:
        self.listing = listing
        self.paths = listing.files.paths
        self.workers, self.progress, self.cache_dir = workers, progress, cache_dir
        self.options = options or PictureOptions()
        self.fingerprint = listing.fingerprint()
        self.known = cache_folder(cache_dir, self.fingerprint)
        if image_size is None:
            image_size = self._natural_size() or _LARGE
        self.image_size = image_size
        self.preparation = self.options.recorded or self._prepare()
        self.rules = self.preparation.rules(self.options.max_pixels, listing.crop_bottom)

    def read(self, *, skip_bad: bool, memory_limit: int) -> Collection:
        """Return the images, decoded in advance into the cache if the settings allow it.

        Args:
            skip_bad: skip unreadable files. This checks every file in advance; without it, files
                that are decoded at every read are only checked when they are read.
            memory_limit: largest size in bytes of images decoded in advance, unless the cache
                setting gives a side to downscale pictures to.

        Raises:
            UsageError: a file decoded in advance is unreadable, and `skip_bad` is off.
            RunError: the cache cannot be written.
        """
        if self.preparation.kind == "square" and self.options.cache != "off":
            if len(self.paths) * self.preparation.resize**2 * 3 <= memory_limit:
                return self._squares(skip_bad)
        elif (limit := self._limit(memory_limit)) is not None:
            return self._stored(skip_bad, limit or None)
        found = self._tried() if skip_bad else Outcome()
        return self._collection(self._files(), found, self._measure_sample)

    def _prepare(self) -> Preparation:
        """Choose center squares for small inputs, unless resized crops need the whole picture."""
        crop = self.options.crop
        crop = default_crop(self.image_size) if crop == "auto" else crop
        small = self.image_size <= SMALL
        if small and (crop != "resized" or self._natural_size() == self.image_size):
            return Preparation("square", stored_side(self.image_size), self.options.interpolation)
        return whole(self.image_size, self.options.crop_fraction, self.options.interpolation)

    # ------------------------------------------------------------------ decoded in advance

    def _squares(self, skip_bad: bool) -> Collection:
        folder, side = (
            self._content() / f"pixels-{self.preparation.resize}",
            self.preparation.resize,
        )
        entry = load_entry(folder, len(self.paths))
        if entry is None or self._any_readable(entry.bad):
            chunks = self._decode(self.paths)
            entry = store_entry(folder, (len(self.paths), side, side, 3), chunks)
        self._check_readable(entry.bad, skip_bad)
        moments, labels = entry.moments, torch.tensor(self.listing.labels)
        images = InMemory(torch.from_numpy(entry.pixels), torch.arange(len(labels)), labels)
        found = Outcome(entry.bad, entry.plain)
        return self._collection(images, found, lambda rows: mean_and_std(moments[rows.numpy()]))

    def _stored(self, skip_bad: bool, limit: int | None) -> Collection:
        folder = self._content() / f"whole-{limit or 'exact'}"
        store = load_store(folder, len(self.paths), limit)
        if store is None or self._any_readable(store.bad):
            self._check_space(folder, limit)
            chunks = decode_whole(
                self.paths, limit, self.rules, workers=self.workers, progress=self.progress
            )
            store = store_pictures(folder, len(self.paths), limit, chunks)
        self._check_readable(store.bad, skip_bad)
        found = Outcome(store.bad, store.plain)
        # Measured on the files, so that it does not depend on what is kept.
        return self._collection(self._files(store), found, self._measure_sample)

    def _check_readable(self, bad: BadRows, skip_bad: bool) -> None:
        if not skip_bad:
            _refuse(self.paths, bad)

    def _content(self) -> Path:
        """Return the cache folder of images decoded from this content with these rules."""
        from PIL import __version__ as pillow

        how = f"{self.fingerprint}/{self.rules}/{pillow}"
        key = hashlib.blake2b(how.encode(), digest_size=16).hexdigest()
        return cache_folder(self.cache_dir, key)

    def _any_readable(self, bad: BadRows) -> bool:
        """Return whether a file that was unreadable before can be read now."""
        paths = [self.paths[row] for row in bad]
        return bool(paths) and any(
            len(outcome.bad) < len(pixels) for pixels, outcome in self._decode(paths, quiet=True)
        )

    # ------------------------------------------------------------------ sizes

    def _natural_size(self) -> int:
        """Return the side of the images if all are squares of the same small size, else 0."""
        some = self.paths[:: -(-len(self.paths) // _NATURAL)]
        return int(remembered(self.known / "size", lambda: _square_side(some)))

    def _limit(self, memory_limit: int) -> int | None:
        """Return the limit of the cached pictures' shorter side (0: none); None without a cache."""
        if self.options.cache == "off":
            return None
        if self.options.cache != "exact":
            return self.options.cache
        return 0 if self._decoded_bytes(None) <= memory_limit else None

    def _decoded_bytes(self, limit: int | None) -> float:
        """Estimate the decoded size of all pictures in bytes from the headers of some of them."""
        paths = self.paths[:: -(-len(self.paths) // _SIZED)]
        areas = [_area(path, limit) for path in paths]
        return 3 * sum(areas) / len(areas) * len(self.paths)

    def _check_space(self, folder: Path, limit: int | None) -> None:
        needed = self._decoded_bytes(limit)
        place = next(path for path in folder.parents if path.exists())
        free = shutil.disk_usage(place).free
        if needed > free:
            raise RunError(
                f"the image cache needs about {needed / 2**30:.1f} GiB in {place}, and "
                f"{free / 2**30:.1f} GiB are free: free space, set a smaller cache, or cache off"
            )

    # ------------------------------------------------------------------ decoded at every read

    def _files(self, store: PictureStore | None = None) -> OnDisk:
        side = self.preparation.resize if self.preparation.kind == "square" else self.image_size
        return OnDisk(
            self.paths,
            side,
            DecoderPool(self.workers),
            torch.tensor(self.listing.labels),
            self.preparation.view,
            self.rules,
            store,
            None if store is None else torch.arange(len(self.paths)),
        )

    def _tried(self) -> Outcome:
        """Decode every file to find those that are unreadable or have only a few colors."""

        def decode() -> dict[str, object]:
            found = Outcome()
            for _, outcome in self._decode(self.paths):
                found.bad.update(outcome.bad)
                found.plain.extend(outcome.plain)
            return {"bad": found.bad, "plain": found.plain}

        known = remembered(self.known / f"tried-{self.options.max_pixels}", decode)
        return Outcome({int(row): why for row, why in known["bad"].items()}, known["plain"])

    def _measure_sample(self, rows: Tensor) -> tuple[Color, Color]:
        sample = rows[:: -(-len(rows) // _SAMPLE)]
        paths = [self.paths[row] for row in sample.tolist()]
        name = hashlib.blake2b(sample.numpy().tobytes(), digest_size=8).hexdigest()

        def measure() -> tuple[Color, Color]:
            moments = []
            for pixels, outcome in self._decode(paths):
                _refuse(paths, outcome.bad)
                moments.append(image_moments(pixels))
            return mean_and_std(np.concatenate(moments))

        mean, std = remembered(self.known / f"color-{self._side()}-{name}", measure)
        return tuple(mean), tuple(std)

    def _decode(
        self, paths: Sequence[str], *, quiet: bool = False
    ) -> Generator[tuple[Pixels, Outcome]]:
        return decode_squares(
            paths,
            self._side(),
            self.rules,
            workers=self.workers,
            progress=self.progress and not quiet,
        )

    def _side(self) -> int:
        """Return the side in pixels of the center squares that are decoded."""
        side = self.preparation.resize
        return side if self.preparation.kind == "square" else min(side, _SAMPLE_SIDE)

    def _collection(
        self, images: Split, found: Outcome, measure: Callable[[Tensor], tuple[Color, Color]]
    ) -> Collection:
        given = {
            split: torch.tensor([row for row in rows if row not in found.bad], dtype=torch.int64)
            for split, rows in self.listing.given.items()
        }
        return Collection(
            classes=self.listing.classes,
            images=images,
            given=given,
            image_size=self.image_size,
            measure=measure,
            pad=round(self.image_size / 8),
            bad_files=tuple(self.paths[row] for row in found.bad),
            plain_files=tuple(self.paths[row] for row in found.plain),
            preparation=self.preparation,
        )


def _refuse(paths: Sequence[str], bad: BadRows) -> None:
    for row, reason in bad.items():
        raise UsageError(
            f"cannot read image {paths[row]}: {reason} (one of {len(bad)} unreadable); mend or "
            "remove it, or go on without such files: --skip-bad (skip_bad: true)"
        )


def _square_side(paths: Sequence[str]) -> int:
    """Return the side of the images if all are squares of the same small size, else 0."""
    sizes: set[tuple[int, int]] = set()
    for path in paths:
        size = _image_size(path)
        if size is None:  # the file is reported when it is decoded
            continue
        sizes.add(size)
        if len(sizes) > 1 or size[0] != size[1] or size[0] > SMALL:
            return 0
    return sizes.pop()[0] if sizes else 0


def _image_size(path: str) -> tuple[int, int] | None:
    """Read width and height from a file's header, before rotation; None if it is unreadable."""
    try:
        with open_file(path) as file:
            return open_image(file, 2**62).size
    except Exception:  # Pillow's plugins raise arbitrary exceptions
        return None


def _area(path: str, limit: int | None) -> float:
    width, height = _image_size(path) or (0, 0)
    shorter = min(width, height)
    shrink = 1.0 if limit is None or shorter <= limit else limit / shorter
    return width * height * shrink**2
