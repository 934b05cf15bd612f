"""Let only one process write a run folder at a time."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from adautomix.errors import UsageError

LOCK = ".lock"


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is created if it is missing.

    The lock belongs to an open file (`flock`), so the kernel gives it back however its owner ends.
    The file says who the owner is. A folder that is empty at the end is removed again.

    Args:
        run: the run folder.

    Raises:
        UsageError: another process holds the lock; the message names it.
    """
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UsageError(
            f"{run} is being written by {owner_of(run)}: wait until it ends, or stop it"
        ) from None
    try:
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        (run / LOCK).write_text(json.dumps(owner) + "\n", encoding="utf-8")
        yield
    finally:
        # Removed while it is held: who waits for the lock notices that its file is gone. If it
        # cannot be removed, it does no harm, since nobody holds it.
        with suppress(OSError):
            (run / LOCK).unlink()
        lock.release()
        with suppress(OSError):
            run.rmdir()


def owner_of(run: Path) -> str:
    """Describe the process that holds the lock of a run folder."""
    try:
        owner = json.loads((run / LOCK).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']} since {owner['started']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
