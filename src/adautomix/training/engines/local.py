"""Run jobs in processes of this machine."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from adautomix.training.engines.base import Ended, Job, perform, reason_of


class LocalEngine:
    """Processes of this machine, which divide its cores; each does one job after another.

    Only this process hears Ctrl-C; it passes requests to stop on to the others.

    Args:
        parallel: number of processes.
    """

    def __init__(self, parallel: int) -> None:
        self._parallel = parallel
        self._threads = max(1, (os.cpu_count() or 1) // parallel)
        self._queue: deque[Job] = deque()
        self._workers: list[Worker] = []

    def start(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; `ended` starts them."""
        self._queue.extend(jobs)

    def ended(self, seconds: float) -> list[Ended]:
        """Give idle processes the next jobs, then return jobs that ended."""
        self._fill()
        working = [worker for worker in self._workers if worker.job]
        handles = [one for worker in working for one in (worker.pipe, worker.process.sentinel)]
        ready = set(wait(handles, seconds))
        changed = [w for w in working if w.pipe in ready or w.process.sentinel in ready]
        return [worker.result() for worker in changed]

    def stop(self, *, now: bool) -> None:
        """Send SIGTERM, after which a run saves and ends, or SIGKILL."""
        self._queue.clear()
        for worker in self._workers:
            if now:
                worker.process.kill()
            elif worker.job:
                worker.process.terminate()

    def busy(self) -> bool:
        """Return whether a job is queued or running."""
        return bool(self._queue) or any(worker.job for worker in self._workers)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.end()

    def _fill(self) -> None:
        alive = [worker for worker in self._workers if worker.process.is_alive()]
        self._workers = alive
        while self._queue:
            worker = next((worker for worker in alive if worker.job is None), None)
            if worker is None:
                if len(alive) == self._parallel:
                    return
                worker = Worker(self._threads)
                alive.append(worker)
            worker.do(self._queue.popleft())


class Worker:
    """A process that does one job after another.

    Attributes:
        process: the process.
        pipe: jobs go in, reasons come out.
        job: what it is doing; None while it is idle.
    """

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.job: Job | None = None
        # Not a daemon: runs start processes that decode images.
        self.process = context.Process(target=serve, args=(theirs, threads, str(Path.cwd())))
        with no_interrupts():
            self.process.start()
        theirs.close()

    def do(self, job: Job) -> None:
        """Start a job."""
        self.job = job
        with suppress(OSError):  # a process that has died is noticed by `result`
            self.pipe.send(job)

    def result(self) -> Ended:
        """Return how the job ended, which is known as soon as pipe or process are ready."""
        job, self.job = self.job, None
        assert job is not None
        try:
            if self.pipe.poll():
                return Ended(job, self.pipe.recv())
        except (EOFError, OSError):
            pass
        self.process.join()
        return Ended(job, death_of(self.process.exitcode))

    def end(self) -> None:
        """End the process; an idle one has nothing to lose."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


def death_of(exit_code: int | None) -> str:
    """Return why a process ended that did not report its job."""
    if exit_code is not None and exit_code < 0:
        return f"its process was ended by {signal.Signals(-exit_code).name}"
    return f"its process ended with exit status {exit_code}"


@contextmanager
def no_interrupts() -> Iterator[None]:
    """Start processes that never receive Ctrl-C, which a terminal sends to all of them."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would end the blocking
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(pipe: Connection, threads: int, folder: str) -> None:
    """Do jobs until the other end of the pipe is closed."""
    start_worker(threads)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            reason = perform(job, folder)
        except Exception as error:
            reason = reason_of(error)
        pipe.send(reason)


def start_worker(threads: int) -> None:
    """Prepare a process that trains runs: it ends with the process that started it.

    Otherwise the workers of a killed comparison would go on training.
    """
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=end_after, args=(parent.sentinel,), daemon=True).start()


def end_after(sentinel: int) -> None:
    """Wait for the end of the process that a sentinel belongs to, then end this one at once.

    This is as a kill, which loses nothing that was saved.
    """
    wait([sentinel])
    os._exit(1)
