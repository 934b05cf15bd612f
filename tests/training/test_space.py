"""A run is refused before it starts if the disk cannot hold it."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import SMALL_NET, Command

from adautomix.config import load_config
from adautomix.errors import UsageError
from adautomix.runs.checkpoint import Checkpoint, save_checkpoint
from adautomix.training.loop import MAX_STEPS, count_steps
from adautomix.training.space import OTHER_BYTES, check_space, needed_bytes

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that the disk claims to have free; change the one item."""
    space = [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, space[0]))
    return space


def test_checkpoints_are_counted(tmp_path: Path) -> None:
    weights = {"student.a": torch.zeros(1000), "teacher.a": torch.zeros(1000)}
    trained = [weights["student.a"]]
    sgd, adamw = load_config(), load_config(flags={"optimizer": "adamw", "keep_every": "5"})
    assert needed_bytes(sgd, weights, trained) == 4 * (8000 + 4000) + OTHER_BYTES
    assert needed_bytes(adamw, weights, trained) == 4 * (8000 + 8000) + 20 * 8000 + OTHER_BYTES


def test_the_estimate_bounds_what_is_written(tmp_path: Path) -> None:
    weights = {"student.a": torch.zeros(10**6)}
    state = {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(10**6)}}}}
    for step in range(4):
        save_checkpoint(tmp_path, Checkpoint(step, weights, state), best=step == 1)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert written < needed_bytes(load_config(), weights, weights.values()) - OTHER_BYTES


def test_too_little_space_is_refused_and_much_is_shown(tmp_path: Path, free: list[int]) -> None:
    free[0] = 99 * 2**20
    with pytest.raises(UsageError) as error:
        check_space(tmp_path, 100 * 2**20)
    assert str(error.value) == (
        f"{tmp_path} needs up to 100 MiB for checkpoints, and 99 MiB are free: free some, choose "
        "another --out, or raise --keep-every"
    )
    (tmp_path / "checkpoint").write_bytes(bytes(2**20))
    shown = f"{tmp_path} will take up to 99 MiB of the 99 MiB that are free"
    assert check_space(tmp_path, 100 * 2**20) == shown
    free[0] = 1000 * 2**20
    assert check_space(tmp_path, 100 * 2**20) == ""


def test_a_run_that_does_not_fit_leaves_nothing(
    photos: Path, tmp_path: Path, free: list[int], command: Command
) -> None:
    free[0] = 2**20
    args = ("--data", photos, *SMALL_NET, "--batch-size", 6, "--epochs", 1)
    outcome = command("train", *args, "--out", tmp_path / "run")
    assert outcome.status == 2
    assert outcome.err.startswith(f"adautomix: {tmp_path / 'run'} needs up to ")
    assert not (tmp_path / "run").exists()


def test_more_steps_than_any_run_has_are_refused_at_once() -> None:
    line = "epochs = 1000000000 are 7000000000 steps of 7 per epoch"
    with pytest.raises(UsageError, match=f"^{line}, .* use at most {MAX_STEPS // 7} epochs$"):
        count_steps(10**9, 7)
    assert count_steps(MAX_STEPS // 7, 7) == MAX_STEPS // 7 * 7
    assert count_steps(MAX_STEPS, 1) == MAX_STEPS
