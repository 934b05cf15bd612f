"""Tables are run to their end, continue where they stopped, and survive a run that fails."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

from adautomix.errors import RunError, StoppedError
from adautomix.tables import execute as executing
from adautomix.tables.definition import find_table
from adautomix.tables.execute import execute
from adautomix.tables.tasks import Task, expand
from adautomix.training.engines import EngineChoice

TINY = ("--data", "digits", "--image-size", 16, "--width", 0.125, "--per-class", 4)
FAST = ("--batch-size", 20, "--eval-batch-size", 2000, "--workers", 1, "--jobs", 1)
IN_TURN = EngineChoice(parallel=1)
ONLY = ("--only", "*/cutmix@*,*/adautomix@*")


def fake_tasks(tmp_path: Path) -> list[Task]:
    return expand(find_table("11")[1], out=tmp_path)


@pytest.mark.slow
def test_a_table_runs_to_its_end_and_a_second_time_changes_nothing(
    tmp_path: Path, command: Command
) -> None:
    args = ("table", 6, *ONLY, "--epochs-scale", 0.01, "--out", tmp_path, *TINY, *FAST, "--json")
    rows = command(*args).json
    assert [row["name"] for row in rows] == [
        "cifar100-r18/cutmix@200",
        "cifar100-r18/adautomix@200",
    ]
    assert {row["status"] for row in rows} == {"rehearsal"}
    assert "epochs 2 instead of 200" in rows[0]["differs"]
    assert rows[1]["teacher_last"]["seeds"] == 1
    assert (tmp_path / "ledger.html").is_file()
    folder = tmp_path / "cifar100-r18" / "adautomix@200-s0"
    assert json.loads((folder / "evaluation.json").read_text())["suites"].keys() == {"calibration"}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert command(*args).json == rows
    assert {path: path.stat().st_mtime_ns for path in before} == before
    plan = command(*args, "--dry-run", "--tflops", 1).json
    assert [row["state"] for row in plan] == ["finished", "finished"]

    written = tmp_path / "docs" / "ledger.md"
    listed = command("ledger", tmp_path, "--table", 6, "--out", written, "--json").json
    assert [row["status"] for row in listed].count("not run") == 3
    assert "cifar100-r18/adautomix@200" in written.read_text()


def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def train(config: Any, **options: Any) -> None:
        begun.append(config.method)
        if config.method == "dada":
            raise RunError("the loss became NaN")

    monkeypatch.setattr(executing, "train", train)
    (failure,) = execute(fake_tasks(tmp_path), engine=IN_TURN, folder=tmp_path)
    assert begun == ["vanilla", "dada", "meada", "samix", "adautomix"]
    assert failure.job.name == "cifar100-r18/dada@200 s0"
    assert failure.reason == "the loss became NaN"


def test_a_signal_stops_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def train(config: Any, **options: Any) -> None:
        begun.append(config.method)
        raise StoppedError("stopped by SIGINT")

    monkeypatch.setattr(executing, "train", train)
    with pytest.raises(StoppedError, match="SIGINT"):
        execute(fake_tasks(tmp_path), engine=IN_TURN, folder=tmp_path)
    assert begun == ["vanilla"]


def test_failures_are_named_at_the_end(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: Any, **options: Any) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(executing, "train", train)
    outcome = command("table", 11, "--only", "*/dada@*", "--out", tmp_path)
    assert outcome.status == 1
    assert "1 of 1 runs failed" in outcome.err
    assert "the disk is full" in outcome.err


def test_the_plan_of_a_table_for_people(tmp_path: Path, command: Command) -> None:
    outcome = command("table", 4, "--dry-run", "--tflops", 10, "--out", tmp_path, "--seeds", "0,1")
    assert outcome.status == 0
    assert "cifar100-r18/adautomix@200" in outcome.out
    assert "10 runs" in outcome.out
    assert "estimated from 10 TFLOP/s" in outcome.out
    assert not any(tmp_path.iterdir())
