"""CIFAR-10-C and CIFAR-100-C: the test images of CIFAR under 15 corruptions at 5 severities."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from adautomix.data.corruptions.corrupted import PAPER_CORRUPTIONS
from adautomix.data.sources.cifar import MEAN, STD
from adautomix.data.sources.listing import Arrays
from adautomix.errors import UsageError


def is_cifar_c(name: str) -> Callable[[Path], bool]:
    """Return a predicate for the folder of one of the two sets, whose files have equal names."""
    return lambda folder: folder.name == name and (folder / "labels.npy").is_file()


def read_cifar_c(name: str, folder: Path) -> Arrays:
    """Return all images of the corruptions that the mean corruption error averages over.

    They form a test set of 750,000 images, ordered by corruption and then by severity. Classes are
    numbered, because the archive has no class names. The corruption suite reads the same files and
    reports each corruption and severity separately.

    Raises:
        UsageError: no array is there, or one is damaged or of another shape.
    """
    labels = _array(folder / "labels.npy")
    present = [c for c in PAPER_CORRUPTIONS if (folder / f"{c}.npy").is_file()]
    arrays = [_array(folder / f"{corruption}.npy") for corruption in present]
    for corruption, array in zip(present, arrays, strict=True):
        if array.dtype != np.uint8 or array.shape != (len(labels), 32, 32, 3):
            raise UsageError(
                f"{folder / corruption}.npy is {array.dtype} {list(array.shape)}: it should be "
                f"uint8 [{len(labels)}, 32, 32, 3]; unpack the archive again"
            )
    if not arrays:
        raise UsageError(f"{folder} holds no corruption such as fog.npy: unpack it again")
    missing = [corruption for corruption in PAPER_CORRUPTIONS if corruption not in present]
    found = Arrays(
        name,
        tuple(str(number) for number in range(int(labels.max()) + 1)),
        torch.from_numpy(np.concatenate(arrays)),
        torch.from_numpy(labels.astype(np.int64)).repeat(len(arrays)),
        {"test": torch.arange(len(labels) * len(arrays))},
        mean=MEAN,
        std=STD,
    )
    return found.noting(f"missing corruptions: {', '.join(missing)}") if missing else found


def _array(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"cannot read {path} ({error}): unpack the archive again") from None
    return array
