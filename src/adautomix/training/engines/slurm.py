"""Run jobs as an array of Slurm jobs, submitted by submitit."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adautomix.errors import UsageError
from adautomix.training.engines.base import Ended, Job, perform, reason_of

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

TIMEOUT_MINUTES = 24 * 60  # of one Slurm job; a run that takes longer is queued again
TIMEOUTS = 100  # how often it is


class SlurmEngine:
    """An array of Slurm jobs. A job that is preempted or timed out is queued again and continues.

    Args:
        parallel: largest number of array tasks at the same time; 0 sets no limit.
        options: submitit parameters, such as slurm_partition, timeout_min, cpus_per_task and
            gpus_per_node; `cluster=local` runs the jobs on this machine, without Slurm.
        folder: where `slurm/` is created, which holds the logs of all jobs.

    Raises:
        UsageError: submitit is not installed, there is no Slurm here, or an option is wrong.
    """

    def __init__(self, parallel: int, options: Mapping[str, Any], folder: Path) -> None:
        try:
            import submitit
        except ImportError:
            raise UsageError(
                "--engine slurm needs submitit: pip install 'adautomix[slurm]'"
            ) from None
        given = {"cluster": "slurm", "timeout_min": TIMEOUT_MINUTES, **options}
        if parallel:
            given["slurm_array_parallelism"] = parallel
        try:
            self._executor = submitit.AutoExecutor(
                (folder / "slurm").absolute(),
                cluster=given.pop("cluster"),
                slurm_max_num_timeout=given.pop("slurm_max_num_timeout", TIMEOUTS),
            )
            self._executor.update_parameters(name="adautomix", **given)
        except (RuntimeError, ValueError, TypeError, NameError) as error:
            raise UsageError(f"--engine slurm: {reason_of(error)}") from None
        self._running: list[tuple[Job, Any]] = []

    def start(self, jobs: Sequence[Job]) -> None:
        """Submit all jobs as one array."""
        tasks = self._executor.map_array(SlurmCall(str(Path.cwd())), jobs)
        self._running = list(zip(jobs, tasks, strict=True))

    def ended(self, seconds: float) -> list[Ended]:
        """Return jobs that ended; those that were queued again have not."""
        time.sleep(seconds)
        done = [(job, task) for job, task in self._running if task.done()]
        self._running = [pair for pair in self._running if pair not in done]
        return [Ended(job, reason_of_task(task)) for job, task in done]

    def stop(self, *, now: bool) -> None:
        """Cancel all jobs; Slurm sends SIGTERM first, after which a run saves and ends."""
        for _, task in self._running:
            task.cancel(check=False)

    def busy(self) -> bool:
        """Return whether a job is queued or running."""
        return bool(self._running)

    def close(self) -> None:
        """Cancel what is still running."""
        self.stop(now=True)


class SlurmCall:
    """What each task of the array calls with its job."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, job: Job) -> str:
        """Do the job, see `perform`."""
        return perform(job, self.folder)

    def checkpoint(self, job: Job) -> "DelayedSubmission":
        """Return what to call on the next node: the same, since the run folder is the checkpoint.

        submitit calls this when the time of the Slurm job ends or its node is taken away.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def reason_of_task(task: Any) -> str:
    """Return why the job of a Slurm task failed; "" if it is done."""
    try:
        return str(task.result())
    except Exception as error:
        return reason_of(error)
