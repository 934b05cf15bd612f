"""Check before a run starts that the disk has room for what it is going to write."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from adautomix.config import TrainConfig
from adautomix.errors import UsageError

COPIES = 4  # last, previous, the one that is being written, and a best one that is none of these
OTHER_BYTES = 16 * 2**20  # pictures, metrics, the page
STATES = {"sgd": 1, "adamw": 2}  # numbers that the optimizer keeps per trained parameter
NOTEWORTHY = 0.1  # fraction of the free space from which on the user is told


def needed_bytes(
    config: TrainConfig, weights: Mapping[str, Tensor], trained: Iterable[Tensor]
) -> int:
    """The most bytes that the folder of a run will hold.

    Args:
        config: the settings.
        weights: every parameter and buffer that a checkpoint holds.
        trained: the parameters that the optimizer has a state for.
    """
    one = total_bytes(weights.values())
    state = STATES[config.optimizer] * total_bytes(trained)
    kept = config.epochs // config.keep_every if config.keep_every else 0
    return COPIES * (one + state) + kept * one + OTHER_BYTES


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """The size of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_space(run: Path, needed: int) -> str:
    """Check that a run folder has room to grow to so many bytes.

    Returns:
        A line for the user if it takes a considerable part of the free space, else "".

    Raises:
        UsageError: there is less room.
    """
    present = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    free = shutil.disk_usage(run).free
    missing = needed - present
    if missing > free:
        raise UsageError(
            f"{run} needs up to {mebibytes(missing)} for checkpoints, and {mebibytes(free)} are "
            "free: free some, choose another --out, or raise --keep-every"
        )
    if missing < NOTEWORTHY * free:
        return ""
    return f"{run} will take up to {mebibytes(missing)} of the {mebibytes(free)} that are free"


def mebibytes(count: int) -> str:
    """A number of bytes as text."""
    return f"{count / 2**20:,.0f} MiB"
