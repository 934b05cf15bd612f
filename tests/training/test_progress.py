"""The progress of a run at 80 columns."""

import io

import pytest
from records import epoch_fields
from rich.console import Console

from adautomix.metrics import Scores
from adautomix.runs.schema import EpochRow
from adautomix.training.meters import Figures
from adautomix.training.progress import Display, duration, epoch_line

SCORES = Scores(0.5, 0.9, 1.0, 0.1)
BETTER = Scores(0.6123, 0.9, 1.0, 0.1)


def evaluated(epoch: int) -> EpochRow:
    fields = epoch_fields(epoch, epoch=epoch, student=SCORES, teacher=BETTER)
    return EpochRow.model_validate(fields)


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Display:
    """A run of 300 epochs with 10 steps each on a terminal of 80 columns."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    return Display(3000, 300)


def bar_of(display: Display) -> str:
    """The bar as a terminal shows it, without colors."""
    console = Console(width=80, file=io.StringIO(), record=True, force_terminal=True)
    console.print(display._progress.make_tasks_table(display._progress.tasks))
    return console.export_text().rstrip()


def test_the_bar_fits_80_columns_without_cuts(display: Display) -> None:
    figures = Figures(
        loss=12.345, mixture_accuracy=0.5, parts={}, seconds=1, images_per_second=12345
    )
    display.epoch(evaluated(99), 300)
    display.show(995, figures)
    bar = bar_of(display)
    assert "\n" not in bar
    assert "…" not in bar
    assert bar.startswith("epoch 100/300 ")
    assert "loss 12.345  test 61.23%  12345 images/s" in bar
    assert bar.endswith("left")


def test_lines_of_epochs_fit_80_columns(
    display: Display, capsys: pytest.CaptureFixture[str]
) -> None:
    display.epoch(EpochRow.model_validate(epoch_fields(1)), 300)
    assert capsys.readouterr().err == ""
    display.epoch(evaluated(1), 300)
    display.epoch(evaluated(300), 300)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Scores are on test: student = trained network")
    assert lines[1:] == [epoch_line(evaluated(1), 300), epoch_line(evaluated(300), 300)]
    assert all(len(line) <= 80 for line in lines)
    assert lines[2].startswith("epoch 300/300  loss 1.000  student 50.00%  teacher 61.23%")


def test_the_time_is_estimated_once_and_without_the_first_step(
    display: Display, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, now in ((1, 100.0), (2, 100.5), (6, 102.5), (7, 103.0), (9, 104.0)):
        display._estimate(step, now)
    # 6 steps took 3 seconds, and 2993 are left.
    line = "estimated time: 25 min for training, and evaluation on top\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40, "40 s"), (59.4, "59 s"), (90, "2 min"), (3599, "1 h 0 min"), (11100, "3 h 5 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
