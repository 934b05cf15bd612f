"""Do many jobs with an engine: collect failures, pass on requests to stop, and show progress."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from adautomix.errors import DiskFullError, RunError, StoppedError
from adautomix.training.engines import EngineChoice, Job, open_engine
from adautomix.training.engines.base import Engine, reason_of
from adautomix.training.job_display import JobDisplay
from adautomix.training.runtimes import StopRequest, stop_on_signals

POLL_SECONDS = 0.5  # between two looks at the jobs that are running


@dataclass(frozen=True)
class Failure:
    """A job that could not be done.

    Attributes:
        job: the job.
        reason: the error, in one line.
    """

    job: Job
    reason: str


def run_jobs(
    jobs: Sequence[Job], choice: EngineChoice, parallel: int, folder: Path, *, quiet: bool = False
) -> list[Failure]:
    """Do all jobs; one that fails does not stop the others.

    Args:
        jobs: what to do.
        choice: which engine does it.
        parallel: number of jobs at the same time. A single one on this machine is done in this
            process, and shows its own progress.
        folder: where an engine may keep logs.
        quiet: show no progress.

    Returns:
        The jobs that failed, with their reasons.

    Raises:
        UsageError: the engine cannot be used.
        StoppedError: a signal stopped the jobs; all can be continued.
    """
    if choice.name == "local":
        parallel = min(parallel, len(jobs))
        if parallel <= 1:
            return run_here(jobs, quiet=quiet)
    display = JobDisplay(jobs, choice.name, parallel, quiet=quiet)
    # In this order, the last one ends first: a second Ctrl-C is recorded until all is over.
    with stop_on_signals() as stop, display, closing(open_engine(choice, parallel, folder)) as one:
        return run_with(one, jobs, stop, display)


def run_here(jobs: Sequence[Job], *, quiet: bool) -> list[Failure]:
    """Do jobs one after another in this process, see `run_jobs`."""
    display = JobDisplay(jobs, "local", 1, quiet=quiet)
    failures = []
    for job in jobs:
        display.begin(job)
        try:
            job.work(quiet=quiet)
        except StoppedError as error:
            raise StoppedError(f"{error}, or all {len(jobs)} with the same command") from None
        except DiskFullError:
            raise  # the others could not be written either
        except Exception as error:
            failures.append(Failure(job, reason_of(error)))
            display.failed(job, failures[-1].reason)
        else:
            display.done += 1
    return failures


def run_with(
    engine: Engine, jobs: Sequence[Job], stop: StopRequest, display: JobDisplay
) -> list[Failure]:
    """Do jobs with an engine until all have ended, or until those have that a signal stopped."""
    failures: list[Failure] = []
    heard, done = 0, 0
    engine.start(jobs)
    while engine.busy():
        if stop.count > heard:
            # The first signal lets each run finish its step and save; the second one kills.
            engine.stop(now=heard > 0)
            heard = stop.count
            display.stopping(stop.signal_name)
        for job, reason in engine.ended(POLL_SECONDS):
            if not reason:
                done += 1
                display.finished(job)
            elif not stop:
                failures.append(Failure(job, reason))
                display.failed(job, reason)
        display.refresh()
    if stop and done + len(failures) < len(jobs):
        raise StoppedError(
            f"stopped by {stop.signal_name} with {done} of {len(jobs)} runs done; continue with "
            "the same command"
        )
    return failures


def raise_failures(failures: Sequence[Failure], total: int) -> None:
    """Name the jobs that failed, each with its reason.

    Raises:
        RunError: there is a failure.
    """
    if failures:
        lines = "; ".join(f"{failure.job.folder}: {failure.reason}" for failure in failures)
        raise RunError(f"{len(failures)} of {total} runs failed: {lines}")
