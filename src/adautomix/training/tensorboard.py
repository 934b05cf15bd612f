"""TensorBoard events of a run, with the same figures as its `metrics.jsonl`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adautomix.errors import UsageError
from adautomix.runs.schema import Row


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
                "tensorboard = true, but TensorBoard is not installed: pip install tensorboard"
            ) from None
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, row: Row) -> None:
        """Write the scalars of one row of `metrics.jsonl`."""
        fields = row.model_dump(exclude={"schema_version", "kind", "step"})
        for name, value in scalars(fields):
            self._writer.add_scalar(f"{row.kind}/{name}", value, row.step)
        self._writer.flush()


def scalars(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested dictionaries, each with its path."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)
