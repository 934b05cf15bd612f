"""A folder of images as a list: `train/<class>/*` with `test/` or `val/`, or one `<class>/*`."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from adautomix.errors import UsageError

IMAGE_TYPES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".avif",
)


class ImageFile(NamedTuple):
    """An image file as its folder lists it."""

    path: str
    size: int
    modified: int
    """Nanoseconds."""


@dataclass(frozen=True)
class Listing:
    """Every image of a folder, tree by tree, class by class, sorted by path."""

    root: Path
    classes: tuple[str, ...]
    files: list[ImageFile]
    labels: list[int]
    given: dict[str, range]
    """Rows of "train", "test" and perhaps "val"; or of "all" where the folder has no splits."""

    def fingerprint(self) -> str:
        """Changes when any file is added, removed, moved within the folder or written to."""
        digest = hashlib.blake2b(digest_size=16)
        start = len(str(self.root))
        for path, size, modified in self.files:
            digest.update(os.fsencode(f"{path[start:]}\0{size}\0{modified}\0"))
        return digest.hexdigest()


def list_folder(root: Path) -> Listing:
    """List a folder's images by class.

    Nested folders belong to their class and symbolic links are followed; hidden files and files
    that are not images by name are passed over. Classes are sorted by name, or by number if
    all names are numbers. Raises UsageError, naming what is wrong, for a folder without class
    folders, fewer than two classes, a class without images, or a class that is only tested.
    """
    trees = _trees(root)
    first = next(iter(trees.values()))
    classes = _class_names(first)
    if len(classes) < 2:
        raise UsageError(_too_few(first, classes))
    files: list[ImageFile] = []
    labels: list[int] = []
    given: dict[str, range] = {}
    for split, tree in trees.items():
        begin = len(files)
        for name in _class_names(tree):
            if name not in classes:
                raise UsageError(f"class {name!r} is in {tree} but not in {first}: add or remove")
            found = sorted(_images(tree / name))
            if not found and tree == first:
                types = " ".join(IMAGE_TYPES)
                raise UsageError(f"class folder {tree / name} holds no image ({types})")
            files += found
            labels += [classes.index(name)] * len(found)
        given[split] = range(begin, len(files))
        if not given[split]:
            raise UsageError(f"folder {tree} holds no image of any class: add some or remove it")
    return Listing(root, classes, files, labels, given)


def _trees(root: Path) -> dict[str, Path]:
    """The folder of class folders for each split; the one to train on comes first."""
    train, val, test = root / "train", root / "val", root / "test"
    # A folder "train" without folders in it is a class: pictures of trains.
    if not (train.is_dir() and _class_names(train)):
        return {"all": root}
    if test.is_dir():
        return {"train": train, "test": test} | ({"val": val} if val.is_dir() else {})
    return {"train": train, "test": val} if val.is_dir() else {"all": train}


def _class_names(tree: Path) -> tuple[str, ...]:
    with os.scandir(tree) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]
    numbered = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numbered else 0, name)))


def _images(folder: Path) -> Iterator[ImageFile]:
    """The images in a folder and below; each real folder once, so that links cannot loop."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        status = path.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name[0] == ".":
                    continue
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                elif entry.name.lower().endswith(IMAGE_TYPES):
                    yield _image_file(entry)


def _image_file(entry: os.DirEntry[str]) -> ImageFile:
    try:
        status = entry.stat()
    except OSError:  # a link to nowhere: it will be named as unreadable when it is decoded
        return ImageFile(entry.path, 0, 0)
    return ImageFile(entry.path, status.st_size, status.st_mtime_ns)


def _too_few(tree: Path, classes: tuple[str, ...]) -> str:
    layout = f"put the images of each class into a folder of its own, {tree}/<class>/"
    if classes:
        return f"folder {tree} has only one class, {classes[0]!r}, and two are needed: {layout}"
    return f"folder {tree} has no class folders: {layout}"
