"""Training with several processes compared with one process: the same batches, mixes and losses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_same_run
from train_methods import train_record

from adautomix import distributed
from adautomix.config import make_config
from adautomix.data import TrainBatches
from adautomix.errors import UsageError
from adautomix.methods import METHODS
from adautomix.runs.folder import RunFolder
from adautomix.training.evaluator import rank_rows

HELPERS = Path(__file__).parent / "helpers"


def torchrun(
    count: int, *arguments: object, cwd: Path | None = None, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a script or module in `count` processes with one thread each."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, f"--nproc_per_node={count}", *options, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The records of all methods, trained with two distributed."""
    out = tmp_path_factory.mktemp("two-processes") / "records.json"
    process = torchrun(2, HELPERS / "train_methods.py", out, *METHODS)
    assert process.returncode == 0, process.stderr[-2000:]
    result: dict[str, Any] = json.loads(out.read_text())
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_as_one(name: str, records: dict[str, Any]) -> None:
    # Where the batch is split, these methods forward every image twice. Mean and variance stay the
    # same, but the unbiased estimate, with its factor n / (n - 1), is that of twice as many images.
    twice = name in ("manifoldmix", "catchupmix", "alignmix", "sumix")
    assert_same(records[name], train_record(name), variances=1e-2 if twice else 1e-5)


@pytest.mark.slow
def test_gradient_accumulation_with_two_processes_trains_as_one(records: dict[str, Any]) -> None:
    """Without batch norm the parts of a batch are equivalent to the whole batch."""
    last = list(METHODS)[-1]
    assert_same(records["accumulated"], train_record(last, model="convnext_tiny"))


@pytest.mark.slow
def test_frozen_layers_with_two_processes_train_as_with_one(records: dict[str, Any]) -> None:
    assert_same(records["frozen"], train_record("adautomix", freeze="layer1"))


@pytest.mark.slow
def test_two_processes_probe_first_as_one(records: dict[str, Any]) -> None:
    """Gradients of the backbone are averaged from the step on at which it is trained."""
    alone = train_record("adautomix", epochs=2, probe_epochs=1)
    assert_same(records["probed"], alone)


def assert_same(several: dict[str, Any], alone: dict[str, Any], variances: float = 1e-5) -> None:
    for key in ("losses", "scores"):
        for mine, theirs in zip(several[key], alone[key], strict=True):
            assert mine == pytest.approx(theirs, rel=2e-4, abs=2e-5)
    assert several["weights"] == pytest.approx(alone["weights"], rel=1e-5)
    assert several["variances"] == pytest.approx(alone["variances"], rel=variances)


# ---------------------------------------------------------------------- the command


@pytest.mark.slow
def test_the_command_trains_and_resumes_with_two_processes(photos: Path, tmp_path: Path) -> None:
    """There is one run folder, and resuming it gives the same rows."""
    data = ("train", "--data", photos, "--model", "resnet18", "--width", 0.125, "--image-size", 16)
    training = ("--method", "adautomix", "--batch-size", 8, "--epochs", 2, "--log-every", 1)
    process = torchrun(
        2, "-m", "adautomix", *data, *training, "--out", tmp_path / "run", cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr[-2000:]
    run = RunFolder.open(tmp_path / "run")
    summary = run.summary()
    assert summary is not None
    assert summary.processes == 2
    rows = run.rows()
    assert [row.step for row in rows if row.kind == "train"] == [1, 2, 3, 4, 5, 6]

    newest = run.path / "checkpoints" / "last"
    (run.path / "summary.json").unlink()
    again = torchrun(2, "-m", "adautomix", "resume", run.path, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    assert newest.exists()
    assert run.rows() == rows


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_job_restarts_by_itself_after_a_worker_was_killed(
    rank: int, photos: Path, tmp_path: Path
) -> None:
    """The restarted processes continue from the last checkpoint, to the same weights."""
    data = ("train", "--data", photos, "--model", "resnet18", "--width", 0.125, "--image-size", 16)
    training = ("--method", "adautomix", "--batch-size", 8, "--epochs", 2, "--log-every", 1)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = torchrun(2, "-m", "adautomix", *data, *training, "--out", whole, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]

    # The fifth of six steps, in the middle of the second epoch.
    script = (HELPERS / "killed_rank.py", tmp_path / "marker", rank, 4)
    process = torchrun(
        2, *script, *data, *training, "--out", killed, cwd=tmp_path, options=("--max-restarts=3",)
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert (tmp_path / "marker").exists()
    assert f"continuing {killed} from step 3 of 6" in process.stderr
    assert_same_run(killed, whole)

    before = (killed / "summary.json").read_bytes()
    again = torchrun(2, "-m", "adautomix", *data, *training, "--out", killed, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stderr.count("has finished: nothing was changed") == 1
    assert (killed / "summary.json").read_bytes() == before
    other = torchrun(
        2, "-m", "adautomix", *data, *training, "--lr", 0.3, "--out", killed, cwd=tmp_path
    )
    assert other.returncode != 0
    assert other.stderr.count("lr was 0.1 and is now 0.3") >= 1


def test_batches_must_divide_among_the_processes(photos: Path) -> None:
    from adautomix.runs.build import load_images

    data = load_images(make_config({"data": str(photos), "image_size": 16}), progress=False)
    with pytest.raises(UsageError, match="batches of 9 and a last one of 0 do not divide among 2"):
        TrainBatches(data, batch_size=9, seed=0, device=torch.device("cpu"), world_size=2)


def test_the_parts_of_all_processes_make_up_the_batch(photos: Path) -> None:
    from adautomix.runs.build import load_images

    data = load_images(make_config({"data": str(photos), "image_size": 16}), progress=False)
    cpu = torch.device("cpu")
    whole = TrainBatches(data, batch_size=8, seed=3, device=cpu)
    ranks = [
        TrainBatches(data, batch_size=8, seed=3, device=cpu, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    batch, *parts = (next(batches.epoch(1, 1)) for batches in (whole, *ranks))
    augmented = [batches.augment(part) for batches, part in zip(ranks, parts, strict=True)]
    assert torch.equal(torch.cat(augmented), whole.augment(batch))
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)


# ---------------------------------------------------------------------- single functions


def test_every_test_image_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adautomix.training.evaluator.world_size", lambda: 4)
    rows = []
    for rank in range(4):
        monkeypatch.setattr("adautomix.training.evaluator.rank", lambda rank=rank: rank)
        rows += rank_rows(13).tolist()
    assert rows[:13] == list(range(13))
    assert len(rows) == 16


def test_one_process_gets_its_own_values() -> None:
    values = torch.arange(3.0)
    assert distributed.gather_rows(values) is values
    assert distributed.mean_over_processes({"loss": 2.0}) == {"loss": 2.0}
    assert distributed.min_over_processes(3) == 3
    assert distributed.any_process(True)
    assert not distributed.any_process(False)
    assert distributed.broadcast_from_main(lambda: "made") == "made"
    assert distributed.is_main()
