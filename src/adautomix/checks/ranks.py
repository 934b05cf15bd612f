"""Run a training loop in two processes, as `torchrun` would, and compare which mixes they make."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed as dist

from adautomix.checks.script import load_named
from adautomix.checks.tracing import probe_batches, trace_steps
from adautomix.errors import RunError

Mixes = list[list[list[float]]]
"""For each step and each mixed input of the network, the brightness fraction of each image."""

PROCESSES = 2
TIMEOUT = 300  # seconds
HINT = "--alone skips this check"


@contextmanager
def two_processes(address: str, steps: int) -> Iterator[Callable[[], list[Mixes]]]:
    """Start a loop in two processes; yield a function that waits for the mixes of both.

    Args:
        address: address of the function that makes the loop; see `load_named`.
        steps: number of training steps.
    """
    with TemporaryDirectory() as folder:
        port = free_port()
        files = [Path(folder) / f"{rank}.json" for rank in range(PROCESSES)]
        processes = {
            file: start_process(address, steps, file, rank, port) for rank, file in enumerate(files)
        }
        try:
            yield lambda: wait_for_results(processes)
        finally:
            for process in processes.values():
                process.kill()
                process.wait()


def start_process(
    address: str, steps: int, file: Path, rank: int, port: int
) -> "subprocess.Popen[bytes]":
    """Start one process with the environment variables that `torchrun` sets."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank}
    sizes = {"WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES, "MASTER_PORT": port}
    variables = {name: str(value) for name, value in (ranks | sizes).items()}
    return subprocess.Popen(
        [sys.executable, "-m", __name__, address, str(steps), str(file)],
        env=os.environ | variables | {"MASTER_ADDR": "127.0.0.1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for_results(processes: dict[Path, "subprocess.Popen[bytes]"]) -> list[Mixes]:
    """Wait until all processes have finished and return what they wrote to their files.

    If one fails, the others are not waited for, because they may be waiting for it.

    Raises:
        RunError: a process failed, or the time is up.
    """
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        codes = {file: process.poll() for file, process in processes.items()}
        if failed := [file for file, code in codes.items() if code]:
            text = failed[0].read_text() if failed[0].exists() else f"exit {codes[failed[0]]}"
            raise RunError(f"the loop failed in {PROCESSES} processes ({text}): {HINT}")
        if None not in codes.values():
            return [json.loads(file.read_text()) for file in codes]
        time.sleep(0.05)
    raise RunError(f"the loop did not end within {TIMEOUT} s in {PROCESSES} processes: {HINT}")


def free_port() -> int:
    """A free port for the process group."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def main(address: str, steps: str, file: str) -> None:
    """Train on probe batches in one process; write the mixes, or the error, to a file."""
    try:
        loop = load_named(address)()
        traces = trace_steps(loop.train_step, probe_batches(loop, int(steps)))
        text = json.dumps([[rows.tolist() for rows in step.mixed] for step in traces])
    except Exception as error:
        Path(file).write_text(f"{type(error).__name__}: {error}")
        raise
    Path(file).write_text(text)
    _leave_together()


def _leave_together() -> None:
    """End the process group; a process whose peer is gone before that would abort."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
