"""Result of reading a source: image files with labels, or arrays in memory."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from torch import Tensor

from adautomix.data.sources.file_table import FileTable, ImageFile, image_file, recorded
from adautomix.decoder.files import open_file
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
"""Suffixes of files that count as images."""

TRIED_TYPES = ("", ".jfif", ".jpe", ".jp2", ".j2k")
"""Suffixes of files that count as images if their first bytes identify them as such."""

SYSTEM_FOLDERS = ("@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information")
"""Folders that file managers and network drives create among the images."""

_ADVICE = {
    ".heic": "install pillow-heif and convert them to JPEG",
    ".heif": "install pillow-heif and convert them to JPEG",
    ".dng": "develop them to JPEG or TIFF",
    ".svg": "render them to PNG",
    ".pdf": "render them to PNG",
    ".mp4": "extract frames as JPEG",
    ".mov": "extract frames as JPEG",
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".gz": "unpack it",
    ".tgz": "unpack it",
}
_SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n",
    b"GIF8",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
)


Label = int | list[float]
"""Class index of an image, or a multi-hot vector if images may have several labels."""


@dataclass
class PassedOver:
    """Counts of files and folders that a reader skipped."""

    hidden: int = 0
    system: Counter[str] = field(default_factory=Counter)
    """System folders, by name."""
    types: Counter[str] = field(default_factory=Counter)
    """Files that do not count as images, by suffix."""
    tried: int = 0
    """Files without a usual suffix that are images by their content."""
    links: int = 0
    """Links to folders that were listed already."""

    def sentences(self) -> tuple[str, ...]:
        """Return one sentence per kind of skipped item."""
        found = []
        if self.hidden:
            hidden = count(self.hidden, "hidden file or folder", "hidden files or folders")
            found.append(f"passed over {hidden}")
        for name, number in sorted(self.system.items()):
            found.append(f"passed over {count(number, 'folder')} named {name}")
        for suffix, number in sorted(self.types.items()):
            advice = f": {_ADVICE[suffix]}" if suffix in _ADVICE else ""
            kind = f"{suffix} file" if suffix else "suffixless file"
            found.append(f"passed over {count(number, kind)}{advice}")
        if self.tried:
            unusual = count(self.tried, "file")
            found.append(f"took {unusual} without a usual suffix for images by their content")
        if self.links:
            found.append(f"passed over {count(self.links, 'link')} to folders that count already")
        return tuple(found)


@dataclass(frozen=True)
class Listing:
    """The image files of a data set with their labels.

    Attributes:
        root: folder that the paths are shown relative to.
        classes: names of the classes; a label is the index of one.
        files: every image file.
        labels: the label of each file; all are of one kind.
        given: rows of the official splits ("train", "test", "val"), or of "all" if the source has
            no splits.
        name: name of the data set; "" means the name of the folder.
        crop_bottom: pixel rows removed from the bottom of every image before all other steps.
        notes: skipped files and choices made, one sentence each, for the data summary.
        warnings: suspected problems, one sentence each.
        hashes: hash of the content of each file; empty if it was not computed.
    """

    root: Path
    classes: tuple[str, ...]
    files: FileTable
    labels: list[Label]
    given: dict[str, Sequence[int]]
    name: str = ""
    crop_bottom: int = 0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return a hash that changes with the content, order and preparation of the images.

        Without content `hashes`, it depends on paths and time stamps. Different folders then never
        share a fingerprint, but neither do a folder and its copy.
        """
        digest = hashlib.blake2b(f"crop_bottom={self.crop_bottom}".encode(), digest_size=16)
        if self.hashes:
            digest.update("".join(self.hashes).encode())
        else:
            digest.update(self.identity().encode())
        return digest.hexdigest()

    def identity(self) -> str:
        """Return a hash that changes if a file is added, removed, moved, replaced or written to."""
        digest = hashlib.blake2b(digest_size=16)
        start = len(str(self.root))
        for path, *facts in self.files:
            digest.update(os.fsencode(f"{path[start:]}\0{facts}\0"))
        return digest.hexdigest()

    @property
    def class_indices(self) -> list[int]:
        """Return the labels of a data set with one class per file.

        Raises:
            UsageError: files have several labels.
        """
        indices = [label for label in self.labels if isinstance(label, int)]
        if len(indices) < len(self.labels):
            raise UsageError(f"{self.root} has several labels per image, and one is needed here")
        return indices

    def noting(self, *notes: str) -> Self:
        """Return the listing with further notes."""
        return replace(self, notes=(*self.notes, *notes))


