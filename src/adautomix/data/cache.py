"""On-disk cache of decoded images and of measurements.

Entries are written to a temporary folder that is then renamed, so readers never see a partial
entry. Every file has checksums; a damaged entry counts as absent.
"""

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from adautomix.data.color import Moments, Pixels, image_moments
from adautomix.data.decoding.decoders import BadRows, Outcome
from adautomix.errors import RunError
from adautomix.files import TEMPORARY_SUFFIX, atomic_folder

FORMAT = 2  # increment it when decoding produces different pixels
ABANDONED = 3600.0
"""Seconds without a write after which the temporary folder of a killed process is deleted."""

_BLOCK = 2**24  # bytes per checksum
_THREADS = 4  # zlib.crc32 releases the GIL
Stored = TypeVar("Stored")

_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError)


@dataclass(frozen=True)
class Entry:
    """Decoded center squares of all files of a data set."""

    pixels: Pixels
    """uint8 `[n, S, S, 3]`, memory-mapped; zeros for an unreadable file."""
    moments: Moments
    """`[n, 2, 3]`, see `color.image_moments`."""
    bad: BadRows
    plain: list[int]
    """Rows of images that have only a few colors."""


@dataclass(frozen=True)
class PictureStore:
    """Whole pictures of various sizes, stored one after the other in a single file."""

    path: Path
    """File that holds the pixels."""
    index: npt.NDArray[np.int64]
    """`[n, 4]`: byte offset, width, height and CRC-32 per picture; zeros for an unreadable file."""
    limit: int | None
    """Largest shorter side in pixels; larger pictures were downscaled to it. None: no limit."""
    bad: BadRows
    plain: list[int]


def cache_folder(given: Path | None, fingerprint: str) -> Path:
    """Return the cache folder for the files with this fingerprint.

    Args:
        given: root of the cache; None means $ADAUTOMIX_CACHE if it is set, else
            ~/.cache/adautomix.
        fingerprint: hash that identifies the files.
    """
    root = given or Path(os.environ.get("ADAUTOMIX_CACHE") or "~/.cache/adautomix")
    return root.expanduser() / f"{fingerprint}-v{FORMAT}"


# ---------------------------------------------------------------------- squares


def load_entry(folder: Path, images: int) -> Entry | None:
    """Load the entry if it is intact and holds this many images; None otherwise."""
    try:
        facts = _read_facts(folder)
        _check(folder, facts, "pixels.npy", "moments.npy")
        bad, plain = _found(facts)
        pixels = np.load(folder / "pixels.npy", mmap_mode="c")
        moments = np.load(folder / "moments.npy")
    except _DAMAGE:
        return None
    sound = len(pixels) == len(moments) == images
    return Entry(pixels, moments, bad, plain) if sound else None


def store_entry(
    folder: Path, shape: tuple[int, ...], chunks: Generator[tuple[Pixels, Outcome]]
) -> Entry:
    """Write decoded chunks as they arrive, replacing an existing entry, and load the result.

    Args:
        folder: folder of the entry.
        shape: `(n, S, S, 3)` of all chunks together.
        chunks: pixels `[k, S, S, 3]` and decoding outcome of consecutive images; closed at the end.

    Raises:
        RunError: the disk is full or not writable.
    """
    moments: list[Moments] = []
    found = Outcome()

    def measured() -> Iterator[Pixels]:
        for pixels, outcome in chunks:
            moments.append(image_moments(pixels))
            found.bad.update(outcome.bad)
            found.plain.extend(outcome.plain)
            yield pixels

    with closing(chunks), writing(folder) as beside:
        _write_array(beside / "pixels.npy", shape, measured())
        np.save(beside / "moments.npy", np.concatenate(moments))
        _write_facts(beside, {"bad": found.bad, "plain": found.plain})
    return _read_back(folder, load_entry(folder, shape[0]))


