"""What was decoded or measured once, kept on disk.

Everything is written beside and renamed, so nothing half-written is ever seen, and everything has
checksums: what is damaged all the same counts as absent.
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

FORMAT = 2  # raise it when decoding gives other pixels
ABANDONED = 3600.0
"""Seconds without a write after which the temporary folder of a killed process is deleted."""

_BLOCK = 2**24  # bytes that one checksum covers
_THREADS = 4  # zlib.crc32 releases the GIL
Stored = TypeVar("Stored")

_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError)


@dataclass(frozen=True)
class Entry:
    """The decoded squares of a folder."""

    pixels: Pixels
    """`[n, S, S, 3]`, mapped rather than read; zeros for an unreadable file."""
    moments: Moments
    """`[n, 2, 3]`, see `color.image_moments`."""
    bad: BadRows
    plain: list[int]
    """Rows of pictures of only a few colors."""


@dataclass(frozen=True)
class PictureStore:
    """Whole pictures of various sizes, one after the other in a file."""

    path: Path
    """Of the file."""
    index: npt.NDArray[np.int64]
    """`[n, 4]`: offset, width, height and CRC-32 of each picture; all 0 for an unreadable file."""
    limit: int | None
    """Side that longer shorter sides were shrunk to."""
    bad: BadRows
    plain: list[int]


def cache_folder(given: Path | None, fingerprint: str) -> Path:
    """Where to keep what is known of some files.

    Inside the cache, which is at `given`, else at $ADAUTOMIX_CACHE, else ~/.cache/adautomix.
    """
    root = given or Path(os.environ.get("ADAUTOMIX_CACHE") or "~/.cache/adautomix")
    return root.expanduser() / f"{fingerprint}-v{FORMAT}"


# ---------------------------------------------------------------------- squares


def load_entry(folder: Path, images: int) -> Entry | None:
    """The entry of so many images; None if it is absent or damaged."""
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
    """Write decoded chunks as they come, in the place of any entry that is there; load it.

    Raises RunError, naming the folder, where the disk is full or not writable.
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
    """Kept images of this shape, mapped rather than read; None if absent or damaged."""
    try:
        _check(folder, _read_facts(folder), "pixels.npy")
        pixels = np.load(folder / "pixels.npy", mmap_mode="c")
    except _DAMAGE:
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def store_pixels(folder: Path, shape: tuple[int, ...], chunks: Iterable[Pixels]) -> Pixels:
    """Write chunks of images `[k, S, S, 3]` as they come, in a folder of their own; load them.

    Raises RunError, naming the folder, where the disk is full or not writable.
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
    """The stored pictures of so many files; None if they are absent or damaged.

    The pixels are not checked here: each picture is, whenever it is read.
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
    """Write whole pictures as they come, in the place of those that are there; load them.

    Raises RunError, naming the folder, where the disk is full or not writable.
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
    """A small JSON value that is computed once and kept in a folder of its own."""
    try:
        return _read_facts(folder)["value"]
    except _DAMAGE:
        value = compute()
    with writing(folder) as beside:
        _write_facts(beside, {"value": value})
    return value


def _read_facts(folder: Path) -> dict[str, Any]:
    """The content of `meta.json`; raises ValueError and the like where it is damaged."""
    meta = json.loads((folder / "meta.json").read_text())
    facts: dict[str, Any] = meta["facts"]
    if zlib.crc32(json.dumps(facts).encode()) != meta["checksum"]:
        raise ValueError("damaged")
    return facts


def _write_facts(folder: Path, facts: Mapping[str, Any], unchecked: tuple[str, ...] = ()) -> None:
    """Write `meta.json`, with the checksums of the files that are in the folder."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in unchecked)
    sums = {name: checksums(folder / name) for name in names}
    # Through JSON, as it will be read: its keys are text.
    content = json.loads(json.dumps({**facts, "checksums": sums}))
    meta = {"facts": content, "checksum": zlib.crc32(json.dumps(content).encode())}
    (folder / "meta.json").write_text(json.dumps(meta))


def _found(facts: Mapping[str, Any]) -> tuple[BadRows, list[int]]:
    bad = {int(row): str(reason) for row, reason in facts["bad"].items()}
    return bad, [int(row) for row in facts["plain"]]


def checksums(path: Path) -> list[int]:
    """CRC-32 of each block of a file."""

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
    """A new folder to write to, which replaces `folder` once it is complete."""
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
    """Delete what killed processes left half-written in the cache."""
    with suppress(OSError):
        for folder in root.glob(f"*/*{TEMPORARY_SUFFIX}"):
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if newest < time.time() - ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)


def _read_back(folder: Path, entry: Stored | None) -> Stored:
    if entry is None:
        raise RunError(f"the image cache in {folder} cannot be read back: delete it and try again")
    return entry
