import os
from pathlib import Path

import pytest

from adautomix.data.sources.file_table import FileTable, ImageFile, image_file

FILES = [
    ImageFile("b.png", 7, 1_700_000_000_000_000_123, -5, 2**64 - 1),
    ImageFile("a.png", 2**40, -1, 1_700_000_000_000_000_124, 3),
    ImageFile("c.png", 0, 0),
]


def test_a_table_holds_what_was_put_in() -> None:
    table = FileTable(FILES[:1])
    table.extend(FILES[1:])
    assert list(table) == FILES
    assert [table[0], table[-1]] == [FILES[0], FILES[2]]
    assert list(table[1:]) == FILES[1:]
    assert table.paths == ["b.png", "a.png", "c.png"]
    assert sorted(table) == sorted(FILES)
    with pytest.raises(IndexError):
        table[3]


def test_the_newest_change_is_of_content_or_state() -> None:
    assert FileTable(FILES).newest() == 1_700_000_000_000_000_124
    assert FileTable(FILES[:1]).newest() == 1_700_000_000_000_000_123


@pytest.mark.parametrize(("year", "kept"), [(2100, True), (2300, False)])
def test_times_beyond_64_bits_are_clamped(tmp_path: Path, year: int, kept: bool) -> None:
    path = tmp_path / "a.png"
    path.touch()
    time = (year - 1970) * 31_556_952
    os.utime(path, (time, time))
    if path.stat().st_mtime != time:
        pytest.skip("the file system has no such times")
    table = FileTable([image_file(path)])
    assert table[0].modified == (time * 10**9 if kept else 2**63 - 1)
