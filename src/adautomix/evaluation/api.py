"""Evaluate trained networks from Python; exported as `adautomix.evaluate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adautomix.evaluation.evaluate import evaluate as run_suites
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
    """Evaluate trained networks: accuracy, calibration, robustness and more.

    Args:
        target: a run folder (student and teacher), a folder or safetensors file written by
            `export`, or the name of a timm model.
        suites: one or several names that `adautomix suites` lists, or "all", which skips suites
            that do not apply to the target.
        settings: settings by suite name, such as `{"attack": {"steps": 20}}`.
        data: data set settings, such as `{"data": "my_photos"}`; they override those of a run, and
            other targets require them.
        weights: safetensors file for a timm model.
        pretrained: use timm's published weights.
        checkpoint: "last", "best", or a kept checkpoint of the run.
        images: maximum number of test images; None uses all.
        batch_size: images per forward pass.
        seed: random seed.
        out: folder for the results; None uses the run folder, or `runs/evaluated-<name>` for other
            targets.
        device: "auto", "cpu", "cuda" …

    Returns:
        The record, which is also written to `evaluation.json` in the output folder;
        `record.result("accuracy")` returns the typed result of a suite.

    Raises:
        UsageError: a suite or a setting is unknown, or the target cannot be loaded.
        NotApplicableError: a suite that was requested by name does not apply to the target.
        RunError: a checkpoint is damaged.

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
    return run_suites(load_target(str(target), options), names, settings or {})
