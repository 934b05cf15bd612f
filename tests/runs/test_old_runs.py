"""A run folder written by adautomix 0.1.0 is read, used and resumed, see `fixtures/README.md`."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, tensors
from PIL import Image

from adautomix.runs.folder import RunFolder
from adautomix.runs.records import read_run
from adautomix.runs.schema import EpochRow
from adautomix.training.run import resume

FIXTURES = Path(__file__).parent / "fixtures"
STOPPED, FINISHED = FIXTURES / "run-0.1.0", FIXTURES / "run-0.1.0-finished"
STEPS_PER_EPOCH = 40
SAVED = 2 * STEPS_PER_EPOCH  # of 160 steps
SMALL = ("--images", 200)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run that was killed in its third epoch."""
    return Path(shutil.copytree(STOPPED, tmp_path / "run"))


def old_rows(folder: Path) -> list[dict[str, Any]]:
    """The lines as the old version wrote them."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_fixture_is_old_and_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*")) < 200 * 1024
    assert {"captured", "mixture_accuracy"} & old_rows(STOPPED)[0].keys() == {"captured"}
    assert old_rows(STOPPED)[-1]["step"] > SAVED, "a row that a resume has to delete"


@pytest.mark.slow
def test_a_report_shows_an_unfinished_and_a_finished_old_run(
    run: Path, tmp_path: Path, command: Command
) -> None:
    page = tmp_path / "page.html"
    outcome = command("report", run, FINISHED, "--markdown", "--out", page)
    assert outcome.status == 0, outcome.err
    final = read_run(FINISHED).figure("student", "top1")
    assert final == old_rows(FINISHED)[-1]["student"]["top1"]
    assert f"| {final:.2%}".removesuffix("%") in outcome.out
    assert "unfinished: epoch 2 of 4" in page.read_text(encoding="utf-8")
    epochs = [row for row in old_rows(STOPPED) if row["kind"] == "epoch"]
    mixture = [f"{100 * row['captured']:.2f}" for row in epochs]
    assert all(value in page.read_text(encoding="utf-8") for value in mixture)


def test_an_old_run_predicts(run: Path, tmp_path: Path, command: Command) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    expected = {  # as `predict` of adautomix 0.1.0 printed them
        "student": {"7": 0.21541862, "3": 0.19995247, "5": 0.12334244},
        "teacher": {"7": 0.20545891, "3": 0.18805437, "5": 0.12004761},
    }
    for network, classes in expected.items():
        args = ("--network", network, "--uncalibrated", "--json")
        outcome = command("predict", run, tmp_path / "noise.png", *args)
        assert outcome.status == 0, outcome.err
        assert outcome.json[0]["classes"] == pytest.approx(classes, abs=1e-5)


@pytest.mark.slow
def test_an_old_run_is_evaluated(run: Path, command: Command) -> None:
    """The old record is of the same weights and images, so its results must come out again."""
    recorded = json.loads((run / "evaluation.json").read_text())["suites"]["accuracy"]["networks"]
    (run / "evaluation" / "parts.jsonl").unlink()  # or the old results would only be copied
    outcome = command("evaluate", run, "--suites", "accuracy", *SMALL, "--json")
    assert outcome.status == 0, outcome.err
    record = json.loads((run / "evaluation.json").read_text())
    networks = record["suites"]["accuracy"]["networks"]
    assert networks.keys() == recorded.keys() == {"student", "teacher"}
    for network, scores in recorded.items():
        assert networks[network] == pytest.approx(scores, abs=1e-5)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stopped run after this version has resumed it."""
    run = Path(shutil.copytree(STOPPED, tmp_path_factory.mktemp("resumed") / "run"))
    resume(run, quiet=True)
    return run


def test_an_old_run_is_resumed_as_the_old_version_resumed_it(resumed: Path) -> None:
    """Bit for bit on the machine that made the fixture; rounding differs on others.

    With other kernels the losses of the old version itself differ by up to 2.5e-4, and one in a
    hundred test images is classified differently.
    """
    rows, expected = RunFolder(resumed).rows(), RunFolder(FINISHED).rows()
    assert [(row.kind, row.step) for row in rows] == [(row.kind, row.step) for row in expected]
    for row, other in zip(rows, expected, strict=True):
        if row.step <= SAVED:
            assert row == other, "rows before the checkpoint are kept as they are"
            continue
        rel = 1e-5 if row.step <= SAVED + 10 else 1e-3
        assert row.loss == pytest.approx(other.loss, rel=rel)
        assert row.mixture_accuracy == pytest.approx(other.mixture_accuracy, abs=0.02)
        if isinstance(row, EpochRow) and isinstance(other, EpochRow):
            assert_close_scores(row, other)
    before, after = tensors(STOPPED), tensors(resumed)
    assert any(not torch.equal(before[name], value) for name, value in after.items())


def test_the_summary_of_a_resumed_old_run_is_the_old_one(resumed: Path) -> None:
    summary, expected = RunFolder(resumed).summary(), RunFolder(FINISHED).summary()
    assert summary is not None
    assert expected is not None
    depends = {"seconds", "command", "versions", "device", "final", "best", "peak_memory_mib"}
    depends |= {"predictions", "results"}  # which the old version did not record
    assert summary.model_dump(exclude=depends) == expected.model_dump(exclude=depends)
    for network, scores in expected.final.items():
        assert summary.final[network].top1 == pytest.approx(scores.top1, abs=0.02)


def assert_close_scores(row: EpochRow, other: EpochRow) -> None:
    for network in ("student", "teacher"):
        mine, theirs = getattr(row, network), getattr(other, network)
        assert mine.nll == pytest.approx(theirs.nll, rel=2e-3)
        assert mine.top1 == pytest.approx(theirs.top1, abs=0.02)
    assert row.probe == pytest.approx(other.probe, abs=0.02)


@pytest.mark.slow
def test_a_resumed_old_run_is_verified(resumed: Path, tmp_path: Path, command: Command) -> None:
    """Rows that were logged before the resume are rewritten in the current layout."""
    run = shutil.copytree(resumed, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["schema_version"] for row in rows} == {2}
    outcome = command("resume", run, "--verify", "--json")
    assert outcome.status == 0, outcome.err
    assert all(row["verdict"] == "equal" for row in outcome.json)
