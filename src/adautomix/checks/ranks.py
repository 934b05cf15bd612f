"""A loop in two processes, started as `torchrun` starts them, and which mixes each one makes."""

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
from adautomix.checks.watch import lit_batches, watch
from adautomix.errors import RunError

Mixes = list[list[list[float]]]
"""For each step and each mixed input of the network, the share of what shines in each image."""

PROCESSES = 2
PATIENCE = 300  # seconds
ALONE = "--alone leaves them out"


@contextmanager
def two_processes(address: str, steps: int) -> Iterator[Callable[[], list[Mixes]]]:
    """Start the loop in two processes; call what this gives to wait for the mixes of both.

    Args:
        address: of the function that makes the loop, see `load_named`.
        steps: training steps.
    """
    with TemporaryDirectory() as folder:
        port = free_port()
        files = [Path(folder) / f"{rank}.json" for rank in range(PROCESSES)]
        started = {file: start(address, steps, file, rank, port) for rank, file in enumerate(files)}
        try:
            yield lambda: wait_for(started)
        finally:
            for process in started.values():
                process.kill()
                process.wait()


def start(address: str, steps: int, file: Path, rank: int, port: int) -> "subprocess.Popen[bytes]":
    """One process, in the environment that its launcher would give it."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES}
    place |= {"LOCAL_WORLD_SIZE": PROCESSES, "MASTER_PORT": port}
    surroundings = {name: str(value) for name, value in place.items()}
    return subprocess.Popen(
        [sys.executable, "-m", __name__, address, str(steps), str(file)],
        env=os.environ | surroundings | {"MASTER_ADDR": "127.0.0.1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(processes: dict[Path, "subprocess.Popen[bytes]"]) -> list[Mixes]:
    """What the processes wrote into their files, in the end.

    Where one fails, the others are not awaited: they may wait for it.

    Raises:
        RunError: one failed or did not end.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        codes = {file: process.poll() for file, process in processes.items()}
        if failed := [file for file, code in codes.items() if code]:
            text = failed[0].read_text() if failed[0].exists() else f"exit {codes[failed[0]]}"
            raise RunError(f"the loop failed in {PROCESSES} processes ({text}): {ALONE}")
        if None not in codes.values():
            return [json.loads(file.read_text()) for file in codes]
        time.sleep(0.05)
    raise RunError(f"the loop did not end within {PATIENCE} s in {PROCESSES} processes: {ALONE}")


def free_port() -> int:
    """A port on which the processes can meet."""
    with socket.socket() as meeting:
        meeting.bind(("127.0.0.1", 0))
        return int(meeting.getsockname()[1])


def main(address: str, steps: str, file: str) -> None:
    """The work of one process: train on the lit batches, write down the mixes or what failed."""
    try:
        loop = load_named(address)()
        seen = watch(loop.train_step, lit_batches(loop, int(steps)))
        text = json.dumps([[rows.tolist() for rows in step.mixed] for step in seen])
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
