"""Several processes train as one does: the same batch, the same mixes, the same losses."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from several import course
from torch import nn

from adautomix import distributed as processes
from adautomix.config import make_config
from adautomix.data import TrainBatches
from adautomix.errors import UsageError
from adautomix.methods import METHODS
from adautomix.runs.folder import RunFolder
from adautomix.training.evaluator import rank_rows

HELPERS = Path(__file__).parent / "helpers"


def torchrun(
    count: int, *words: object, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script or module in `count` processes of one thread."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, f"--nproc_per_node={count}", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def courses(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """What every method's run gave in so many processes."""
    found: dict[int, dict[str, Any]] = {}

    def run(count: int) -> dict[str, Any]:
        if count not in found:
            out = tmp_path_factory.mktemp("several") / "courses.json"
            done = torchrun(count, HELPERS / "several.py", out, *METHODS)
            assert done.returncode == 0, done.stderr[-2000:]
            found[count] = json.loads(out.read_text())
        return found[count]

    return run


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_as_one(name: str, courses: Callable[[int], dict[str, Any]]) -> None:
    # Where the batch is split, these run every image twice: mean and variance are the same, but
    # the unbiased estimate of it, n / (n - 1), is that of twice as many.
    twice = name in ("manifoldmix", "alignmix", "sumix")
    assert_same(courses(2)[name], course(name), variances=1e-2 if twice else 1e-5)


def test_parts_within_processes_train_as_one(courses: Callable[[int], dict[str, Any]]) -> None:
    """Without batch norm they are still the one batch."""
    last = list(METHODS)[-1]
    assert_same(courses(2)["accumulated"], course(last, model="convnext_tiny"))


def assert_same(several: dict[str, Any], alone: dict[str, Any], variances: float = 1e-5) -> None:
    for key in ("losses", "scores"):
        for mine, theirs in zip(several[key], alone[key], strict=True):
            assert mine == pytest.approx(theirs, rel=2e-4, abs=2e-5)
    assert several["weights"] == pytest.approx(alone["weights"], rel=1e-5)
    assert several["variances"] == pytest.approx(alone["variances"], rel=variances)


# ---------------------------------------------------------------------- the command


def test_the_command_trains_and_resumes_in_two(photos: Path, tmp_path: Path) -> None:
    """One run folder, written once, equal whether the run was interrupted or not."""
    words = ("train", "--data", photos, "--model", "resnet18", "--width", 0.125, "--image-size", 16)
    training = ("--method", "adautomix", "--batch-size", 8, "--epochs", 2, "--log-every", 1)
    done = torchrun(
        2, "-m", "adautomix", *words, *training, "--out", tmp_path / "run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
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


def test_batches_must_divide(photos: Path) -> None:
    from adautomix.runs.build import load_images

    data = load_images(make_config({"data": str(photos), "image_size": 16}), progress=False)
    with pytest.raises(UsageError, match="batches of 9 and a last one of 0 do not divide among 2"):
        TrainBatches(data, batch_size=9, seed=0, device=torch.device("cpu"), world_size=2)


def test_shares_of_a_batch_are_the_batch(photos: Path) -> None:
    from adautomix.runs.build import load_images

    data = load_images(make_config({"data": str(photos), "image_size": 16}), progress=False)
    cpu = torch.device("cpu")
    whole = TrainBatches(data, batch_size=8, seed=3, device=cpu)
    shares = [
        TrainBatches(data, batch_size=8, seed=3, device=cpu, rank=r, world_size=2) for r in (0, 1)
    ]
    batch, *parts = (next(batches.epoch(1, 1)) for batches in (whole, *shares))
    augmented = [b.augment(p) for b, p in zip(shares, parts, strict=True)]
    assert torch.equal(torch.cat(augmented), whole.augment(batch))
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)


# ---------------------------------------------------------------------- the pieces


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    """A process group of one."""
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("tracked", [True, False])
def test_shared_batch_norm_is_batch_norm(alone: None, tracked: bool) -> None:
    plain, shared = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    shared.__class__ = processes.SyncBatchNorm2dCPU
    for norm in (plain, shared):
        norm.track_running_stats = tracked
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(0))
    images = 3 + torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    mine, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    out, expected = shared(mine), plain(theirs)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    out.cos().sum().backward()
    expected.cos().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shared.weight.grad, plain.weight.grad, atol=1e-4, rtol=1e-4)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(shared.named_buffers())[name], buffer)
    assert torch.equal(shared.eval()(images), plain.eval()(images))


def test_every_test_image_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adautomix.training.evaluator.world_size", lambda: 4)
    rows = []
    for place in range(4):
        monkeypatch.setattr("adautomix.training.evaluator.rank", lambda place=place: place)
        rows += rank_rows(13).tolist()
    assert rows[:13] == list(range(13))
    assert len(rows) == 16


def test_alone_everything_passes_through() -> None:
    values = torch.arange(3.0)
    assert processes.gather_rows(values) is values
    assert processes.mean_over_processes({"loss": 2.0}) == {"loss": 2.0}
    assert processes.min_over_processes(3) == 3
    assert processes.any_process(True)
    assert not processes.any_process(False)
    assert processes.broadcast_from_main(lambda: "made") == "made"
    assert processes.is_main()
