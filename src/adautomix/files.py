"""Write files and folders so that a crash leaves either the old content or the new one.

Content is written under a temporary name beside its destination, flushed to the disk, and renamed
only when it is complete. A rename within one file system is atomic.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to, and rename that file to `path` on success.

    The parent folder is created if it is missing. If the block raises, `path` keeps its old
    content and the temporary file is removed. Only one process may write `path` at a time.

    Example:
        >>> with atomic_write(Path("summary.json")) as temporary:  # doctest: +SKIP
        ...     temporary.write_text("{}")

    Args:
        path: the file to create or replace.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


@contextmanager
def atomic_folder(
    path: Path, *, backup: Path | None = None, concurrent: bool = False
) -> Iterator[Path]:
    """Yield an empty temporary folder to fill, and rename it to `path` on success.

    If the block raises, `path` stays as it was and the temporary folder is removed. A folder that
    is at `path` already is moved away just before the rename: a crash at that moment leaves
    nothing at `path`, so a caller that needs the old content must ask for a `backup`.

    Args:
        path: the folder to create or replace.
        backup: rename the old folder to this path, replacing what is there; None deletes it.
        concurrent: allow several processes to write the same content to `path` at a time; the
            first one to finish wins. Otherwise a process that was killed leaves at most one
            temporary folder, which the next write removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path, unique=concurrent)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        flush_folder(temporary)
        move_away(path, backup)
        try:
            temporary.rename(path)
        except OSError:
            if not (concurrent and path.exists()):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    flush_to_disk(path.parent)


def move_away(path: Path, backup: Path | None) -> None:
    """Rename a folder to `backup`, or delete it if there is no backup to make."""
    if not path.exists():
        return
    shutil.rmtree(path if backup is None else backup, ignore_errors=True)
    if backup is not None:
        path.rename(backup)


def temporary_path(path: Path, *, unique: bool = False) -> Path:
    """The name beside `path` under which its next content is written."""
    unique_part = f".{uuid.uuid4().hex}" if unique else ""
    return path.with_name(path.name + unique_part + TEMPORARY_SUFFIX)


def flush_folder(folder: Path) -> None:
    """Flush every file and folder below `folder`, and `folder` itself, to the disk."""
    for path in folder.rglob("*"):
        flush_to_disk(path)
    flush_to_disk(folder)


def flush_to_disk(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to the disk (fsync)."""
    if path.is_dir():
        # Windows cannot open a folder, and some network file systems cannot flush one. The rename
        # is atomic there too; only a power failure right after it could undo it.
        with suppress(OSError):
            fsync(path, os.O_RDONLY)
    else:
        fsync(path, os.O_RDWR)


def fsync(path: Path, flags: int) -> None:
    """Open a path with `flags` and flush it."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
