"""A pool of helping processes, each running a script of ours.

The processes are plain subprocesses. Unlike forked ones they are safe after torch has started
threads or a GPU; unlike spawned ones they import neither torch nor the user's main program. There
is one thread per process, which sends requests and copies the pixels out. A process that dies or
does not answer in time is replaced by a new one for the next request.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from adautomix.data.color import Pixels

Item = TypeVar("Item")

PATIENCE = 300.0
"""Seconds within which a request must be answered."""


class WorkerLostError(OSError):
    """A process died or was stopped before it answered; the message says how."""


def available_cpus() -> int:
    """The number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerPool:
    """`workers` processes (default: one per processor) that run `script`; they start on first use.

    The script answers every request, a line of JSON on standard input and the bytes it announces,
    with a line of JSON and pixels. It ends when its standard input does.
    """

    def __init__(self, script: str, workers: int | None = None) -> None:
        self.script = script
        self.workers = max(1, available_cpus() if workers is None else workers)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="helper")
        self._of_thread = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._watchdog = Watchdog()

    def submit(self, work: Callable[..., Item], *arguments: Any) -> "Future[Item]":
        """Call a function that may `exchange`, in the background."""
        return self._threads.submit(work, *arguments)

    def exchange(
        self,
        request: Any,
        place: Callable[[Any], Pixels],
        given: Iterable[bytes | memoryview] = (),
        patience: float | None = None,
    ) -> Any:
        """Send a request and return the answer; only within what was submitted.

        Args:
            request: sent as a line of JSON.
            place: returns the contiguous array that the pixels behind an answer are written to.
            given: bytes sent after the request.
            patience: seconds within which the answer must have come; None: `PATIENCE`.

        Raises:
            WorkerLostError: the process died or did not answer in time.
        """
        process = self._process()
        assert process.stdin is not None
        assert process.stdout is not None
        seconds = PATIENCE if patience is None else patience
        with self._watchdog.watching(process, seconds) as watched:
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.writelines(given)
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
                _read_into(process.stdout, place(answer).data.cast("B"))
                return answer
            except (OSError, EOFError, ValueError):
                pass
        self._end(process)
        if watched.expired:
            raise WorkerLostError(f"no answer within {seconds:g} seconds")
        raise WorkerLostError(_how_it_ended(process.returncode))

    def _process(self) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] | None = getattr(self._of_thread, "process", None)
        if process is None:
            # -P: the script's own folder must not shadow modules of the standard library.
            command = [sys.executable, "-P", self.script]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._of_thread.process = process
            self._processes.append(process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the process of this thread, so that the next request starts another."""
        process.kill()
        with suppress(OSError):  # what is left in the buffer has nowhere to go
            process.communicate()
        self._of_thread.process = None
        self._processes.remove(process)

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


class Watchdog:
    """Kills processes that do not answer in time; its thread runs only while one is watched."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: set[_Watched] = set()
        self._running = False

    @contextmanager
    def watching(self, process: subprocess.Popen[bytes], seconds: float) -> "Iterator[_Watched]":
        """Kill the process unless the block ends within so many seconds."""
        watched = _Watched(process, time.monotonic() + seconds)
        with self._changed:
            self._watched.add(watched)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="watchdog", daemon=True).start()
        try:
            yield watched
        finally:
            with self._changed:
                self._watched.discard(watched)

    def _run(self) -> None:
        with self._changed:
            while self._watched:
                now = time.monotonic()
                for watched in [one for one in self._watched if one.deadline <= now]:
                    watched.expired = True
                    watched.process.kill()
                    self._watched.discard(watched)
                self._changed.wait(1.0)
            self._running = False


class _Watched:
    """A process and the time until which it must answer."""

    def __init__(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        self.process, self.deadline, self.expired = process, deadline, False


def _read_into(file: Any, place: memoryview) -> None:
    filled = 0
    while filled < len(place):
        count = file.readinto(place[filled:])
        if not count:
            raise EOFError
        filled += count


def _how_it_ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "it was killed, perhaps for lack of memory"
    if code < 0:
        return f"it crashed ({signal.Signals(-code).name})"
    return f"it ended with status {code}"


def ahead(begun: Iterable[Item], depth: int) -> Iterator[Item]:
    """The items in order, each begun (taken from the iterable) `depth` items before it is given."""
    waiting: deque[Item] = deque()
    for item in begun:
        waiting.append(item)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting
