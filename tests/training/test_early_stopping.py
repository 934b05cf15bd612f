"""Runs that end when the validation score no longer improves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adautomix.config import TrainConfig, load_config
from adautomix.errors import UsageError
from adautomix.metrics import Scores
from adautomix.reporting.comparison import compare_runs
from adautomix.reporting.early_stops import early_stop_lines
from adautomix.reporting.glance import remarks
from adautomix.reporting.tables import run_notes
from adautomix.runs.checkpoint import read_checkpoint
from adautomix.runs.records import read_run
from adautomix.runs.schema import EarlyStop
from adautomix.training.evaluator import Evaluator
from adautomix.training.loop import Trainer
from adautomix.training.run import open_run, resume, run_to_end, train


def config_for(photos: Path, out: Path, **flags: Any) -> TrainConfig:
    usual = {"data": str(photos), "out": str(out), "epochs": 8, "batch_size": 9, "workers": 1}
    net = {"model": "resnet18", "stem": "cifar", "width": 0.125, "method": "vanilla"}
    return load_config(flags=usual | net | {"val_fraction": 0.25} | flags)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Validation accuracies of the evaluations to come, of both networks."""
    scores: list[float] = []
    evaluate = Evaluator.evaluate

    def scripted(self: Evaluator) -> dict[str, Any]:
        fields = evaluate(self)
        value = Scores(scores.pop(0), 1.0, 1.0, 0.0)
        return fields | {"val": {"student": value, "teacher": value}}

    monkeypatch.setattr(Evaluator, "evaluate", scripted)
    return scores


@pytest.mark.slow
def test_a_run_stops_when_nothing_improves(
    photos: Path, tmp_path: Path, script: list[float]
) -> None:
    script += [0.5, 0.7, 0.7, 0.6, 0.69, 1.0]  # the same again is no improvement
    result = train(config_for(photos, tmp_path / "run", patience=3), quiet=True)
    summary = result.summary
    assert script == [1.0]
    assert summary.epochs == 5
    assert summary.steps == 10
    assert summary.early_stop == EarlyStop(planned_epochs=8, patience=3)
    assert summary.best is not None
    assert (summary.best.epoch, summary.best.split) == (2, "val")
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "best").step == 4
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last").step == 10
    assert (tmp_path / "run" / "samples" / "epoch-0005.png").is_file()
    assert resume(tmp_path / "run", quiet=True).trained is False

    run = read_run(tmp_path / "run")
    (line,) = early_stop_lines([run])
    assert line == (
        "run: stopped early after epoch 5 of 8, because 3 evaluations in a row brought no better "
        "validation score than epoch 2 (student 70.00%), which `--which best` uses."
    )
    assert line in run_notes(run)
    assert line in remarks(compare_runs([run]), [])


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 4, 5])  # at the best epoch, while it waits, and at the end
def test_a_resumed_run_goes_on_counting(
    stop: int, photos: Path, tmp_path: Path, script: list[float]
) -> None:
    script += [0.5, 0.7, 0.7, 0.6, 0.69, 1.0]
    config = config_for(photos, tmp_path / "run", patience=3)
    trainer = first_epochs(config, tmp_path / "run", steps=2 * stop)
    assert trainer.stale == {2: 0, 4: 2, 5: 3}[stop]
    again = open_run(tmp_path / "run", quiet=True)
    assert again.stale == trainer.stale
    if stop == 5:
        script.insert(0, 0.69)  # for its predictions it evaluates the last epoch again
    summary = run_to_end(again).summary
    assert summary.epochs == 5
    assert summary.early_stop is not None


def first_epochs(config: TrainConfig, path: Path, steps: int) -> Trainer:
    from adautomix.runs.build import data_info, load_images
    from adautomix.runs.folder import RunFolder

    folder = RunFolder.create(config)
    data = load_images(config, progress=False)
    folder.write_data_info(data_info(data))
    trainer = Trainer(config, data, folder, quiet=True)
    trainer.fit(until=steps)
    return trainer


@pytest.mark.parametrize(
    ("values", "flags", "epochs"),
    [
        # Only evaluations count, not the epochs between them.
        ([0.5, 0.5, 0.9], {"eval_every": 2, "patience": 1}, 4),
        # Improving at the last moment goes on.
        ([0.5, 0.4, 0.6, 0.5, 0.5, 0.9], {"patience": 2}, 5),
        # Patience begins after the phase that trains only the heads.
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.9], {"patience": 2, "probe_epochs": 3}, 5),
        # A run that reaches its end was not stopped.
        ([0.5, 0.4], {"patience": 1, "epochs": 2}, None),
    ],
)
def test_what_counts(
    values: Sequence[float],
    flags: dict[str, Any],
    epochs: int | None,
    photos: Path,
    tmp_path: Path,
    script: list[float],
) -> None:
    script += values
    summary = train(config_for(photos, tmp_path / "run", **flags), quiet=True).summary
    if epochs is None:
        assert summary.early_stop is None
        assert early_stop_lines([read_run(tmp_path / "run")]) == []
    else:
        assert summary.epochs == epochs
        assert summary.early_stop is not None


def test_test_images_never_decide(photos: Path, tmp_path: Path) -> None:
    config = config_for(photos, tmp_path / "run", patience=3, val_fraction=0.0)
    with pytest.raises(UsageError, match=r"patience = 3 needs validation images.*val_fraction"):
        train(config, quiet=True)
    assert not (tmp_path / "run" / "config.yaml").exists()
