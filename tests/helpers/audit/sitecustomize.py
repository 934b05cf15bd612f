"""Record what a Python process does to the world outside it, from its first line on.

Python imports this module by itself in every process that has its folder on PYTHONPATH, also in
the processes that decode images. Each line of the file AUDIT_LOG is one event as JSON: its name,
and the words that matter of its arguments. `audited.py` reads them.
"""

import json
import os
import sys
from typing import Any

PROCESSES = ("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn")
SHELLS = ("os.system", "os.startfile", "pty.spawn", "webbrowser.open")
NETWORK = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "urllib.Request")
PICKLES = ("pickle.find_class",)
FILES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NOTED = {*PROCESSES, *SHELLS, *NETWORK, *PICKLES, *FILES}


def words_of(event: str, arguments: tuple[Any, ...]) -> list[str] | None:
    """Return what to record of an event; None for events that change nothing outside."""
    if event == "exec":
        return [str(arguments[0].co_filename)]
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int) or not (flags or 0) & WRITING:
            return None
        return [os.path.abspath(os.fsdecode(path))]  # noqa: PTH100
    if event == "subprocess.Popen":
        return [str(word) for word in arguments[1]]
    if event in FILES:
        paths = arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]
        return [os.path.abspath(os.fsdecode(p)) for p in paths if not isinstance(p, int)]  # noqa: PTH100
    return [str(arguments)] if event in NOTED else None


def install(log: int) -> None:
    """Write every event that matters to an open file."""
    seen: set[str] = set()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        words = words_of(event, arguments)
        if words is None:
            return
        line = json.dumps([event, words]) + "\n"
        if line not in seen:
            seen.add(line)
            os.write(log, line.encode())

    os.write(log, (json.dumps(["process", sys.orig_argv]) + "\n").encode())
    sys.addaudithook(hook)


if path := os.environ.get("AUDIT_LOG"):
    install(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
