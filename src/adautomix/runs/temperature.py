"""The temperature that `evaluate` fitted to a run, which calibrates its probabilities."""

import math
from pathlib import Path
from typing import Any

from adautomix.errors import UsageError
from adautomix.files import read_json

EVALUATION = "evaluation.json"


def fitted_temperature(run: Path, network: str, step: int) -> float | None:
    """Return the number to divide the logits by; None if none was fitted to these weights.

    Args:
        run: the run folder.
        network: "student" or "teacher".
        step: the step of the weights; a temperature of another checkpoint does not serve.
    """
    if not (run / EVALUATION).is_file():
        return None
    try:
        record = read_json(run / EVALUATION, "evaluate the run again")
    except UsageError:
        return None  # as `evaluate` treats a damaged record: it is written anew
    if _at(record, "source", "step") != step:
        return None
    found = _at(record, "suites", "calibration", "networks", network, "temperature")
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    return float(found) if math.isfinite(found) and found > 0 else None


def _at(record: Any, *names: str) -> Any:
    for name in names:
        record = record.get(name) if isinstance(record, dict) else None
    return record
