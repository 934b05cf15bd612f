"""Progress on stderr: a bar on a terminal, and a line per evaluated epoch."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from adautomix.runs.schema import EpochRow
from adautomix.text import printable
from adautomix.training.meters import Figures

_ESTIMATE_STEPS = 5  # steps after which the time of a run is estimated, and
_ESTIMATE_SECONDS = 3.0  # seconds, so that steps a GPU has not yet done do not count for much
_SCORES = "Scores are on test: student = trained network, teacher = average of its weights."


class Display:
    """Progress of one run within 80 columns; use it as a context manager.

    Args:
        steps: optimizer steps of the whole run.
        epochs: epochs of the whole run.
        quiet: show nothing.
    """

    def __init__(self, steps: int, epochs: int, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            refresh_per_second=4,
        )
        self._steps, self._epochs = steps, epochs
        self._task = self._progress.add_task(self._epoch_text(0), total=steps, figures="")
        self._read = 0.0
        self._score = ""
        self._first: tuple[int, float] | None = None  # step and time of the first step shown
        self._estimated = False

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def due(self) -> bool:
        """Whether to show new figures: every two seconds, and never without a progress bar."""
        return not self._progress.disable and time.monotonic() - self._read > 2

    def show(self, step: int, figures: Figures | None = None) -> None:
        """Move the bar to a step and, if figures are given, show them."""
        self._estimate(step, time.monotonic())
        self._progress.update(self._task, completed=step, description=self._epoch_text(step))
        if figures is not None:
            self._read = time.monotonic()
            text = figures_text(figures["loss"], figures["images_per_second"], self._score)
            self._progress.update(self._task, figures=text)

    def epoch(self, row: EpochRow, epochs: int) -> None:
        """Print a line for an epoch that was evaluated; the bar is enough for the others."""
        if row.student is None or row.teacher is None:
            return
        if not self._score:
            self.say(_SCORES)
        self._score = f"test {max(row.student, row.teacher, key=lambda scores: scores.main)}"
        self.say(epoch_line(row, epochs))

    def _epoch_text(self, step: int) -> str:
        """The epoch that a step belongs to, such as "epoch 3/30"."""
        epoch = min(self._epochs, step * self._epochs // max(1, self._steps) + 1)
        return f"epoch {epoch}/{self._epochs}"

    def _estimate(self, step: int, now: float) -> None:
        """Say once, after a few steps, about how long the run will take.

        Args:
            step: optimizer steps done.
            now: seconds of a clock that never goes back.
        """
        if self._estimated:
            return
        if self._first is None:
            self._first = step, now  # the first step takes longer than the others
            return
        done, elapsed = step - self._first[0], now - self._first[1]
        if done >= _ESTIMATE_STEPS and elapsed >= _ESTIMATE_SECONDS:
            self._estimated = True
            left = elapsed / done * (self._steps - step)
            self.say(f"estimated time: {duration(left)} for training, and evaluation on top")

    @contextmanager
    def compiling(self, first: bool) -> Iterator[None]:
        """Wrap a training step, and announce the compilation that its first call causes.

        A method with two kinds of steps compiles the second kind at its own first step.

        Args:
            first: whether this is the first compiled step of the process.
        """
        if first:
            self.say("compiling the training step: takes minutes once, then PyTorch caches it")
        started = time.perf_counter()
        yield
        if first:
            self.say(f"compiled: the first step took {time.perf_counter() - started:.0f} s")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        print_text(self.console, text)


def say(text: str, *, quiet: bool = False) -> None:
    """Print a line on stderr where no run is shown."""
    print_text(Console(stderr=True, quiet=quiet), text)


def print_text(console: Console, text: str) -> None:
    """Print a line as it is, with control characters escaped and nothing read as markup."""
    console.print(printable(text, None), highlight=False, markup=False, soft_wrap=True)


def figures_text(loss: float, images_per_second: float, score: str) -> str:
    """The figures beside the bar: loss, the latest test score once there is one, and speed."""
    parts = [f"loss {loss:.3f}", score, f"{images_per_second:.0f} images/s"]
    return "  ".join(part for part in parts if part)


def epoch_line(row: EpochRow, epochs: int) -> str:
    """The line of an evaluated epoch, which fits 80 columns: loss, scores and speed."""
    scores = f"student {row.student}  teacher {row.teacher}"
    speed = f"{row.images_per_second:.0f} images/s"
    return f"epoch {row.epoch}/{epochs}  loss {row.loss:.3f}  {scores}  {speed}"


def duration(seconds: float) -> str:
    """A duration in words: "40 s", "12 min" or "3 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def suite_progress(title: str, *, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a progress callback for evaluation suites, called with (task, done, total)."""
    console = Console(stderr=True, quiet=quiet)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed} of {task.total}"),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        shown = printable(title)
        task = progress.add_task(shown)

        def update(name: str, done: int, total: int) -> None:
            progress.update(task, description=f"{shown}  {name}", completed=done, total=total)

        yield update
