"""What the jobs of engine tests do; importable in the processes of every engine."""

import os
import signal
from pathlib import Path
from typing import Any

from adautomix.config import TrainConfig
from adautomix.data import Batch
from adautomix.errors import RunError
from adautomix.training import Trainer, train


def write(path: Path, *, quiet: bool) -> None:
    path.write_text("done")


def fail(*, quiet: bool) -> None:
    raise RunError("the loss became NaN")


def crash(*, quiet: bool) -> None:
    raise ZeroDivisionError("division by zero")


def die(*, quiet: bool) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_killed_once(config: TrainConfig, step: int, marker: Path, *, quiet: bool) -> None:
    """Train, but kill this process when a step begins, unless this was done before."""
    if not marker.exists():
        marker.touch()
        train_step = Trainer.train_step

        def die_at(self: Trainer, batch: Batch) -> None:
            if self.step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            train_step(self, batch)

        Trainer.train_step = die_at  # type: ignore[method-assign]
    train(config, quiet=quiet)


def nothing(*given: Any, **named: Any) -> None:
    pass
