"""What Python users call to evaluate trained networks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adautomix.evaluation import evaluate as suites_runner
from adautomix.evaluation.load_target import EvalOptions, load_target
from adautomix.evaluation.record import Evaluation


def evaluate(
    target: Path | str,
    suites: str | Sequence[str] = ("accuracy",),
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    data: Mapping[str, Any] | None = None,
    weights: Path | str | None = None,
    pretrained: bool = False,
    checkpoint: str = "last",
    images: int | None = None,
    batch_size: int = 500,
    seed: int = 0,
    out: Path | str | None = None,
    device: str = "auto",
) -> Evaluation:
    """Evaluate a trained network: accuracy, calibration, robustness and more.

    Args:
        target: a run folder (student and teacher), a folder of `export`, or the name of a timm
            model.
        suites: names that `adautomix suites` lists, or "all".
        settings: settings by suite, such as `{"attack": {"steps": 20}}`.
        data: data set settings, such as `{"data": "my_photos"}`; they override those of a run, and
            other targets require them.
        weights: safetensors file for a timm model.
        pretrained: use timm's published weights.
        checkpoint: "last", "best", or a kept checkpoint of the run.
        images: evaluate at most this many test images.
        batch_size: images per forward pass.
        seed: random seed.
        out: folder of the results; default: the run folder.
        device: "auto", "cpu", "cuda" …

    Returns:
        The record, which is also written to `evaluation.json`; `record.result("accuracy")`.

    Raises:
        UsageError: an unknown suite or setting, or a target that cannot be loaded.

    Example:
        record = adautomix.evaluate("runs/pets", ["calibration", "attack"])
    """
    options = EvalOptions(
        data=dict(data or {}),
        weights=None if weights is None else Path(weights),
        pretrained=pretrained,
        checkpoint=checkpoint,
        images=images,
        batch_size=batch_size,
        seed=seed,
        out=None if out is None else Path(out),
        device=device,
    )
    names = [suites] if isinstance(suites, str) else list(suites)
    return suites_runner.evaluate(load_target(str(target), options), names, settings or {})
