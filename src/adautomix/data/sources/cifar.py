"""CIFAR-10 and CIFAR-100 as published: pickled batches, read without executing code in them."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adautomix.data.sources.listing import Arrays
from adautomix.errors import UsageError


@dataclass(frozen=True)
class Cifar:
    """File names and keys of one of the sets."""

    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str


CIFAR = {
    "cifar10": Cifar(
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        meta="batches.meta",
        labels="labels",
        names="label_names",
    ),
    "cifar100": Cifar(
        train=("train",),
        test="test",
        meta="meta",
        labels="fine_labels",
        names="fine_label_names",
    ),
}
# Published results use these values for both data sets. The standard deviations are averages of
# each image's standard deviation, which are smaller than that of all pixels.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)


def read_cifar(name: str, folder: Path) -> Arrays:
    """Return the images and the official split of CIFAR-10 or CIFAR-100.

    Args:
        name: "cifar10" or "cifar100".
        folder: the unpacked archive.

    Raises:
        UsageError: a file is missing or damaged.
    """
    layout = CIFAR[name]
    names = _read_names(folder / layout.meta, layout.names)
    parts = (*layout.train, layout.test)
    batches = [_read_batch(folder / part, layout.labels, len(names)) for part in parts]
    flat = np.concatenate([pixels for pixels, _ in batches])
    images = torch.from_numpy(flat).view(-1, 3, 32, 32).permute(0, 2, 3, 1).contiguous()
    labels = torch.tensor([label for _, some in batches for label in some])
    test = len(batches[-1][1])
    rows = torch.arange(len(labels))
    return Arrays(
        name,
        names,
        images,
        labels,
        {"train": rows[:-test], "test": rows[-test:]},
        mean=MEAN,
        std=STD,
    )


def _read_names(path: Path, key: str) -> tuple[str, ...]:
    """Return the class names."""
    names = _unpickle(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(path, f"it has no list {key}")
    return tuple(names)


def _read_batch(path: Path, key: str, classes: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Return pixels uint8 `[n, 3072]` and labels of one file."""
    content = _unpickle(path)
    pixels, labels = content.get("data"), content.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise _damaged(path, "it has no array of pixels")
    if not isinstance(labels, list) or pixels.shape != (len(labels), 3 * 32 * 32):
        raise _damaged(path, "its pixels are not one image per label")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise _damaged(path, f"it has labels other than 0 to {classes - 1}")
    return pixels, labels


def _damaged(path: Path, problem: object) -> UsageError:
    return UsageError(f"{path} is damaged ({problem}): delete {path.parent} and --download again")


class _DataUnpickler(pickle.Unpickler):
    """Unpickler of arrays and plain containers that refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            module = "numpy._core.multiarray"  # where numpy 2 keeps it
        allowed = {
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),  # how Python 3 writes bytes for Python 2 to read
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _DataUnpickler(file, encoding="latin1").load()
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing: delete {path.parent} and --download again") from error
    except Exception as error:  # a damaged pickle raises almost any exception
        raise _damaged(path, error or type(error).__name__) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it is no dictionary")
    return content
