"""Run jobs as tasks of a Ray cluster (Ray Core)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adautomix.errors import UsageError
from adautomix.training.engines.base import Ended, Job, perform, reason_of

RETRIES = 3  # of a job whose machine or process was lost; its run folder is the checkpoint


class RayEngine:
    """A Ray cluster: the one at `RAY_ADDRESS`, the one on this machine, or else a new one here.

    Args:
        parallel: largest number of jobs given to Ray at the same time; 0 gives it all.
        options: options of `@ray.remote`. By default a job gets one core and, if the cluster has
            any, one GPU.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, parallel: int, options: Mapping[str, Any]) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("--engine ray needs Ray: pip install 'adautomix[ray]'") from None
        self._ray = ray
        self._owned = not ray.is_initialized()
        if self._owned:
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UsageError(f"no Ray cluster: {reason_of(error)} (RAY_ADDRESS)") from None
        resources: dict[str, float] = ray.cluster_resources()
        gpus = 1 if resources.get("GPU") else 0
        given = {"num_cpus": 1, "num_gpus": gpus, "max_retries": RETRIES, **options}
        try:
            self._task = ray.remote(**{"retry_exceptions": True, **given})(perform)
        except (TypeError, ValueError) as error:
            raise UsageError(f"--engine-option: {reason_of(error)}") from None
        self._parallel = parallel
        self._queue: list[Job] = []
        self._running: dict[Any, Job] = {}

    def start(self, jobs: Sequence[Job]) -> None:
        """Queue jobs and give Ray as many as it may have."""
        self._queue.extend(jobs)
        self._fill()

    def ended(self, seconds: float) -> list[Ended]:
        """Return jobs that ended, after all their retries."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), timeout=seconds)
        results = [Ended(self._running.pop(task), self._reason(task)) for task in ready]
        self._fill()
        return results

    def stop(self, *, now: bool) -> None:
        """Cancel all tasks; in a running one this acts as Ctrl-C, or as a kill."""
        self._queue.clear()
        for task in self._running:
            self._ray.cancel(task, force=now)

    def busy(self) -> bool:
        """Return whether a job is queued or running."""
        return bool(self._queue or self._running)

    def close(self) -> None:
        """Leave the cluster, which ends the tasks of this program."""
        if self._owned:
            self._ray.shutdown()

    def _fill(self) -> None:
        while self._queue and (not self._parallel or len(self._running) < self._parallel):
            job = self._queue.pop(0)
            self._running[self._task.remote(job, str(Path.cwd()))] = job

    def _reason(self, task: Any) -> str:
        try:
            return str(self._ray.get(task))
        except self._ray.exceptions.RayTaskError as error:
            return reason_of(error.cause)
        except self._ray.exceptions.RayError as error:
            return reason_of(error)
