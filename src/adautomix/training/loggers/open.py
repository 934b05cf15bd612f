"""Open the loggers that the settings name, and log to all of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adautomix.config import TrainConfig
from adautomix.errors import one_line
from adautomix.runs.schema import Row
from adautomix.training.loggers.base import Logger
from adautomix.training.loggers.mlflow import MlflowLogger
from adautomix.training.loggers.tensorboard import EventWriter
from adautomix.training.loggers.wandb import WandbLogger


class Loggers:
    """Several loggers. One that fails is left out from then on, so that training goes on.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self._named: dict[str, Logger] = {}
        self._say = say

    def __setitem__(self, name: str, logger: Logger) -> None:
        self._named[name] = logger

    def add(self, row: Row) -> None:
        """Log one row everywhere."""
        for name, logger in [*self._named.items()]:
            try:
                logger.add(row)
            except Exception as error:  # services raise many types
                del self._named[name]
                self._explain(name, error)

    def close(self, *, finished: bool) -> None:
        """Close all loggers."""
        for name, logger in self._named.items():
            try:
                logger.close(finished=finished)
            except Exception as error:
                self._explain(name, error)
        self._named = {}

    def _explain(self, name: str, error: Exception) -> None:
        reason = one_line(error)
        self._say(f"{name} failed and is left out ({type(error).__name__}: {reason})")


def logger_names(config: TrainConfig) -> Sequence[str]:
    """Return the loggers that the settings name, each once."""
    return list(dict.fromkeys([*(["tensorboard"] if config.tensorboard else []), *config.log]))


@contextmanager
def open_loggers(
    config: TrainConfig, run: Path, step: int, say: Callable[[str], None]
) -> Iterator[Loggers]:
    """Open the loggers that the settings name, and close them at the end of the block.

    Args:
        config: the settings.
        run: the run folder.
        step: steps done before; later events, from a run that was cut off, are repeated.
        say: prints a line.

    Raises:
        UsageError: a package is not installed, or its service refuses.
    """
    settings = config.resolved()
    opened: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: EventWriter(run / "tensorboard", step),
        "wandb": lambda: WandbLogger(run, settings),
        "mlflow": lambda: MlflowLogger(run, settings),
    }
    loggers, finished = Loggers(say), False
    try:
        for name in logger_names(config):
            loggers[name] = opened[name]()
        yield loggers
        finished = True
    finally:
        loggers.close(finished=finished)
