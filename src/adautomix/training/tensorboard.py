"""TensorBoard events of a run, beside its `metrics.jsonl`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adautomix.errors import UsageError


class EventWriter:
    """Writes every number of a logged line as a scalar named by its path, "teacher/top1".

    Args:
        folder: where the event files go.
        step: steps done before; events after it, of a run that was cut off, are purged.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "tensorboard = true: TensorBoard is not installed; pip install tensorboard"
            ) from None
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, row: Mapping[str, Any]) -> None:
        """The scalars of one line of `metrics.jsonl`."""
        for name, value in scalars(row):
            self._writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])
        self._writer.flush()


def scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested dictionaries, by path; the step itself is left out."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield prefix + name, float(value)
