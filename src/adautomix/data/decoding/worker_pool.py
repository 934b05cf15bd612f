"""A pool of helping processes, each running a script of ours.

The processes are plain subprocesses. Unlike forked ones they are safe after torch has started
threads or a GPU; unlike spawned ones they import neither torch nor the user's main program. A
thread a process sends requests and copies the pixels out.
"""

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from adautomix.data.color import Pixels

Item = TypeVar("Item")


def available_cpus() -> int:
    """The processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerPool:
    """`workers` processes (default: one a processor) that run `script`; they start on first use.

    The script answers every request, a line of JSON on standard input and the bytes it announces,
    with a line of JSON and pixels. It ends when its standard input does.
    """

    def __init__(self, script: str, workers: int | None = None) -> None:
        self.script = script
        self.workers = max(1, available_cpus() if workers is None else workers)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="helper")
        self._of_thread = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []

    def submit(self, work: Callable[..., Item], *arguments: Any) -> "Future[Item]":
        """Call a function that may `exchange`, in the background."""
        return self._threads.submit(work, *arguments)

    def exchange(self, request: Any, out: Pixels, given: bytes = b"") -> Any:
        """Send a request, fill `out` and return the answer; raises OSError or ValueError.

        Only within what was submitted: each thread has a process of its own.
        """
        process = self._process()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n" + given)
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        out[:] = np.frombuffer(process.stdout.read(out.nbytes), np.uint8).reshape(out.shape)
        return answer

    def _process(self) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] | None = getattr(self._of_thread, "process", None)
        if process is None:
            # -P: the script's own folder must not shadow modules of the standard library.
            command = [sys.executable, "-P", self.script]
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
