"""Rows of a run in MLflow."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adautomix.errors import UsageError, one_line
from adautomix.runs.schema import Row
from adautomix.training.loggers.base import flat_settings, known_id, numbers, remember_id

_MOST_PARAMS = 100  # parameters per request
_LONGEST = 500  # characters of a parameter's value


class MlflowLogger:
    """Logs the numbers of every row to one run, which a resume continues.

    The server is that of MLFLOW_TRACKING_URI, else MLflow's default, a database in the working
    directory. The experiment is that of MLFLOW_EXPERIMENT_NAME, else "adautomix".

    Args:
        run: the run folder, whose name is shown.
        settings: the settings of the run, which become parameters.

    Raises:
        UsageError: the package is not installed, or the server does not answer.
    """

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise UsageError(
                "log = mlflow, but MLflow is not installed: pip install mlflow-skinny"
            ) from None
        self._logged: dict[str, int] = {}
        try:
            self._client = MlflowClient()
            known = known_id(run, "mlflow")
            self._id = known or self._create(run.name, settings)
            if known:
                self._client.update_run(known, status="RUNNING")
                self._logged = {kind: self._last_step(kind) for kind in ("train", "epoch")}
        except (MlflowException, OSError) as error:
            reason = one_line(error)
            raise UsageError(
                f"log = mlflow: {reason}: check MLFLOW_TRACKING_URI, or leave out mlflow"
            ) from None
        remember_id(run, "mlflow", self._id)

    def _create(self, name: str, settings: Mapping[str, Any]) -> str:
        """Create a run with its settings as parameters, and return its name."""
        from mlflow.entities import Param

        title = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "adautomix"
        experiment = self._client.get_experiment_by_name(title)
        place = experiment.experiment_id if experiment else self._client.create_experiment(title)
        created: str = self._client.create_run(place, run_name=name).info.run_id
        flat = flat_settings(settings).items()
        params = [Param(key, str(value)[:_LONGEST]) for key, value in flat]
        for first in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(created, params=params[first : first + _MOST_PARAMS])
        return created

    def _last_step(self, kind: str) -> int:
        """Return the step of the last row of a kind that was logged before."""
        rows = self._client.get_metric_history(self._id, f"{kind}/loss")
        return max((row.step for row in rows), default=0)

    def add(self, row: Row) -> None:
        """Log the numbers of one row at its step, unless they were logged before a resume."""
        from mlflow.entities import Metric

        if row.step <= self._logged.get(row.kind, 0):
            return
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, row.step) for name, value in numbers(row).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        """Mark the run as finished, or as one that was stopped."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
