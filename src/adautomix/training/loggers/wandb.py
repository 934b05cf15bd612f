"""Rows of a run in Weights & Biases."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adautomix.errors import UsageError, one_line
from adautomix.runs.schema import Row
from adautomix.training.loggers.base import known_id, numbers, remember_id


class WandbLogger:
    """Logs the numbers of every row to one run, which a resume continues.

    The project is that of WANDB_PROJECT, else "adautomix". A resumed run repeats the rows after its
    last checkpoint; the service keeps the first, which are the same numbers.

    Args:
        run: the run folder, whose name is shown and which holds the local files.
        settings: the settings of the run, which are shown beside it.

    Raises:
        UsageError: the package is not installed, or nobody is logged in.
    """

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise UsageError(
                "log = wandb, but Weights & Biases is not installed: pip install wandb"
            ) from None
        known = known_id(run, "wandb")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "adautomix",
                name=run.name,
                dir=str(run),
                id=known,
                resume="allow" if known else None,
                config=dict(settings),
            )
        except wandb.errors.Error as error:
            reason = one_line(error)
            raise UsageError(
                f"log = wandb: {reason}: log in with `wandb login`, or set WANDB_MODE=offline"
            ) from None
        if known is None:
            remember_id(run, "wandb", self._run.id)

    def add(self, row: Row) -> None:
        """Log the numbers of one row at its step."""
        self._run.log(numbers(row), step=row.step)

    def close(self, *, finished: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=0 if finished else 1)
