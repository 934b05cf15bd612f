"""The interface of an engine, and what it does with a job wherever it runs."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from adautomix.errors import AdAutoMixError, StoppedError, UsageError

EngineName = Literal["local", "ray", "slurm"]


@dataclass(frozen=True)
class EngineChoice:
    """Which engine computes the runs.

    Attributes:
        name: name of the engine.
        parallel: number of runs at the same time; None picks one that suits the engine.
        options: options of `@ray.remote` (such as num_gpus) or submitit parameters (such as
            slurm_partition); the local engine has none.
    """

    name: EngineName = "local"
    parallel: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == "local" and self.options:
            raise UsageError(f"the local engine has no option {next(iter(self.options))}")


@dataclass(frozen=True)
class Job:
    """One run that an engine starts.

    Attributes:
        name: what it is called in progress and errors.
        folder: its run folder, on a file system that every machine of the engine shares.
        epochs: epochs of the run, for its progress.
        work: called as `work(quiet=…)`; does the job, or continues it where it stopped. It must be
            picklable.
    """

    name: str
    folder: Path
    epochs: int
    work: Callable[..., object] = field(repr=False)


class Ended(NamedTuple):
    """A job that ended, and in one line why it failed; "" if it is done."""

    job: Job
    reason: str


class Engine(Protocol):
    """Runs jobs in other processes, here or elsewhere."""

    def start(self, jobs: Sequence[Job]) -> None:
        """Start jobs, or queue them. Called once."""

    def ended(self, seconds: float) -> list[Ended]:
        """Return jobs that ended since the last call; wait for one for at most so many seconds."""

    def stop(self, *, now: bool) -> None:
        """Drop the queued jobs and let running ones stop after their step; `now` kills them."""

    def busy(self) -> bool:
        """Return whether a job is queued or running."""

    def close(self) -> None:
        """Free what the engine holds, and kill what is still running."""


def perform(job: Job, folder: str) -> str:
    """Do a job in this process.

    Args:
        job: the job.
        folder: working folder of the command, which relative paths in the job refer to.

    Returns:
        Why it failed in one line; "" if it is done.

    Raises:
        StoppedError: a signal stopped it; started again, it continues.
        Exception: an error that another attempt may not meet.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        return f"{folder} cannot be entered here ({error.strerror}): use a shared file system"
    try:
        job.work(quiet=True)
    except StoppedError:
        raise
    except AdAutoMixError as error:
        return str(error)
    return ""


def reason_of(error: BaseException) -> str:
    """Return an exception as one line."""
    if isinstance(error, AdAutoMixError):
        return str(error)
    last = (str(error).strip().splitlines() or [""])[-1]
    return f"{type(error).__name__}: {last}"
