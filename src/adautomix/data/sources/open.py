"""Find the reader for the value of `--data`, and read the data set."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from adautomix.data.sources.archive import Archive, enclosing
from adautomix.data.sources.archives import ARCHIVES
from adautomix.data.sources.digits import read_digits
from adautomix.data.sources.folders import list_folder
from adautomix.data.sources.hugging_face import PREFIX, read_hugging_face
from adautomix.data.sources.list_files import (
    LIST_TYPES,
    is_list_file,
    lists_of,
    read_lists,
    split_of_list,
)
from adautomix.data.sources.listing import Found, Listing
from adautomix.data.sources.objects import PREFIX as OBJECTS
from adautomix.data.sources.objects import read_objects
from adautomix.errors import UsageError, nearest_name, unknown_name

ClassLevel = Literal["auto", "top", "leaf"]

DATASETS = {
    "digits": "1,797 handwritten digits, 8x8 enlarged to 32x32; comes with scikit-learn",
    **{name: archive.summary for name, archive in ARCHIVES.items()},
    f"{PREFIX}<name or folder>": "a data set of the Hugging Face datasets library",
    "a list of images": "CSV, TSV or TXT with path,label[,split], or one list per split",
    "a folder of images": "train/<class>/* with test/ or val/, or one tree <class>/* that is split",
}
"""Accepted values of `--data`, with one line of description each."""

_NAMES = {
    "digits": "digits",
    **{alias: name for name, archive in ARCHIVES.items() for alias in (name, *archive.aliases)},
}


@dataclass(frozen=True)
class SourceOptions:
    """How a source is found and read.

    Attributes:
        root: folder that holds published archives and that relative paths in lists start from.
        download: download a missing archive if it has a public address.
        class_level: which folders are classes, see `list_folder`; "auto" reads the list files of
            a folder if there are some, and otherwise the first level.
        class_names: file with the names of numbered classes of a list.
        cache_dir: see `load_data`.
    """

    root: Path | None = None
    download: bool = False
    class_level: ClassLevel = "auto"
    class_names: Path | None = None
    cache_dir: Path | None = None


def open_source(source: Any, options: SourceOptions) -> Found:
    """Read a data set by name, from a folder or list file, or from Python objects.

    A name takes precedence over a folder of the same name (write `./digits` for the folder),
    unless the archive is missing and the folder exists.

    Raises:
        UsageError: there is no such data set, or it is invalid.
        RunError: a download failed, or the cache cannot be written.
    """
    if not isinstance(source, str):
        return read_objects(source, options.cache_dir)
    if source.startswith(OBJECTS):
        raise UsageError(
            f"{source} was given as an object, which no command can name: pass it as `data` again"
        )
    if source.startswith(PREFIX):
        return read_hugging_face(source.removeprefix(PREFIX), options.cache_dir)
    if _NAMES.get(source) == "digits":
        return read_digits()
    if source in _NAMES:
        return _open_archive(ARCHIVES[_NAMES[source]], source, options)
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        return _open_folder(path, options)
    if path.is_file():
        return _open_file(source, path, options)
    raise UsageError(_unknown(source))


def _open_archive(archive: Archive, source: str, options: SourceOptions) -> Found:
    root = (options.root or Path("data")).expanduser()
    folder = archive.find(root)
    if folder is None and options.download:
        folder = archive.download(root)
    if folder is not None:
        return archive.open(folder.absolute())
    here = Path(source).absolute()
    if here.is_dir():
        found = _open_folder(here, options)
        return found.noting(f"{archive.title} is not at {root}: read from the folder {here}")
    raise UsageError(archive.missing(root))


def _open_folder(path: Path, options: SourceOptions) -> Found:
    """Read a published archive or a part of it, a folder with list files, or class folders."""
    known = enclosing(ARCHIVES, path)
    if known is not None:
        archive, folder = known
        found = archive.open(folder)
        if folder == path:
            return found.noting(f"{path} is {archive.title}: its official split is used")
        return found.noting(
            f"{path} belongs to {archive.title} in {folder}: the whole data set with its official "
            "split is used"
        )
    if options.class_level == "auto" and (lists := lists_of(path)):
        listing = _read_lists(lists, options)
        return listing.noting("to read the folders instead, set --class-level")
    level = options.class_level
    return replace(list_folder(path, "top" if level == "auto" else level), name=path.name)


def _open_file(source: str, path: Path, options: SourceOptions) -> Listing:
    """Read a list file, with the lists of the other splits beside it."""
    if not is_list_file(path):
        raise UsageError(
            f"{source} is a file: name the folder that holds the class folders, or a list "
            f"({' '.join(LIST_TYPES)})"
        )
    lists = lists_of(path.parent) if split_of_list(path.stem) else {}
    if path not in lists.values() or len(lists) < 2:
        lists = {"all": path}
    return _read_lists(lists, options)


def _read_lists(lists: dict[str, Path], options: SourceOptions) -> Listing:
    if set(lists) == {"train"}:
        lists = {"all": lists["train"]}
    return read_lists(lists, image_root=options.root, class_names=options.class_names)


def _unknown(source: str) -> str:
    names = ", ".join(["digits", *ARCHIVES])
    if nearest_name(source, _NAMES):
        return unknown_name("data set", source, _NAMES, names)
    return f"no folder {source} and no data set of that name: give a folder or {names}"
