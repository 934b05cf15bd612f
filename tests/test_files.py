"""Files and folders are replaced as a whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adautomix.files import atomic_folder, atomic_write, flush_to_disk


class Crash(BaseException):
    """Stands for Ctrl-C in the middle of a write."""


def fail_after(_written: object, error: type[BaseException]) -> None:
    raise error


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    for content in ("first", "second"):
        with atomic_write(path) as temporary:
            temporary.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, Crash])
def test_a_failed_write_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        fail_after(temporary.write_text("half"), error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_content_is_flushed_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def noted(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            events.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", noted("flush", os.fsync))
    monkeypatch.setattr(Path, "replace", noted("rename", Path.replace))
    monkeypatch.setattr(Path, "rename", noted("rename", Path.rename))
    with atomic_write(tmp_path / "a.json") as temporary:
        temporary.write_text("x")
    assert events == ["flush", "rename", "flush"]
    events.clear()
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "one").write_text("1")
        (temporary / "two").write_text("2")
    assert events == ["flush", "flush", "flush", "rename", "flush"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    for name in ("one", "two"):
        with atomic_folder(folder) as temporary:
            (temporary / name).write_text(name)
    assert [path.name for path in folder.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [folder]


def test_the_old_folder_is_kept_as_the_backup(tmp_path: Path) -> None:
    folder, backup = tmp_path / "last", tmp_path / "previous"
    for name in ("one", "two", "three"):
        with atomic_folder(folder, backup=backup) as temporary:
            (temporary / name).touch()
    assert [path.name for path in folder.iterdir()] == ["three"]
    assert [path.name for path in backup.iterdir()] == ["two"]


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_failed_folder_leaves_the_old_one(concurrent: bool, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(Crash), atomic_folder(folder, concurrent=concurrent) as temporary:
        fail_after((temporary / "new").write_text("half"), Crash)
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_process_left_is_not_mixed_in(tmp_path: Path) -> None:
    leftover = tmp_path / "a.tmp"
    leftover.mkdir()
    (leftover / "half").touch()
    with atomic_folder(tmp_path / "a") as temporary:
        assert list(temporary.iterdir()) == []
        (temporary / "whole").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["whole"]


def test_of_concurrent_writers_one_wins_and_none_fails(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with atomic_folder(folder, concurrent=True) as first:
        with atomic_folder(folder, concurrent=True) as second:
            assert first != second
            for temporary in (first, second):
                (temporary / "same").write_text("content")
        assert (folder / "same").read_text() == "content"
    assert (folder / "same").read_text() == "content"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_concurrent_writer_whose_rename_comes_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process renames its folder between our removal and our rename."""
    folder = tmp_path / "a"

    def too_late(path: Path, target: Path) -> None:
        target.mkdir()
        (target / "theirs").touch()
        raise OSError("Directory not empty")

    monkeypatch.setattr(Path, "rename", too_late)
    with atomic_folder(folder, concurrent=True) as temporary:
        (temporary / "ours").touch()
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "b") as temporary:
        (temporary / "ours").touch()


def test_a_full_disk_that_shows_at_the_flush_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "a"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    flush_to_disk(tmp_path)  # a folder that cannot be flushed is no error
