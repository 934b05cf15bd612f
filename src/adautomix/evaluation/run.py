"""Evaluate a run folder on its test set and keep the figures in `evaluation.json`."""

import json
from pathlib import Path
from typing import Any, Literal

from adautomix.data.pipeline import eval_batches
from adautomix.evaluation.accuracy import evaluate
from adautomix.training.loop import load_images
from adautomix.training.runtime import autocast
from adautomix.training.trained import load_trained


def evaluate_run(
    path: Path, *, which: Literal["last", "best"] = "last", device: str = "auto"
) -> dict[str, Any]:
    """Scores of student and teacher on the test set of the run's own data.

    Raises:
        UsageError: no run there, or its data are gone.
        RunError: the checkpoint is damaged.
    """
    trained = load_trained(path, which=which, device=device)
    data = load_images(trained.config)
    images = eval_batches(
        data.test, data, batch_size=trained.config.eval_batch_size, device=trained.device
    )
    with autocast(trained.device, trained.config.precision):
        scores = evaluate(trained.networks, images, trained.method.eval_head)
    result = {
        "version": 1,
        "checkpoint": which,
        "step": trained.step,
        "test_images": len(data.test),
        "networks": {name: s._asdict() for name, s in scores.items()},
    }
    (path / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    return result
