"""A file system that fails or stops the process at a chosen operation, for tests.

`FaultyFiles` counts every operation that changes something below a folder: opening a file to write,
each write, rename, link, removal, new folder and flush. At the chosen one it does what a bad day
does. A kill is an exception after which no operation has any effect, so that no `finally` block
can tidy up: what is on the disk is what a killed process would have left there.
"""

import builtins
import errno
import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

Fault = Literal["full", "kill", "torn", "broken"]
"""What happens at an operation.

full: half a write, and no space from then on; kill: stopped before it; torn: stopped within it;
broken: this one operation (a write, rename, fsync, …) fails with an input/output error.
"""

FAULTS: tuple[Fault, ...] = ("full", "kill", "torn", "broken")
NEEDS_SPACE = {"open", "write", "mkdir", "link", "fsync"}
FUNCTIONS = ("replace", "rename", "link", "unlink", "remove", "rmdir", "mkdir", "fsync")


class Killed(BaseException):
    """The process was killed."""


class FaultyFiles:
    """Context manager that patches the functions which change files.

    Args:
        root: only operations below this folder count.
        at: index of the operation to fail at; None only counts.
        fault: what happens there.

    Attributes:
        operations: name and file of each operation so far.
    """

    def __init__(self, root: Path, at: int | None = None, fault: Fault = "kill") -> None:
        self.root, self.at, self.fault = str(root.resolve()), at, fault
        self.operations: list[tuple[str, str]] = []
        self.killed = self.full = self.broken = False
        self._saved: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Self:
        for name in FUNCTIONS:
            self._patch(os, name, self._wrapped(name, getattr(os, name)))
        for module in (builtins, io):
            self._patch(module, "open", self._opening(io.open if module is io else builtins.open))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for module, name, function in self._saved:
            setattr(module, name, function)

    def _patch(self, module: Any, name: str, function: Any) -> None:
        self._saved.append((module, name, getattr(module, name)))
        setattr(module, name, function)

    def run(self, name: str, path: str, act: Callable[[], Any], half: Callable[[], Any]) -> Any:
        """Do an operation, or what the fault makes of it; `half` does a part of it."""
        if not path.startswith(self.root):
            return act()
        if self.killed:
            raise Killed
        if self.full and name in NEEDS_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        self.operations.append((name, path[len(self.root) + 1 :]))
        if len(self.operations) - 1 != self.at:
            return act()
        if self.fault == "broken":
            self.broken = True
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        if self.fault == "full":
            self.full = True
            if name not in NEEDS_SPACE:
                return act()
            half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if self.fault == "torn":
            with suppress(OSError):  # what cannot be done is not done by half either
                half()
        self.killed = True
        raise Killed

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *rest: Any, **options: Any) -> Any:
            def act() -> Any:
                return function(target, *rest, **options)

            if name == "fsync":
                return self.run(name, str(path_of(target)), act, lambda: None)
            folder = options.get("dir_fd")
            base = Path() if folder is None else path_of(folder)
            path = str((base / target).absolute())
            # A full disk refuses a new name; a kill after the operation leaves it done.
            half = act if self.fault == "torn" else lambda: None
            return self.run(name, path, act, half)

        return call

    def _opening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            def act() -> Any:
                return function(file, mode, *rest, **options)

            writes = any(letter in mode for letter in "wax+")
            if not writes or not isinstance(file, str | bytes | os.PathLike):
                return act()
            path = str(Path(os.fsdecode(file)).absolute())
            if not path.startswith(self.root):
                return act()
            opened = self.run("open", path, act, lambda: act().close())
            return FaultyFile(opened, path, self, appends="a" in mode)

        return call


def path_of(descriptor: int) -> Path:
    """The path of an open file or folder."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()


class FaultyFile:
    """A file opened for writing, each of whose writes is an operation."""

    def __init__(self, file: Any, path: str, files: FaultyFiles, *, appends: bool) -> None:
        self._file, self._path, self._files, self._appends = file, path, files, appends

    def write(self, content: Any) -> Any:
        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        return self._files.run("write", self._path, lambda: self._file.write(content), half)

    def fileno(self) -> int:
        """Refuse, so that Pillow does not write behind our back; journals are flushed by it."""
        if self._appends:
            return int(self._file.fileno())
        raise io.UnsupportedOperation("fileno")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)
