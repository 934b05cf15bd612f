"""What a person sees of a running training: a bar on a terminal, a line an epoch elsewhere."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display:
    """Progress of one run on stderr; use as a context manager.

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
        """Whether it is time to read new figures; at most every two seconds, and never unseen."""
        return not self._progress.disable and time.monotonic() - self._read > 2

    def show(self, step: int, figures: dict[str, float] | None = None) -> None:
        """Move the bar; with figures, show them too."""
        self._progress.update(self._task, completed=step)
        if figures:
            self._read = time.monotonic()
            self._progress.update(self._task, figures="  ".join(figure_texts(figures)))

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """A line for a finished epoch that was evaluated; the bar is enough for the others."""
        if "student" not in row:
            return
        *losses, speed = figure_texts(row)
        scores = [f"{name} {row[name]['top1']:.2%}" for name in ("student", "teacher")]
        line = "  ".join([f"epoch {row['epoch']}/{epochs}", *losses, *scores, speed])
        self.console.print(
            f"[dim]{self._title}[/dim]  {line}",
            highlight=False,
            soft_wrap=True,
        )

    @contextmanager
    def compiling(self, first: bool) -> Iterator[None]:
        """Around a step: if it is the first, it is compiled, and people are told how long it took.

        Where a method's steps are of two kinds, the second is compiled at its own first step.
        """
        if first:
            self.say("compiling the step: minutes at first, seconds from PyTorch's cache later")
        started = time.perf_counter()
        yield
        if first:
            self.say(f"compiled; the first step took {time.perf_counter() - started:.0f} s")

    def say(self, text: str) -> None:
        """A line for the reader."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def figure_texts(figures: Mapping[str, Any]) -> list[str]:
    """The loss, the mixture accuracy (where the method has one) and the speed, as text."""
    texts = [f"loss {figures['loss']:.3f}"]
    if figures["mixture_accuracy"] is not None:
        texts.append(f"mixture accuracy {figures['mixture_accuracy']:.1%}")
    return [*texts, f"{figures['images_per_second']:.0f} images/s"]


@contextmanager
def suite_progress(title: str, *, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for the parts of evaluation suites; call it with (part, done, of)."""
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
        task = progress.add_task(title)

        def tell(part: str, done: int, of: int) -> None:
            progress.update(task, description=f"{title}  {part}", completed=done, total=of)

        yield tell
