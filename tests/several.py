"""Trains a few steps of every method named and writes the losses; `torchrun` starts it too.

Usage: several.py OUT METHOD…
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tiny import CLASSES

from adautomix.config import make_config
from adautomix.data.sets import ImageData, InMemory
from adautomix.processes import is_main, start_processes
from adautomix.training.loop import Trainer
from adautomix.training.run_folder import RunFolder

STEPS = 4


def squares(count: int = 50) -> ImageData:
    """Noise, with a test set of odd size."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 16, 16, 3), generator=generator, dtype=torch.uint8)
    train = InMemory(pixels, torch.arange(48), torch.arange(48) % CLASSES)
    test = InMemory(pixels, torch.arange(count - 13, count), torch.arange(13) % CLASSES)
    grey, fifth = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    return ImageData(
        "noise", tuple("abcde"), 16, train, None, test, grey, fifth, "pad", 2, True, ()
    )


def course(method: str, **values: Any) -> dict[str, Any]:
    """Losses of each step, averaged over processes, the scores after them, and a checksum."""
    settings: dict[str, Any] = {
        "width": 0.125,
        "batch_size": 12,
        "epochs": 1,
        "lr": 0.05,
        "log_every": 1,
    }
    settings |= {"method": method, "device": "cpu"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        trainer = Trainer(make_config({**settings, **values}), squares(), folder, quiet=True)
        trainer.fit(until=STEPS)
        rows = folder.rows()
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