@dataclass(frozen=True)
class Arrays:
    """The images of a data set that is held in memory.

    Attributes:
        name: name of the data set.
        classes: names of the classes; a label is the index of one.
        images: uint8 `[n, S, S, 3]`.
        labels: int64 `[n]`.
        given: int64 rows of the official splits ("train", "test", "val"), or of "all".
        padding: default padding of random crops, as a fraction of the images' side.
        flip: whether a mirrored image keeps its class.
        mean: per-channel mean used for published results, of pixels scaled to [0, 1]; None
            measures it.
        std: per-channel standard deviation used for published results; None measures it.
        notes: see `Listing`.
        warnings: see `Listing`.
    """

    name: str
    classes: tuple[str, ...]
    images: Tensor
    labels: Tensor
    given: dict[str, Tensor]
    padding: float = 1 / 8
    flip: bool = True
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def noting(self, *notes: str) -> Self:
        """Return the arrays with further notes."""
        return replace(self, notes=(*self.notes, *notes))


Found = Listing | Arrays
"""Result of reading a source."""


def from_splits(
    root: Path,
    classes: Sequence[str],
    splits: Mapping[str, Iterable[tuple[str | os.PathLike[str], Label]]],
    name: str = "",
) -> Listing:
    """Return a listing of (path, label) pairs by split, in their order.

    Raises:
        UsageError: files are missing; the message names the first one and counts them.
    """
    files = FileTable()
    labels: list[Label] = []
    given: dict[str, Sequence[int]] = {}
    missing: list[str] = []
    for split, pairs in splits.items():
        begin = len(files)
        for path, label in pairs:
            try:
                files.append(image_file(path))
                labels.append(label)
            except OSError:
                missing.append(os.fspath(path))
        given[split] = range(begin, len(files))
    if missing:
        raise UsageError(
            f"{missing[0]} is missing (one of {len(missing)} missing images of "
            f"{name or root.name}): unpack the data set again"
        )
    return Listing(root, tuple(classes), files, labels, given, name)


def walk_images(
    folder: Path, passed: PassedOver, seen: set[tuple[int, int]]
) -> Iterator[tuple[Path, list[ImageFile]]]:
    """Yield (folder, its images) for a folder and all subfolders that hold images.

    Links to folders are followed. A folder whose (device, inode) is in `seen` is skipped, so that
    links cannot loop or count images twice.
    """
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        images = []
        with os.scandir(here) as entries:
            for entry in entries:
                if is_left_out(entry.name, passed):
                    continue
                if leads_to_folder(entry):
                    if first_visit(entry.path, passed, seen):
                        waiting.append(Path(entry.path))
                elif is_image(entry.path, passed):
                    images.append(_listed(entry))
        if images:
            yield here, images


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link to itself leads nowhere."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def leads_to_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a file or a link to one; a link to itself leads nowhere."""
    try:
        return entry.is_file()
    except OSError:
        return False


def is_left_out(name: str, passed: PassedOver) -> bool:
    """Return whether a file or folder is hidden or a system folder; count it if it is."""
    if name in SYSTEM_FOLDERS:
        passed.system[name] += 1
        return True
    if name.startswith("."):
        passed.hidden += 1
        return True
    return False


def first_visit(folder: str | Path, passed: PassedOver, seen: set[tuple[int, int]]) -> bool:
    """Mark a folder as visited; return whether this is the first visit."""
    key = folder_key(folder)
    if key in seen:
        passed.links += 1
        return False
    seen.add(key)
    return True


def folder_key(folder: str | Path) -> tuple[int, int]:
    """Return device and inode of a folder, which all links to it share."""
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def is_image(path: str, passed: PassedOver) -> bool:
    """Return whether a file counts as an image; count files that are skipped or were inspected."""
    name = path.rpartition(os.sep)[2]
    suffix = "." + name.rpartition(".")[2].lower() if "." in name else ""
    if suffix in IMAGE_TYPES:
        return True
    if suffix in TRIED_TYPES and _starts_like_an_image(path):
        passed.tried += 1
        return True
    passed.types[suffix] += 1
    return False


def _starts_like_an_image(path: str) -> bool:
    try:
        with open_file(path) as file:
            start = file.read(16)
    except OSError:
        return False
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    portable = start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace()
    return webp or portable or start[4:12] == b"ftypavif" or start.startswith(_SIGNATURES)


def _listed(entry: os.DirEntry[str]) -> ImageFile:
    try:
        return recorded(entry.path, entry.stat())
    except OSError:  # a broken link, which is reported as unreadable when it is decoded
        return ImageFile(entry.path, 0, 0)


def count(number: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun, such as "1 image" or "1,200 images"."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
