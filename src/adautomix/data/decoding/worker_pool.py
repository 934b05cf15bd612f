"""A pool of worker processes, each running a script of this package.

The workers are plain subprocesses. Unlike forked processes, they are safe after torch has started
threads or initialized a GPU; unlike spawned processes, they import neither torch nor the user's
main program. One thread per process sends requests and copies the pixels of the answers. A process
that dies or times out is replaced at the next request.
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
"""Default timeout of a request, in seconds."""


class WorkerLostError(OSError):
    """A worker process died or timed out before it answered; the message says how."""


def available_cpus() -> int:
    """Return the number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerPool:
    """Pool of processes that run a script, which start on first use.

    A request is one line of JSON on the script's standard input, followed by the bytes that it
    announces. The script answers with one line of JSON followed by pixels, and exits at the end of
    its standard input.

    Args:
        script: path of the script.
        workers: number of processes; None: one per processor.
    """

    def __init__(self, script: str, workers: int | None = None) -> None:
        self.script = script
        self.workers = max(1, available_cpus() if workers is None else workers)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="helper")
        self._of_thread = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._watchdog = Watchdog()

    def submit(self, work: Callable[..., Item], *arguments: Any) -> "Future[Item]":
        """Call a function in a thread of the pool, where it can use `exchange`."""
        return self._threads.submit(work, *arguments)

    def exchange(
        self,
        request: Any,
        place: Callable[[Any], Pixels],
        given: Iterable[bytes | memoryview] = (),
        patience: float | None = None,
    ) -> Any:
        """Send a request and return the answer; call it only from a submitted function.

        Args:
            request: sent as a line of JSON.
            place: returns, for an answer, the contiguous array that its pixels are written to.
            given: bytes sent after the request.
            patience: timeout in seconds; None: `PATIENCE`.

        Raises:
            WorkerLostError: the process died or timed out.
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
            # -P: the script's folder must not shadow modules of the standard library.
            command = [sys.executable, "-P", self.script]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._of_thread.process = process
            self._processes.append(process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the process of this thread; the next request starts a new one."""
        process.kill()
        with suppress(OSError):  # flushing buffered input to a dead process fails
            process.communicate()
        self._of_thread.process = None
        self._processes.remove(process)

    def close(self) -> None:
        """Cancel pending requests, wait for running ones, and stop the processes."""
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
    """Kills processes that time out; its thread runs only while a process is watched."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: set[_Watched] = set()
        self._running = False

    @contextmanager
    def watching(self, process: subprocess.Popen[bytes], seconds: float) -> "Iterator[_Watched]":
        """Kill the process unless the block ends within `seconds`."""
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
    """A process and the monotonic time at which it times out."""

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
    """Yield the items in order; each is taken from `begun`, and so started, `depth` items ahead."""
    waiting: deque[Item] = deque()
    for item in begun:
        waiting.append(item)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting
