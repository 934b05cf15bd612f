"""A published data set: its names and folder, and how to recognize, check and download it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from adautomix.data.sources.listing import Found, Listing, count
from adautomix.data.sources.torchvision_sets import download_with_torchvision
from adautomix.errors import AdAutoMixError, UsageError


def has(*names: str) -> Callable[[Path], bool]:
    """Return a predicate: does a folder hold all of these files and folders ("images/")?"""
    return lambda folder: all(
        (folder / name).is_dir() if name.endswith("/") else (folder / name).is_file()
        for name in names
    )


@dataclass(frozen=True)
class Archive:
    """A published data set in the layout of its unpacked archive.

    Attributes:
        name: name for `--data`.
        title: name used in papers.
        read: reads the unpacked folder.
        folders: names of the unpacked folder below `--data-root`, the published one first.
        recognizes: returns whether a folder is this archive, judged by the files in it.
        images: published number of images per split.
        classes: published number of classes.
        where: where to obtain it.
        torchvision: class of torchvision that downloads it; "" if there is no public address.
        aliases: other names for `--data`.
    """

    name: str
    title: str
    read: Callable[[Path], Found]
    folders: tuple[str, ...]
    recognizes: Callable[[Path], bool]
    images: Mapping[str, int]
    classes: int
    where: str
    torchvision: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Return one line for the table of data sets."""
        counts = ", ".join(f"{number:,} {split}" for split, number in self.images.items())
        how = "--download fetches it" if self.torchvision else f"from {self.where}"
        return f"{self.title}: {self.classes:,} classes, {counts}; {self.folders[0]}/, {how}"

    def find(self, root: Path) -> Path | None:
        """Return the unpacked folder below a root, or the root itself if it is that folder."""
        places = [root / folder for folder in self.folders if (root / folder).is_dir()]
        whole = [place for place in (*places, root) if self.recognizes(place)]
        return next(iter((*whole, *places)), None)

    def download(self, root: Path) -> Path:
        """Download the archive below a root and return its folder.

        Raises:
            UsageError: the archive has no public address.
            RunError: the download failed.
        """
        if not self.torchvision:
            raise UsageError(f"{self.name} has no public download: get it from {self.where}")
        download_with_torchvision(self.torchvision, root)
        folder = self.find(root)
        if folder is None:
            raise UsageError(f"the download of {self.title} left nothing in {root}: try again")
        return folder

    def missing(self, root: Path) -> str:
        """Return the error message for an archive that is missing below a root."""
        fetch = "fetch it with --download" if self.torchvision else f"get it from {self.where}"
        return (
            f"{self.name} is not at {root / self.folders[0]}: name the folder that holds "
            f"{self.folders[0]} with --data-root, or {fetch}"
        )

    def open(self, folder: Path) -> Found:
        """Read the archive and compare its counts with the published ones.

        Raises:
            UsageError: files are missing or damaged.
        """
        try:
            found = self.read(folder)
        except AdAutoMixError:
            raise
        except Exception as error:  # SciPy and torchvision raise anything on damaged files
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(
                f"{folder} differs from the published archive ({reason}): unpack it again"
            ) from error
        differing = tuple(self._differences(found))
        if isinstance(found, Listing):
            return replace(found, name=self.name, warnings=(*found.warnings, *differing))
        return replace(found, warnings=(*found.warnings, *differing))

    def _differences(self, found: Found) -> list[str]:
        """Return one sentence per count that differs from the published one."""
        here = {split: len(rows) for split, rows in found.given.items()}
        differing = [
            f"{count(here.get(split, 0), f'{split} image')} of {self.title} here, "
            f"{published:,} as published: is the copy complete?"
            for split, published in self.images.items()
            if here.get(split, 0) != published
        ]
        if len(found.classes) != self.classes:
            classes = count(len(found.classes), "class", "classes")
            differing.append(f"{classes} of {self.title} here, {self.classes:,} as published")
        return differing


def enclosing(archives: Mapping[str, Archive], path: Path) -> tuple[Archive, Path] | None:
    """Find the archive that a folder is, contains or belongs to; return it with its folder."""
    for folder in (path, *path.parents[:3]):
        for archive in archives.values():
            if archive.recognizes(folder):
                return archive, folder
    for archive in archives.values():
        for name in archive.folders:
            if archive.recognizes(path / name):
                return archive, path / name
    return None
