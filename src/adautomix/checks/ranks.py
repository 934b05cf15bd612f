"""A loop in two processes, started as `torchrun` starts them, and which mixes each one makes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from adautomix.checks.script import load_named
from adautomix.checks.watch import lit_batches, watch
from adautomix.errors import RunError

Mixes = list[list[list[float]]]
"""For each step and each mixed input of the network, the brightness of its images."""

PROCESSES = 2
PATIENCE = 300  # seconds


@contextmanager
def two_processes(address: str, steps: int) -> Iterator[Callable[[], list[Mixes]]]:
    """Start the loop in two processes; call what this gives to wait for the mixes of both.

    Args:
        address: of the function that makes the loop, see `load_named`.
        steps: training steps.
    """
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{rank}.json" for rank in range(PROCESSES)]
        port = free_port()
        started = [start(address, steps, file, rank, port) for rank, file in enumerate(files)]
        try:
            yield lambda: [
                mixes_of(process, file) for process, file in zip(started, files, strict=True)
            ]
        finally:
            for process in started:
                process.kill()
                process.communicate()


def start(address: str, steps: int, file: Path, rank: int, port: int) -> "subprocess.Popen[str]":
    """One process, in the environment that its launcher would give it."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES}
    place |= {"LOCAL_WORLD_SIZE": PROCESSES, "MASTER_PORT": port}
    surroundings = {name: str(value) for name, value in place.items()}
    return subprocess.Popen(
        [sys.executable, "-m", __name__, address, str(steps), str(file)],
        env=os.environ | surroundings | {"MASTER_ADDR": "127.0.0.1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def mixes_of(process: "subprocess.Popen[str]", file: Path) -> Mixes:
    """What a process has seen, once it has ended.

    Raises:
        RunError: it failed or did not end.
    """
    try:
        _, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise RunError(
            f"the loop did not end within {PATIENCE} s in {PROCESSES} processes: --alone leaves "
            "them out"
        ) from None
    if process.returncode:
        last = (errors.strip().splitlines() or ["no word"])[-1]
        raise RunError(
            f"the loop failed in {PROCESSES} processes ({last}): --alone leaves them out"
        )
    mixes: Mixes = json.loads(file.read_text())
    return mixes


def free_port() -> int:
    """A port on which the processes can meet."""
    with socket.socket() as meeting:
        meeting.bind(("127.0.0.1", 0))
        return int(meeting.getsockname()[1])


def main(address: str, steps: str, file: str) -> None:
    """The work of one process: train on the lit batches and write down the mixes."""
    loop = load_named(address)()
    seen = watch(loop.train_step, lit_batches(loop, int(steps)))
    Path(file).write_text(json.dumps([[rows.tolist() for rows in step.mixed] for step in seen]))


if __name__ == "__main__":
    main(*sys.argv[1:])
