"""Write files so that a crash leaves either the old content or the new one; read untrusted ones.

Content is written under a temporary name beside its destination, flushed to the disk, and renamed
only when it is complete. A rename within one file system is atomic.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adautomix.errors import DiskFullError, UsageError

TEMPORARY_SUFFIX = ".tmp"
MAX_TEXT_BYTES = 64 * 2**20


def read_text(
    path: Path, remedy: str = "check the path", *, max_bytes: int = MAX_TEXT_BYTES
) -> str:
    """Return the content of a UTF-8 file that somebody else may have written.

    Args:
        path: the file.
        remedy: what to do about a damaged file, for the message of an error.
        max_bytes: refuse larger files, which would fill the memory.

    Raises:
        UsageError: the file is missing, is no regular file (reading a FIFO waits forever), is too
            large, or is not UTF-8.
    """
    try:
        if not path.is_file():
            kind = "not a regular file" if path.exists() else os.strerror(errno.ENOENT)
            raise UsageError(f"cannot read {path}: {kind}: {remedy}")
        if path.stat().st_size > max_bytes:
            raise UsageError(f"cannot read {path}: larger than {max_bytes} bytes: {remedy}")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}): {remedy}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}: {remedy}") from None


def read_json(path: Path, remedy: str = "check the path") -> Any:
    """Return the content of a JSON file that somebody else may have written.

    Raises:
        UsageError: see `read_text`; or the file is not valid JSON.
    """
    try:
        return json.loads(read_text(path, remedy))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise UsageError(f"{path} is not valid JSON ({reason}): {remedy}") from None


def json_digest(value: Any) -> str:
    """The SHA-256 of plain values, whatever the order of their keys, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def explain_full_disk(target: Path | None, remedy: str) -> Iterator[None]:
    """Turn the error of a full disk into one line that names what was written and the remedy.

    Args:
        target: what is written; None names the file that the error names.
        remedy: what to do once there is space again.

    Raises:
        DiskFullError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = target or error.filename or "a file"
        line = f"no space left to write {what}: free some, then {remedy}"
        raise DiskFullError(line) from None


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


def link_files(source: Path, target: Path) -> None:
    """Give every file of a folder a second name in another folder, which takes no space.

    Only for files that are never written again. File systems without hard links get copies.
    """
    for path in source.iterdir():
        try:
            (target / path.name).hardlink_to(path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            (target / path.name).write_bytes(path.read_bytes())


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
