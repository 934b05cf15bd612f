"""Run programs whose Python processes are all watched, and say what they did outside themselves."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import adautomix
from adautomix.decoder import __main__ as decoder

AUDIT = Path(__file__).parent / "audit"
HERE = Path(__file__).parent
SOURCES = Path(adautomix.__file__).parents[1]
OTHER_PROGRAMS = {
    "ldconfig",  # ctypes.util.find_library, as libraries are imported
    "fc-list",  # matplotlib, once per machine, to find fonts
    "git",  # the commit of this package, for the record of a training
}
"""What is started whatever the input is."""

DECODER = [sys.executable, "-P", str(decoder.__file__)]


@dataclass(frozen=True)
class Events:
    """What the processes of a program did.

    Attributes:
        output: what the program printed.
        status: its exit status.
        noted: names and arguments of the audit events.
    """

    output: str
    status: int
    noted: list[tuple[str, list[str]]]

    @property
    def processes(self) -> list[list[str]]:
        """The command line of every Python process."""
        return [words for event, words in self.noted if event == "process"]

    def surprises(self, writable: Iterable[Path]) -> list[tuple[str, list[str]]]:
        """The events that no input may cause.

        Args:
            writable: the folders that the program may change.
        """
        allowed = [os.fspath(path) for path in writable]
        return [one for one in self.noted if not _expected(*one, allowed)]


def _expected(event: str, words: Sequence[str], writable: Sequence[str]) -> bool:
    if event == "process":
        return True
    if event == "subprocess.Popen":
        return list(words) == DECODER or Path(words[0]).name in OTHER_PROGRAMS
    if event == "exec":
        return words[0].startswith("<") or _within(words[0], code_folders())
    if event == "open" or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"):
        return all(_within(word, [*writable, os.devnull]) for word in words)
    return False


def code_folders() -> list[str]:
    """The folders whose Python files may be executed."""
    paths = sysconfig.get_paths()
    installed = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    real = {str(Path(path).resolve()) for path in installed}
    return [*installed, *real, str(SOURCES), str(HERE)]


def _within(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def watch(words: Sequence[object], log: Path, *, cwd: Path, given: bytes = b"") -> Events:
    """Run a Python program and return what it and its Python children did.

    Args:
        words: arguments of the interpreter.
        log: a file for the events, which must not exist yet.
        cwd: the working folder.
        given: what the program reads from its standard input.
    """
    path = os.pathsep.join(map(str, (AUDIT, SOURCES)))
    own = {"PYTHONPATH": path, "AUDIT_LOG": str(log), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | own | {"OMP_NUM_THREADS": "1"},
        input=given,
        capture_output=True,
    )
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    noted = [(event, words) for event, words in map(json.loads, lines)]
    output = (done.stdout + done.stderr).decode(errors="backslashreplace")
    return Events(output, done.returncode, noted)
