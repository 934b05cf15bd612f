"""Data sets whose lists and labels torchvision reads: DTD, Flowers-102, Pets, Food-101 and more."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adautomix.data.sources.listing import Listing, from_splits
from adautomix.errors import RunError, UsageError


def read_dtd(folder: Path) -> Listing:
    """List the Describable Textures with the first of their ten official partitions."""
    splits = {"train": "train", "val": "val", "test": "test"}
    return read_with_torchvision("DTD", folder, {"dtd/dtd": folder}, splits)


def read_flowers(folder: Path) -> Listing:
    """List the images of the 102 flower categories with their official split."""
    splits = {"train": "train", "val": "val", "test": "test"}
    return read_with_torchvision("Flowers102", folder, {"flowers-102": folder}, splits)


def read_pets(folder: Path) -> Listing:
    """List the images of the 37 cat and dog breeds with their official split."""
    splits = {"train": "trainval", "test": "test"}
    return read_with_torchvision("OxfordIIITPet", folder, {"oxford-iiit-pet": folder}, splits)


def read_food(folder: Path) -> Listing:
    """List the images of the 101 dishes with their official split."""
    splits = {"train": "train", "test": "test"}
    return read_with_torchvision("Food101", folder, {"food-101": folder}, splits)


def read_with_torchvision(
    kind: str, folder: Path, places: Mapping[str, Path], splits: Mapping[str, str]
) -> Listing:
    """List the files and labels of a torchvision data set class, without reading images.

    Args:
        kind: name of the class in `torchvision.datasets`.
        folder: the unpacked archive.
        places: paths that torchvision expects below its root, mapped to the real ones.
        splits: splits of a run, mapped to torchvision's splits.

    Raises:
        UsageError: torchvision misses a file or rejects its content.
    """
    import torchvision  # late: it takes most of a second

    with _arranged(places) as root:
        try:
            parts = {
                split: getattr(torchvision.datasets, kind)(str(root), split=theirs)
                for split, theirs in splits.items()
            }
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).replace(str(root), "…").split())
            raise UsageError(
                f"{folder} differs from the published archive ({reason}): unpack it again, whole"
            ) from None
        real = {str(root / place): str(path) for place, path in places.items()}
        pairs = {
            split: [(_real_path(str(path), real), int(label)) for path, label in _samples(part)]
            for split, part in parts.items()
        }
    classes = [str(name) for name in next(iter(parts.values())).classes]
    return from_splits(folder, classes, pairs)


def download_with_torchvision(kind: str, root: Path) -> None:
    """Download and unpack a data set below a folder with torchvision.

    Raises:
        RunError: the download failed.
    """
    import torchvision

    try:
        getattr(torchvision.datasets, kind)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise RunError(
            f"could not download {kind} into {root}: {error}; try again, or unpack it there by hand"
        ) from error


@contextmanager
def _arranged(places: Mapping[str, Path]) -> Iterator[Path]:
    """Yield a folder of links to the real paths, because torchvision expects fixed folder names."""
    with tempfile.TemporaryDirectory() as temporary:
        for place, real in places.items():
            link = Path(temporary) / place
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(real.absolute(), target_is_directory=real.is_dir())
        yield Path(temporary)


def _samples(dataset: Any) -> Iterator[tuple[str, int]]:
    """Return the (path, label) pairs of a torchvision data set, which keeps them private."""
    if hasattr(dataset, "_samples"):
        return iter(dataset._samples)
    files = dataset._images if hasattr(dataset, "_images") else dataset._image_files
    return iter(zip(files, dataset._labels, strict=True))


def _real_path(path: str, real: Mapping[str, str]) -> str:
    link = next(link for link in real if path.startswith(link))
    return real[link] + path[len(link) :]
