"""TensorBoard events of a run, with the same figures as its `metrics.jsonl`."""

from pathlib import Path

from adautomix.errors import UsageError
from adautomix.runs.schema import Row
from adautomix.training.loggers.base import numbers


class EventWriter:
    """Writes every number of a logged row as a scalar named by its path, such as "teacher/top1".

    Args:
        folder: where the event files go.
        step: steps done before; events after it, from a run that was cut off, are purged.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "log = tensorboard, but TensorBoard is not installed: pip install tensorboard"
            ) from None
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, row: Row) -> None:
        """Write the scalars of one row of `metrics.jsonl`."""
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row.step)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        """Close the event file."""
        self._writer.close()
