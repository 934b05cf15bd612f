"""Progress on stderr: a bar on a terminal, and a line per evaluated epoch."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adautomix.runs.schema import EpochRow
from adautomix.text import printable
from adautomix.training.meters import Figures


class Display:
    """Progress of one run; use it as a context manager.

    Args:
        title: what is being trained.
        steps: optimizer steps of the whole run.
        quiet: show nothing.
    """

    def __init__(self, title: str, steps: int, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(title, total=steps, figures="")
        self._title = title
        self._read = 0.0

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
        self._progress.update(self._task, completed=step)
        if figures is not None:
            self._read = time.monotonic()
            losses = losses_text(figures["loss"], figures["mixture_accuracy"])
            text = f"{losses}  {figures['images_per_second']:.0f} images/s"
            self._progress.update(self._task, figures=text)

    def epoch(self, row: EpochRow, epochs: int) -> None:
        """Print a line for an epoch that was evaluated; the bar is enough for the others."""
        if row.student is None or row.teacher is None:
            return
        scores = f"student {row.student}  teacher {row.teacher}"
        losses, speed = losses_text(row.loss, row.mixture_accuracy), row.images_per_second
        self.console.print(
            f"[dim]{self._title}[/dim]  epoch {row.epoch}/{epochs}  {losses}  {scores}  "
            f"{speed:.0f} images/s",
            highlight=False,
            soft_wrap=True,
        )

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
        self.console.print(printable(text, None), highlight=False, markup=False, soft_wrap=True)


def say(text: str, *, quiet: bool = False) -> None:
    """Print a line on stderr where no run is shown."""
    console = Console(stderr=True, quiet=quiet)
    console.print(printable(text, None), highlight=False, markup=False, soft_wrap=True)


def losses_text(loss: float, mixture_accuracy: float | None) -> str:
    """The loss, and the mixture accuracy if the method reports one."""
    text = f"loss {loss:.3f}"
    return text if mixture_accuracy is None else f"{text}  mixture accuracy {mixture_accuracy:.1%}"


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
