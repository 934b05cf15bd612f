"""Train a few steps with each of several methods and write the losses; also run by `torchrun`.

Usage: train_methods.py OUT METHOD…
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
# A graph cut of PuzzleMix may change with the last digit of a gradient, which synchronized batch
# norm rounds differently. Without batch norm the digits are the same.
WITHOUT_BATCH_NORM: dict[str, dict[str, Any]] = {"puzzlemix": {"model": "convnext_tiny"}}


def train_record(method: str, **values: Any) -> dict[str, Any]:
    """Train `STEPS` steps per epoch and return what happened.

    Returns:
        "losses" of each step, averaged over processes; "scores" of student and teacher after the
        last step; "weights" and "variances", sums of the absolute values of the weights and of the
        running variances.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"epochs": 1} | WITHOUT_BATCH_NORM.get(method, {}) | values
        trainer = trainer_of(method, Path(folder), **options)
        trainer.fit(until=options["epochs"] * STEPS)
        rows = trainer.folder.rows()
    sums = {name: float(value.double().abs().sum()) for name, value in trainer.weights().items()}
    variances = {name: total for name, total in sums.items() if "running_var" in name}
    losses = [{"loss": row.loss, **row.parts} for row in rows if isinstance(row, TrainRow)]
    evaluated = [row for row in rows if isinstance(row, EpochRow) and row.student is not None]
    scores = [row.model_dump()[name] for row in evaluated for name in ("student", "teacher")]
    return {
        "losses": losses,
        "scores": scores,
        "weights": sum(sums.values()) - sum(variances.values()),
        "variances": sum(variances.values()),
    }


def main(out: Path, methods: list[str]) -> None:
    """Write the records of all methods, and of some with accumulation, probing or frozen layers."""
    init_distributed(torch.device("cpu"))
    records = {name: train_record(name) for name in methods}
    records["accumulated"] = train_record(methods[-1], accumulate=2, model="convnext_tiny")
    records["probed"] = train_record("adautomix", epochs=2, probe_epochs=1)
    records["frozen"] = train_record("adautomix", freeze="layer1")
    if is_main():
        out.write_text(json.dumps(records))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
