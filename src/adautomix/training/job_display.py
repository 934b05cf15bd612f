"""Progress of many runs on stderr: bars on a terminal, else a line per event."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from adautomix.runs.folder import RunFolder
from adautomix.runs.lock import LOCK
from adautomix.runs.schema import Summary
from adautomix.training.engines import Job
from adautomix.training.progress import print_text

TAIL_BYTES = 4096  # hold the last row of a `metrics.jsonl`


class JobDisplay:
    """Shows which jobs run, how far they are, and how they ended; use it as a context manager.

    What it shows is read from the run folders, so that it works for every engine.

    Attributes:
        done: number of jobs that have ended.

    Args:
        jobs: all jobs.
        engine: what does them.
        parallel: number of jobs at the same time; 0 if a scheduler decides.
        quiet: show nothing.
    """

    def __init__(
        self, jobs: Sequence[Job], engine: str, parallel: int, *, quiet: bool = False
    ) -> None:
        self.done = 0
        self._jobs, self._left = jobs, list(jobs)
        self._engine, self._parallel = engine, parallel
        self._console = Console(stderr=True, quiet=quiet)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            refresh_per_second=2,
        )
        self._bars: dict[str, TaskID] = {}
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        beside = f", {self._parallel} at a time" if self._parallel else ""
        self._say(f"{len(self._jobs)} runs{beside}, engine {self._engine}")
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def refresh(self) -> None:
        """Show the jobs whose run folder is being written."""
        for job in self._left:
            if not (job.folder / LOCK).exists():
                continue
            if job.name not in self._bars:
                self._bars[job.name] = self._progress.add_task(job.name, total=job.epochs, state="")
                if self._progress.disable:
                    self._say(f"started {job.name}")
            epoch = epochs_done(job.folder / "metrics.jsonl")
            state = f"epoch {epoch:.1f}/{job.epochs}"
            self._progress.update(self._bars[job.name], completed=epoch, state=state)

    def begin(self, job: Job) -> None:
        """Say that a job begins in this process."""
        self._say(f"[{self.done + 1} of {len(self._jobs)}] {job.name}")

    def finished(self, job: Job) -> None:
        """Say that a job is done, with the scores of its run and the time the others will take."""
        self._end(job)
        elapsed, total = time.perf_counter() - self._started, len(self._jobs)
        left = elapsed / self.done * (total - self.done)
        summary = RunFolder(job.folder).summary()
        self._say(
            f"{job.name}: {scores_of(summary)}  ({self.done} of {total} runs, {left:.0f} s left)"
        )

    def failed(self, job: Job, reason: str) -> None:
        """Say that a job failed; the others go on."""
        self._end(job)
        self._say(f"{job.name} failed: {reason}")

    def stopping(self, signal_name: str) -> None:
        """Say what happens after a signal."""
        self._say(
            f"{signal_name}: each run saves after its step and stops; once more ends them at once"
        )

    def _end(self, job: Job) -> None:
        self.done += 1
        self._left = [other for other in self._left if other is not job]
        if job.name in self._bars:
            self._progress.remove_task(self._bars.pop(job.name))

    def _say(self, text: str) -> None:
        print_text(self._console, text)


def scores_of(summary: Summary | None) -> str:
    """Return the final scores of student and teacher; "" without a summary."""
    final = summary.final if summary else {}
    return "  ".join(f"{name} {scores}" for name, scores in final.items())


def epochs_done(metrics: Path) -> float:
    """Return the epochs in the last row of a `metrics.jsonl`, which may just be written."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
            lines = file.read().splitlines()
        return float(json.loads(lines[-1])["epoch"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0.0
