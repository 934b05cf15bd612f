"""A pool of decoding processes.

The processes are plain subprocesses that run `decode.py` as a script. Unlike forked ones they
are safe after torch has started threads or a GPU; unlike spawned ones they import neither torch
nor the user's main program. A thread a process sends requests and copies the pixels out.
"""

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np

from adautomix.data import decode
from adautomix.data.color import Pixels
from adautomix.errors import RunError

if TYPE_CHECKING:
    from rich.progress import Progress

BadRows = dict[int, str]  # which files are unreadable, and why
Item = TypeVar("Item")
_CHUNK = 64  # images of one request


def available_cpus() -> int:
    """The processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Decoders:
    """`workers` processes (default: one a processor) that decode; they start on first use."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = max(1, available_cpus() if workers is None else workers)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        self._of_thread = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []

    def decode(self, paths: Sequence[str], out: Pixels) -> Future[BadRows]:
        """Fill `out` `[len(paths), S, S, 3]` in the background.

        The future gives the position and reason of each unreadable file, whose pixels are zeros;
        it raises RunError if the process dies.
        """
        return self._threads.submit(self._decode, paths, out)

    def _decode(self, paths: Sequence[str], out: Pixels) -> BadRows:
        process = self._process()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([out.shape[1], list(paths)]).encode() + b"\n")
            process.stdin.flush()
            bad: dict[str, str] = json.loads(process.stdout.readline())
            out[:] = np.frombuffer(process.stdout.read(out.nbytes), np.uint8).reshape(out.shape)
        except (OSError, ValueError) as error:
            raise RunError(
                f"a decoding process ended while it read {paths[0]} and the {len(paths) - 1} "
                "images after it: too little memory? use fewer workers"
            ) from error
        return {int(position): reason for position, reason in bad.items()}

    def _process(self) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] | None = getattr(self._of_thread, "process", None)
        if process is None:
            # -P: the script's own folder must not shadow modules of the standard library.
            command = [sys.executable, "-P", decode.__file__]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._of_thread.process = process
            self._processes.append(process)
        return process

    def close(self) -> None:
        """Drop what has not begun, then end the processes."""
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def ahead(begun: Iterable[Item], depth: int) -> Iterator[Item]:
    """The items in order, each begun (taken from the iterable) `depth` items before it is given."""
    waiting: deque[Item] = deque()
    for item in begun:
        waiting.append(item)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def decode_all(
    paths: Sequence[str], side: int, *, workers: int | None, progress: bool
) -> Generator[tuple[Pixels, BadRows]]:
    """Decode every file, chunk by chunk: pixels `[k, side, side, 3]` and which are unreadable."""

    def begin(start: int) -> tuple[int, Pixels, Future[BadRows]]:
        chunk = paths[start : start + _CHUNK]
        out = np.empty((len(chunk), side, side, 3), np.uint8)
        return start, out, decoders.decode(chunk, out)

    with Decoders(workers) as decoders, _progress_bar(progress) as bar:
        task = bar.add_task("Reading images", total=len(paths))
        begun = (begin(start) for start in range(0, len(paths), _CHUNK))
        for start, out, future in ahead(begun, 4 * decoders.workers):
            yield out, {start + position: reason for position, reason in future.result().items()}
            bar.advance(task, len(out))


def _progress_bar(enabled: bool) -> "Progress":
    from rich.console import Console  # late: only a first load shows it
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:,.0f} images/s")

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate()
    left = TextColumn("left"), TimeRemainingColumn()
    return Progress(*columns, *left, console=Console(stderr=True), disable=not enabled)
