"""`metrics.jsonl` and `summary.json`: written and read back, of every version, and damaged."""

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from records import epoch_fields, summary_fields, train_fields

from adautomix.errors import AdAutoMixWarning, UsageError
from adautomix.metrics import Scores
from adautomix.runs.records import (
    append_row,
    number_at,
    read_metrics,
    read_run,
    read_summary,
    write_metrics,
    write_summary,
)
from adautomix.runs.schema import EpochRow, Row, Summary, TrainRow

SCORES = {"top1": 0.5, "top5": 0.75, "nll": 1.5, "ece": 0.1}
OLD = Path(__file__).parent / "fixtures" / "run-0.1.0-finished"


def some_rows() -> list[Row]:
    networks = {"student": SCORES, "teacher": SCORES | {"top1": 0.625}}
    parts = {"mixed": 0.1 + 0.2, "clean": 1e-300}
    return [
        TrainRow(**train_fields(1, parts=parts)),
        TrainRow(**train_fields(2, mixture_accuracy=None)),
        EpochRow(**epoch_fields(2)),
        EpochRow(**epoch_fields(4, epoch=2, probe=0.25, val=networks, **networks)),
    ]


def with_lines(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "metrics.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(text + "\n" for text in texts))
    return path


# --- writing and reading ---------------------------------------------------------------------


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    for row in some_rows():
        append_row(path, row)
    assert read_metrics(path) == some_rows()
    appended = path.read_text()
    write_metrics(path, some_rows())
    assert path.read_text() == appended
    assert all(json.loads(line)["schema_version"] == 2 for line in appended.splitlines())


ABSENT = {
    "predictions": None,
    "multi_label": False,
    "preparation": None,
    "results": None,
    "early_stop": None,
}
"""Fields that older summaries do not have."""


def test_scores_are_read_as_scores(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.jsonl", some_rows())
    *_, row = read_metrics(tmp_path / "metrics.jsonl")
    assert isinstance(row, EpochRow)
    assert row.student == Scores(0.5, 0.75, 1.5, 0.1)
    assert row.val is not None
    assert row.val["teacher"].top1 == 0.625
    assert number_at(row, ("val", "teacher", "top1")) == 0.625
    assert number_at(row, "probe") == 0.25
    assert number_at(row, ("val", "teacher", "top2")) is None
    assert number_at(row, ("nothing", "here")) is None


def test_numbers_that_are_not_finite_survive(tmp_path: Path) -> None:
    parts = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    append_row(tmp_path / "metrics.jsonl", TrainRow(**train_fields(1, parts=parts)))
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(row.parts.pop("nan"))
    assert row.parts == {"inf": math.inf, "-inf": -math.inf}


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    assert read_summary(path) is None
    summary = Summary(**summary_fields(classes=["café", "猫"]))
    write_summary(path, summary)
    assert read_summary(path) == summary
    fields = json.loads(path.read_text(encoding="utf-8"))
    assert len(fields.pop("checksum")) == 64
    assert fields == summary_fields(classes=["café", "猫"]) | ABSENT


def test_class_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    summary = Summary(**summary_fields(classes=[os.fsdecode(b"caf\xe9"), "\x1b[1m", "a\nb"]))
    write_summary(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json") == summary


def test_names_of_runs_are_printable(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"x\x1b[1m\xff")
    folder.mkdir()
    (folder / "config.yaml").write_text('method: mixup\nlabel: "a\\e[1mb"\n')
    run = read_run(folder)
    assert (run.name, run.label) == (r"x\x1b[1m\udcff", r"a\x1b[1mb")


def test_rows_without_timing_are_equal_whenever_they_were_logged() -> None:
    first, second = (
        TrainRow(**train_fields(1, seconds=seconds, images_per_second=1 / seconds))
        for seconds in (1.0, 2.0)
    )
    assert first != second
    assert first.without_timing() == second.without_timing()
    assert first.without_timing()["loss"] == 1.0


# --- version 1 -------------------------------------------------------------------------------


def test_files_of_version_1_are_read() -> None:
    lines = [json.loads(line) for line in (OLD / "metrics.jsonl").read_text().splitlines()]
    assert all("schema_version" not in line and "captured" in line for line in lines)
    rows = read_metrics(OLD / "metrics.jsonl")
    assert len(rows) == len(lines)
    for line, row in zip(lines, rows, strict=True):
        assert row.mixture_accuracy == line.pop("captured")
        fields = row.model_dump(exclude_none=True)
        assert {name: fields[name] for name in line} == line
    old = json.loads((OLD / "summary.json").read_text())
    summary = read_summary(OLD / "summary.json")
    assert summary is not None
    assert summary.model_dump(mode="json") == old | ABSENT | {"schema_version": 2}


def test_a_summary_from_before_processes_and_runtimes_is_read(tmp_path: Path) -> None:
    old = summary_fields()
    for name in ("schema_version", "processes", "runtime"):
        del old[name]
    (tmp_path / "summary.json").write_text(json.dumps(old))
    assert read_summary(tmp_path / "summary.json") == Summary(**summary_fields())


def test_lines_of_both_versions_stand_in_one_file(tmp_path: Path) -> None:
    """A run that this version resumed has lines of both while it is being copied or joined."""
    old = train_fields(1, captured=0.25)
    del old["schema_version"], old["mixture_accuracy"]
    rows = read_metrics(with_lines(tmp_path, old, train_fields(2)))
    assert [(row.step, row.mixture_accuracy) for row in rows] == [(1, 0.25), (2, 0.5)]


# --- damage ----------------------------------------------------------------------------------


def test_a_last_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = with_lines(tmp_path, *(json.dumps(train_fields(step)) for step in (1, 2)))
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    for end in range(second, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert [row.step for row in read_metrics(path)] == [1]
    for content in (whole[:-1], whole, whole + b"\x00" * 9, whole + b"\xff"):
        path.write_bytes(content)
        assert [row.step for row in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", "is not a JSON object"),
        (train_fields(2, loss="low"), "has a wrong field loss: Input should be a valid number"),
        (train_fields(2, colour="red"), "has a wrong field colour: Extra inputs are not permit"),
        (train_fields(2, epoch="first"), "has a wrong field epoch: Input should be a valid"),
        (train_fields(2, kind="hour"), "has a wrong field kind: Input tag 'hour' found"),
        (epoch_fields(2, student={"top1": 1}), "has a wrong field student.top5: Field required"),
        (train_fields(2, crc32="00000000"), "does not match its checksum"),
    ],
)
def test_a_damaged_line_is_named_and_left_out(line: Any, problem: str, tmp_path: Path) -> None:
    path = with_lines(tmp_path, train_fields(1), line, train_fields(3))
    with pytest.warns(AdAutoMixWarning) as warned:
        rows = read_metrics(path)
    assert [row.step for row in rows] == [1, 3]
    (warning,) = [str(each.message) for each in warned]
    assert warning.startswith(f"{path}, line 2, {problem}")
    assert warning.endswith(": the line is left out")
    assert "\n" not in warning


def test_a_line_of_a_newer_version_is_an_error(tmp_path: Path) -> None:
    """Left out, it would be deleted when the run is resumed."""
    path = with_lines(tmp_path, train_fields(1), train_fields(2, schema_version=3))
    with pytest.raises(UsageError) as error:
        read_metrics(path)
    assert str(error.value) == (
        f"{path}, line 2, has schema version 3, which only a newer adautomix can read"
    )


def test_every_flipped_bit_of_a_line_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, some_rows()[:1])
    whole = path.read_bytes()
    for position in range(len(whole) - 1):
        content = bytearray(whole)
        content[position] ^= 0x04
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            rows = read_metrics(path)
        assert rows in ([], some_rows()[:1])
        assert bool(warned) == (rows == [])
        assert rows == [] or b"crc32" not in content, "only the checksum itself may be lost"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not a JSON object"),
        (json.dumps(summary_fields(schema_version=9)), "has schema version 9"),
        (json.dumps(summary_fields(steps="many")), "has a wrong field steps: Input should be"),
        (json.dumps(summary_fields(checksum="0" * 64)), "does not match its checksum"),
    ],
)
def test_a_wrong_summary_is_named(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_summary(path)
    assert str(error.value).startswith(f"{path} {problem}")
    assert str(error.value).endswith(
        f"delete it, and `adautomix resume {tmp_path}` writes it again"
    )


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"[" * 100_000, b'{"a": 1e9999'])
def test_bytes_that_are_no_summary_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"summary\.json is not .*: delete it, and"):
        read_summary(tmp_path / "summary.json")


def test_of_two_rows_for_one_step_the_later_counts(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: mixup\n")
    rows = [train_fields(2, loss=1), train_fields(1, loss=2), train_fields(2, loss=3)]
    with_lines(tmp_path, *rows)
    assert [(row.step, row.loss) for row in read_run(tmp_path).train_rows] == [(1, 2), (2, 3)]


def test_many_rows_are_thinned_out_for_reports(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: mixup\n")
    row, epoch = TrainRow(**train_fields(1)), EpochRow(**epoch_fields(1))
    rows: list[Row] = [row.model_copy(update={"step": step}) for step in range(1, 5001)]
    epochs = [epoch.model_copy(update={"step": step}) for step in range(1, 5001, 500)]
    write_metrics(tmp_path / "metrics.jsonl", [*rows, *epochs])
    run = read_run(tmp_path)
    assert 450 <= len(run.train_rows) <= 550
    assert len(run.epoch_rows) == len(epochs)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == len(rows) + len(epochs)
