"""The script behind the figures of docs/trust.md."""

import shutil
from pathlib import Path

import pytest
from trust import lengthen, measure_soak, peak_of, repeat_run, write_photos

from adautomix.runs.folder import RunFolder
from adautomix.runs.records import read_run

FINISHED = Path(__file__).parents[1] / "runs" / "fixtures" / "run-0.1.0-finished"


def test_runs_are_repeated_and_lengthened(tmp_path: Path) -> None:
    first = Path(shutil.copytree(FINISHED, tmp_path / "mixup-s0"))
    repeat_run(first, 6)
    names = ["cutmix-s0", "cutmix-s1", "fmix-s0", "mixup-s0", "mixup-s1", "vanilla-s0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    copy = read_run(tmp_path / "cutmix-s1")
    assert copy.summary is not None
    assert (copy.summary.method, copy.summary.seed, copy.config["seed"]) == ("cutmix", 1, 1)
    lengthen(first, 300)
    rows = RunFolder(first).rows()
    assert len(rows) == 300
    steps = [row.step for row in rows]
    assert steps == sorted(steps)
    assert steps[:280] == list(range(1, 281))


def test_a_command_is_measured_and_a_failure_is_named() -> None:
    measured = peak_of("suites")
    assert measured["peak_mib"] > 10
    with pytest.raises(SystemExit, match="nothing failed"):
        peak_of("nothing")


def test_photos_of_every_class_are_written(tmp_path: Path) -> None:
    folder = write_photos(tmp_path, 8)
    assert len(list(folder.glob("class ?/*.jpg"))) == 8


@pytest.mark.slow
def test_a_soak_reads_memory_and_open_files(tmp_path: Path) -> None:
    rows = measure_soak(tmp_path, 12, every=6)
    assert [row["step"] for row in rows] == [6, 12]
    assert all(row["open_files"] > 2 and row["memory_mib"] > 0 for row in rows)
