"""Find the image files that somebody names: files, folders, patterns, and lists of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from adautomix.data.sources.listing import PassedOver, folder_key, walk_images
from adautomix.errors import UsageError
from adautomix.files import read_text

_WILD = "*?["


def find_pictures(sources: Sequence[Path | str]) -> list[Path]:
    """Return the image files that some names stand for, in their order.

    Args:
        sources: files, which are returned whether they exist or not; folders, whose image files
            and those of all subfolders are returned in the order of their names; and patterns
            such as `photos/**/*.jpg`, for shells that do not expand them.

    Raises:
        UsageError: a folder holds no image file, or a pattern matches nothing.
    """
    return [path for source in sources for path in _expand(Path(source))]


def _expand(source: Path) -> list[Path]:
    if source.is_dir():
        return pictures_below(source)
    text = str(source)
    if source.exists() or not any(sign in text for sign in _WILD):
        return [source]
    matches = sorted(Path(source.anchor).glob(str(source.relative_to(source.anchor))))
    files = [match for match in matches if not match.is_dir()]
    # Where a pattern matches files, it says which ones; photos/*, which matches only the folders
    # of the classes, stands for what is in them.
    folders = [] if files else [match for match in matches if match.is_dir()]
    if not matches:
        raise UsageError(f"no file matches {text}: name image files or a folder")
    # photos/** matches a folder and its subfolders, whose files count once.
    found = dict.fromkeys(path for folder in folders for path in pictures_below(folder))
    return files or list(found)


def pictures_below(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, by name.

    Raises:
        UsageError: there is none.
    """
    found = walk_images(folder, PassedOver(), {folder_key(folder)})
    paths = sorted(Path(image.path) for _, images in found for image in images)
    if not paths:
        raise UsageError(f"{folder} holds no image file: name a folder with images")
    return paths


def read_picture_list(path: Path) -> list[Path]:
    """Return the files that a list names, one per line; empty lines are skipped.

    A relative name is looked up below the current folder, then below the folder of the list.

    Raises:
        UsageError: the list cannot be read, or it is empty.
    """
    names = [line for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise UsageError(f"{path} is empty: write the path of one image file per line")
    return list(_resolved(names, path.parent))


def _resolved(names: Sequence[str], folder: Path) -> Iterator[Path]:
    for name in names:
        here, beside = Path(name), folder / name
        yield beside if not here.exists() and beside.exists() else here