def load_pixels(folder: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Memory-map the cached images if they are intact and of this shape; None otherwise."""
    try:
        _check(folder, _read_facts(folder), "pixels.npy")
        pixels = np.load(folder / "pixels.npy", mmap_mode="c")
    except _DAMAGE:
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def store_pixels(folder: Path, shape: tuple[int, ...], chunks: Iterable[Pixels]) -> Pixels:
    """Write chunks of images `[k, S, S, 3]` to `folder` as they arrive, and load the result.

    Raises:
        RunError: the disk is full or not writable.
    """
    with writing(folder) as beside:
        _write_array(beside / "pixels.npy", shape, chunks)
        _write_facts(beside, {})
    return _read_back(folder, load_pixels(folder, shape))


def _write_array(path: Path, shape: tuple[int, ...], chunks: Iterable[Pixels]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for pixels in chunks:
            file.write(pixels.data)


# ---------------------------------------------------------------------- whole pictures


def load_store(folder: Path, images: int, limit: int | None) -> PictureStore | None:
    """Load the store if it is intact and holds this many images; None otherwise.

    The checksum of a picture's pixels is verified each time the picture is read, not here.
    """
    try:
        facts = _read_facts(folder)
        _check(folder, facts, "index.npy")
        index = np.load(folder / "index.npy")
        bad, plain = _found(facts)
        whole = (folder / "pixels.bin").stat().st_size == facts["bytes"]
    except _DAMAGE:
        return None
    sound = whole and len(index) == images
    return PictureStore(folder / "pixels.bin", index, limit, bad, plain) if sound else None


def store_pictures(
    folder: Path, images: int, limit: int | None, chunks: Generator[tuple[list[Pixels], Outcome]]
) -> PictureStore:
    """Write whole pictures as they arrive, replacing an existing store, and load the result.

    Args:
        folder: folder of the store.
        images: number of pictures in all chunks together.
        limit: see `PictureStore.limit`.
        chunks: pictures `[H, W, 3]` and decoding outcome of consecutive files; closed at the end.

    Raises:
        RunError: the disk is full or not writable.
    """
    index: list[tuple[int, int, int, int]] = []
    found = Outcome()
    offset = 0
    with closing(chunks), writing(folder) as beside:
        with (beside / "pixels.bin").open("wb") as file:
            for pictures, outcome in chunks:
                found.bad.update(outcome.bad)
                found.plain.extend(outcome.plain)
                for picture in pictures:
                    height, width, _ = picture.shape
                    index.append((offset, width, height, zlib.crc32(picture.data)))
                    offset += file.write(picture.data)
        np.save(beside / "index.npy", np.array(index, np.int64))
        facts = {"bad": found.bad, "plain": found.plain, "bytes": offset}
        _write_facts(beside, facts, unchecked=("pixels.bin",))
    return _read_back(folder, load_store(folder, images, limit))


# ---------------------------------------------------------------------- small facts


def remembered(folder: Path, compute: Callable[[], Any]) -> Any:
    """Return the small JSON value cached in `folder`; compute and store it if it is absent."""
    try:
        return _read_facts(folder)["value"]
    except _DAMAGE:
        value = compute()
    with writing(folder) as beside:
        _write_facts(beside, {"value": value})
    return value


def _read_facts(folder: Path) -> dict[str, Any]:
    """Read the facts in `meta.json`; any of the errors in `_DAMAGE` means that it is damaged."""
    meta = json.loads((folder / "meta.json").read_text())
    facts: dict[str, Any] = meta["facts"]
    if zlib.crc32(json.dumps(facts).encode()) != meta["checksum"]:
        raise ValueError("damaged")
    return facts


def _write_facts(folder: Path, facts: Mapping[str, Any], unchecked: tuple[str, ...] = ()) -> None:
    """Write `meta.json` with the facts and the checksums of the folder's other files."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in unchecked)
    sums = {name: checksums(folder / name) for name in names}
    # The checksum must cover what a reader parses, and JSON turns keys into strings.
    content = json.loads(json.dumps({**facts, "checksums": sums}))
    meta = {"facts": content, "checksum": zlib.crc32(json.dumps(content).encode())}
    (folder / "meta.json").write_text(json.dumps(meta))


def _found(facts: Mapping[str, Any]) -> tuple[BadRows, list[int]]:
    bad = {int(row): str(reason) for row, reason in facts["bad"].items()}
    return bad, [int(row) for row in facts["plain"]]


def checksums(path: Path) -> list[int]:
    """CRC-32 of each 16 MiB block of a file, computed in parallel."""

    def one(start: int) -> int:
        with path.open("rb") as file:
            file.seek(start)
            return zlib.crc32(file.read(_BLOCK))

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(one, range(0, path.stat().st_size, _BLOCK)))


def _check(folder: Path, facts: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if checksums(folder / name) != facts["checksums"][name]:
            raise ValueError("damaged")


# ---------------------------------------------------------------------- writing


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` when the block completes.

    Raises:
        RunError: the disk is full or not writable.
    """
    sweep(folder.parent.parent)
    try:
        with atomic_folder(folder, concurrent=True) as temporary:
            yield temporary
    except OSError as error:
        raise RunError(
            f"cannot write the image cache in {folder.parent}: {error.strerror or error}; free "
            "space there, or set ADAUTOMIX_CACHE to another folder"
        ) from error


def sweep(root: Path) -> None:
    """Delete temporary folders that killed processes left in the cache."""
    with suppress(OSError):
        for folder in root.glob(f"*/*{TEMPORARY_SUFFIX}"):
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if newest < time.time() - ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)


def _read_back(folder: Path, entry: Stored | None) -> Stored:
    if entry is None:
        raise RunError(f"the image cache in {folder} cannot be read back: delete it and try again")
    return entry
