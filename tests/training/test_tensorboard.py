"""TensorBoard events hold what metrics.jsonl holds."""

import sys
from pathlib import Path

import pytest
from records import train_fields
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adautomix.errors import UsageError
from adautomix.runs.schema import TrainRow
from adautomix.training.tensorboard import EventWriter, scalars


def read(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_scalars_are_named_by_their_path() -> None:
    row = {
        "loss": 0.5,
        "teacher": {"top1": 0.25},
        "mixture_accuracy": None,
    }
    assert dict(scalars(row)) == {"loss": 0.5, "teacher/top1": 0.25}


def test_events_of_a_run_cut_off_are_purged(tmp_path: Path) -> None:
    first = EventWriter(tmp_path)
    for step in (1, 2, 3):
        first.add(TrainRow(**train_fields(step, loss=float(step))))
    EventWriter(tmp_path, step=2).add(TrainRow(**train_fields(3, loss=30.0)))
    assert read(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_without_tensorboard_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="pip install tensorboard"):
        EventWriter(tmp_path)
