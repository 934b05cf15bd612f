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

from adautomix.processes import is_main, start_processes

STEPS = 4


def course(method: str, **values: Any) -> dict[str, Any]:
    """Losses of each step, averaged over processes, the scores after them, and a checksum."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(method, Path(folder), epochs=1, **values)
        trainer.fit(until=STEPS)
        rows = trainer.folder.rows()
    weights = [float(value.double().abs().sum()) for value in trainer.weights().values()]
    losses = [{"loss": row["loss"], **row["parts"]} for row in rows if row["kind"] == "train"]
    scores = [row[network] for row in rows for network in ("student", "teacher") if network in row]
    return {"losses": losses, "scores": scores, "weights": sum(weights)}


def main(out: Path, methods: list[str]) -> None:
    """Write the courses of all methods."""
    start_processes(torch.device("cpu"))
    found = {name: course(name) for name in methods}
    found["accumulated"] = course(methods[-1], accumulate=2, model="convnext_tiny")
    if is_main():
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
