"""CIFAR-10 and CIFAR-100 as published: pickled batches, read without running anything in them."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adautomix.errors import RunError, UsageError


@dataclass(frozen=True)
class Cifar:
    """How one of the sets is laid out, and the field's constants for it."""

    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str
    torchvision: str


CIFAR = {
    "cifar10": Cifar(
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        meta="batches.meta",
        labels="labels",
        names="label_names",
        torchvision="CIFAR10",
    ),
    "cifar100": Cifar(
        folder="cifar-100-python",
        train=("train",),
        test="test",
        meta="meta",
        labels="fine_labels",
        names="fine_label_names",
        torchvision="CIFAR100",
    ),
}
# What published figures were made with, for both sets. The deviations are means over images of
# each image's own, smaller than that of all pixels.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)


def read_cifar(
    name: str, root: Path, download: bool
) -> tuple[tuple[str, ...], Tensor, Tensor, dict[str, Tensor]]:
    """Class names, images uint8 `[n, 32, 32, 3]`, labels int64 `[n]`, rows of train and test.

    Raises UsageError where the files are missing or damaged, RunError where a download fails.
    """
    layout = CIFAR[name]
    folder = root / layout.folder
    if not folder.is_dir():
        if not download:
            raise UsageError(
                f"{name} is not at {folder}: name the folder that holds {layout.folder} with "
                "--data-root, or fetch it with --download"
            )
        _download(layout, root)
    names = _unpickle(folder / layout.meta)[layout.names]
    batches = [_unpickle(folder / part) for part in (*layout.train, layout.test)]
    flat = np.concatenate([batch["data"] for batch in batches])
    images = torch.from_numpy(flat).view(-1, 3, 32, 32).permute(0, 2, 3, 1).contiguous()
    labels = torch.tensor([label for batch in batches for label in batch[layout.labels]])
    test = len(batches[-1]["data"])
    rows = torch.arange(len(labels))
    return tuple(names), images, labels, {"train": rows[:-test], "test": rows[-test:]}


def _download(layout: Cifar, root: Path) -> None:
    import torchvision  # late: it takes most of a second

    try:
        getattr(torchvision.datasets, layout.torchvision)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise RunError(
            f"could not download {layout.torchvision} into {root}: {error}; put "
            f"{layout.folder} there by hand, or try again"
        ) from error


class _DataUnpickler(pickle.Unpickler):
    """Builds arrays and plain containers; a pickle that names anything else is refused."""

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
            content: dict[str, Any] = _DataUnpickler(file, encoding="latin1").load()
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing: delete {path.parent} and --download again") from error
    except (pickle.UnpicklingError, EOFError, ValueError) as error:
        raise UsageError(
            f"{path} is damaged ({error}): delete {path.parent} and --download again"
        ) from error
    return content
