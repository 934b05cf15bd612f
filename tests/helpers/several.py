"""Trains a few steps of every method named and writes the losses; `torchrun` starts it too.

Usage: several.py OUT METHOD…
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from every import trainer_of

from adautomix.distributed import init_distributed, is_main
from adautomix.runs.schema import EpochRow, TrainRow

STEPS = 4
# A cut of a graph may turn over with the last digit of a gradient, and batch norm over processes
# rounds that digit another way: without batch norm it stays.
WITHOUT_BATCH_NORM: dict[str, dict[str, Any]] = {"puzzlemix": {"model": "convnext_tiny"}}


def course(method: str, **values: Any) -> dict[str, Any]:
    """Losses of each step, averaged over processes, the scores after them, and checksums."""
    with tempfile.TemporaryDirectory() as folder:
        network = WITHOUT_BATCH_NORM.get(method, {})
        trainer = trainer_of(method, Path(folder), epochs=1, **network | values)
        trainer.fit(until=STEPS)
        rows = trainer.folder.rows()
    sums = {name: float(value.double().abs().sum()) for name, value in trainer.weights().items()}
    variances = {name: total for name, total in sums.items() if "running_var" in name}
    losses = [{"loss": row.loss, **row.parts} for row in rows if isinstance(row, TrainRow)]
    evaluated = [row for row in rows if isinstance(row, EpochRow) and row.student is not None]
    scores = [row.model_dump()[name] for row in evaluated for name in ("student", "teacher")]
    weights = sum(sums.values()) - sum(variances.values())
    return {
        "losses": losses,
        "scores": scores,
        "weights": weights,
        "variances": sum(variances.values()),
    }


def main(out: Path, methods: list[str]) -> None:
    """Write the courses of all methods."""
    init_distributed(torch.device("cpu"))
    found = {name: course(name) for name in methods}
    found["accumulated"] = course(methods[-1], accumulate=2, model="convnext_tiny")
    if is_main():
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
