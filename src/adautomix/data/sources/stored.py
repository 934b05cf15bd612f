"""Store images that come as objects or bytes in the cache, and list them from there."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from adautomix.data.cache import cache_folder, writing
from adautomix.data.sources.listing import Listing, from_splits

_SUFFIXES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
_PER_FOLDER = 1000


class Item(NamedTuple):
    """The bytes of an image file and its label."""

    content: bytes
    label: int


def store_items(
    key: str,
    name: str,
    classes: Sequence[str],
    items: Mapping[str, Iterable[Item]],
    cache_dir: Path | None,
) -> Listing:
    """Return a listing of images, after writing them to the cache if they are absent.

    Args:
        key: name of the folder; it must change with the content.
        name: name of the data set.
        classes: names of the classes.
        items: the images of each split; only read if the folder does not exist.
        cache_dir: see `load_data`.

    Raises:
        RunError: the cache cannot be written.
    """
    folder = cache_folder(cache_dir, key)
    index = folder / "index.json"
    stored = not index.is_file()
    if stored:
        with writing(folder) as beside:
            written = {split: _write(beside, split, some) for split, some in items.items()}
            (beside / index.name).write_text(json.dumps(written))
    listed: dict[str, list[tuple[str, int]]] = json.loads(index.read_text())
    pairs = {
        split: [(str(folder / path), label) for path, label in some]
        for split, some in listed.items()
    }
    listing = from_splits(folder, classes, pairs, name)
    how = "were written" if stored else "are kept"
    return listing.noting(f"the images {how} once as files in {folder}")


def png_bytes(image: object) -> bytes:
    """Return a PIL image as a lossless PNG file."""
    from PIL import Image

    assert isinstance(image, Image.Image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write(folder: Path, split: str, items: Iterable[Item]) -> list[tuple[str, int]]:
    """Write the images of a split; return their paths relative to the folder and their labels."""
    written = []
    for number, item in enumerate(items):
        start = item.content[:4]
        suffix = next((s for magic, s in _SUFFIXES.items() if start.startswith(magic)), "")
        path = Path(split, f"{number // _PER_FOLDER:05}", f"{number:08}{suffix}")
        if number % _PER_FOLDER == 0:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(item.content)
        written.append((str(path), item.label))
    return written
