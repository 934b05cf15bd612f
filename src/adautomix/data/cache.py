"""What was decoded or measured once, kept on disk.

Everything is written beside and renamed, so nothing half-written is ever seen; what is damaged
all the same counts as absent.
"""

import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adautomix.data.color import Moments, Pixels, image_moments
from adautomix.data.decoding.decoders import BadRows
from adautomix.errors import RunError
from adautomix.files import atomic_folder

FORMAT = 1  # raise it when decoding gives other pixels


@dataclass(frozen=True)
class Entry:
    """The decoded images of a folder."""

    pixels: Pixels
    """`[n, S, S, 3]`, mapped rather than read; zeros for an unreadable file."""
    moments: Moments
    """`[n, 2, 3]`, see `color.image_moments`."""
    bad: BadRows


def cache_folder(given: Path | None, fingerprint: str) -> Path:
    """Where to keep what is known of some files.

    Inside the cache, which is at `given`, else at $ADAUTOMIX_CACHE, else ~/.cache/adautomix.
    """
    root = given or Path(os.environ.get("ADAUTOMIX_CACHE") or "~/.cache/adautomix")
    return root.expanduser() / f"{fingerprint}-v{FORMAT}"


def load_entry(folder: Path, images: int) -> Entry | None:
    """The entry of so many images; None if it is absent or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        bad = {int(row): str(reason) for row, reason in meta["bad"].items()}
        pixels = np.load(folder / "pixels.npy", mmap_mode="c")
        moments = np.load(folder / "moments.npy")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None
    sound = len(pixels) == len(moments) == images
    return Entry(pixels, moments, bad) if sound else None


def store_entry(
    folder: Path, shape: tuple[int, ...], chunks: Generator[tuple[Pixels, BadRows]]
) -> Entry:
    """Write decoded chunks as they come, in the place of any entry that is there; load it.

    Raises RunError, naming the folder, where the disk is full or not writable.
    """
    moments: list[Moments] = []
    bad: BadRows = {}

    def measured() -> Iterator[Pixels]:
        for pixels, unreadable in chunks:
            moments.append(image_moments(pixels))
            bad.update(unreadable)
            yield pixels

    with closing(chunks), writing(folder) as beside:
        _write_array(beside / "pixels.npy", shape, measured())
        np.save(beside / "moments.npy", np.concatenate(moments))
        (beside / "meta.json").write_text(json.dumps({"bad": bad}))
    entry = load_entry(folder, shape[0])
    if entry is None:
        raise RunError(f"the image cache in {folder} cannot be read back: delete it and try again")
    return entry


def load_pixels(folder: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Kept images of this shape, mapped rather than read; None if absent or damaged."""
    try:
        pixels = np.load(folder / "pixels.npy", mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def store_pixels(folder: Path, shape: tuple[int, ...], chunks: Iterable[Pixels]) -> Pixels:
    """Write chunks of images `[k, S, S, 3]` as they come, in a folder of their own; load them.

    Raises RunError, naming the folder, where the disk is full or not writable.
    """
    with writing(folder) as beside:
        _write_array(beside / "pixels.npy", shape, chunks)
    pixels = load_pixels(folder, shape)
    if pixels is None:
        raise RunError(f"the image cache in {folder} cannot be read back: delete it and try again")
    return pixels


def _write_array(path: Path, shape: tuple[int, ...], chunks: Iterable[Pixels]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for pixels in chunks:
            file.write(pixels.data)


def remembered(folder: Path, compute: Callable[[], Any]) -> Any:
    """A small JSON value that is computed once and kept in a folder of its own."""
    try:
        return json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError):
        value = compute()
    with writing(folder) as beside:
        (beside / "meta.json").write_text(json.dumps(value))
    return value


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which replaces `folder` once it is complete."""
    try:
        with atomic_folder(folder, concurrent=True) as temporary:
            yield temporary
    except OSError as error:
        raise RunError(
            f"cannot write the image cache in {folder.parent}: {error.strerror or error}; free "
            "space there, or set ADAUTOMIX_CACHE to another folder"
        ) from error
