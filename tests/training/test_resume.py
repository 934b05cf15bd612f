"""A run that was stopped and resumed equals one that never stopped, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    SMALL_NET,
    Command,
    Outcome,
    assert_same_run,
    logged,
    steps_in,
    tensors,
)
from safetensors.torch import load_file, save_file

from adautomix.config import load_config
from adautomix.data import Batch
from adautomix.errors import UsageError
from adautomix.runs.build import data_info, load_images
from adautomix.runs.checkpoint import file_hash, read_manifest, write_manifest
from adautomix.runs.folder import RunFolder
from adautomix.runs.records import write_metrics
from adautomix.training.loop import Trainer
from adautomix.training.run import open_run, resume, train
from adautomix.training.verify import verify_resume

STEPS_PER_EPOCH = 4  # 24 images in batches of 6
EPOCHS = 2
TRAINING = (*SMALL_NET, "--epochs", EPOCHS, "--batch-size", 6, "--log-every", 1)

# Trains like the command, and kills its own process when step argv[1] begins.
DIES = """
import os, signal, sys
from adautomix.cli import main
from adautomix.training.loop import Trainer

train_step = Trainer.train_step

def die_at(self, batch):
    if self.step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    train_step(self, batch)

Trainer.train_step = die_at
main(sys.argv[2:])
"""


def settings(photos: Path, out: Path, **flags: Any) -> dict[str, Any]:
    # The preset of runs that name no method splits a batch into views, which 6 images do not allow.
    usual = {"data": str(photos), "out": str(out), "epochs": EPOCHS, "batch_size": 6}
    usual["method"] = "adautomix"
    net = {"model": "resnet18", "stem": "cifar", "width": 0.125, "workers": 1, "log_every": 1}
    return usual | net | flags


def new_trainer(flags: dict[str, Any]) -> Trainer:
    """Build the trainer of a new run, as `train` does."""
    config = load_config(flags=flags)
    folder = RunFolder.create(config)
    data = load_images(config, progress=False)
    folder.write_data_info(data_info(data))
    return Trainer(config, data, folder, quiet=True)


def signal_at(step: int, number: signal.Signals) -> Callable[..., None]:
    """Return a `train_step` that sends this process a signal in one step."""
    train_step = Trainer.train_step

    def signaled(self: Trainer, batch: Batch) -> None:
        if self.step == step:
            os.kill(os.getpid(), number)
        train_step(self, batch)

    return signaled


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that trains a method without interruption, once per method."""

    @cache
    def run_of(method: str) -> Path:
        run = tmp_path_factory.mktemp("whole") / method
        train(load_config(flags=settings(photos, run, method=method)), quiet=True)
        return run

    return run_of


Whole = Callable[[str], Path]
QUICK = ("accumulate", "short last batch", "held-out images, rare checkpoints")
each_method = pytest.mark.parametrize("method", ["adautomix", "mixup"])


# --- interrupted -----------------------------------------------------------------------------


@pytest.mark.slow
@each_method
def test_killed_within_an_epoch(
    method: str, whole: Whole, photos: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "killed"
    words = (STEPS_PER_EPOCH + 2, "train", "--data", photos, "--method", method, "--out", run)
    arguments = [str(word) for word in (*words, *TRAINING)]
    killed = subprocess.run([sys.executable, "-c", DIES, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()

    # Two steps were logged after the checkpoint; they are deleted and trained again.
    assert steps_in(run) == STEPS_PER_EPOCH
    assert logged(run)[-1]["step"] == STEPS_PER_EPOCH + 2
    assert not (run / "summary.json").exists()

    assert command("resume", run).status == 0
    assert_same_run(run, whole(method))


@pytest.fixture
def stopped(
    photos: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, signal.Signals, int], Outcome]:
    """Return a function that trains into `tmp_path / "run"` and is signaled within one step."""

    def stop(method: str, number: signal.Signals, step: int) -> Outcome:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", signal_at(step, number))
            words = ("--data", photos, "--method", method, "--out", tmp_path / "run")
            return command("train", *words, *TRAINING)

    return stop


Stopped = Callable[[str, signal.Signals, int], Outcome]


@pytest.mark.parametrize("method", [pytest.param("adautomix", marks=pytest.mark.slow), "mixup"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_stopped_by_a_signal_within_an_epoch(
    method: str,
    number: signal.Signals,
    whole: Whole,
    stopped: Stopped,
    tmp_path: Path,
    command: Command,
) -> None:
    run = tmp_path / "run"
    outcome = stopped(method, number, STEPS_PER_EPOCH + 1)
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1] == (
        f"adautomix: stopped by {number.name} at step {STEPS_PER_EPOCH + 2} of 8; "
        f"continue with `adautomix resume {run}`"
    )
    assert steps_in(run) == STEPS_PER_EPOCH + 2
    assert command("resume", run).status == 0
    assert_same_run(run, whole(method))


@pytest.mark.slow
def test_stopped_by_a_signal_in_the_last_step_of_an_epoch(
    whole: Whole, stopped: Stopped, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    assert stopped("mixup", signal.SIGTERM, STEPS_PER_EPOCH - 1).status == 1
    assert steps_in(run) == STEPS_PER_EPOCH
    assert logged(run)[-1]["kind"] == "epoch", "the epoch was not evaluated"
    assert command("resume", run).status == 0
    assert_same_run(run, whole("mixup"))


@pytest.mark.slow
def test_stopped_by_a_signal_in_the_very_last_step(
    whole: Whole, stopped: Stopped, tmp_path: Path
) -> None:
    outcome = stopped("mixup", signal.SIGTERM, EPOCHS * STEPS_PER_EPOCH - 1)
    assert outcome.status == 0, "nothing was left to do"
    assert_same_run(tmp_path / "run", whole("mixup"))


@pytest.mark.slow
def test_interrupted_again_and_again(whole: Whole, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    trainer = new_trainer(settings(photos, run))
    trainer.fit(until=1)
    trainer.save()
    for step in (3, 6, 7):
        trainer = open_run(run, quiet=True)
        trainer.fit(until=step)
        trainer.save()
    resume(run, quiet=True)
    assert_same_run(run, whole("adautomix"))


def test_signal_handlers_are_restored(photos: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    new_trainer(settings(photos, tmp_path / "run")).fit(until=1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# --- every setting with state ----------------------------------------------------------------


VARIANTS: dict[str, dict[str, Any]] = {
    "accumulate": {"accumulate": 2},
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "label_smoothing": 0.1, "clip_grad": 0.5},
    "bf16": {"precision": "bf16", "method": "mixup"},
    "fp16": {"precision": "fp16"},
    "short last batch": {"drop_last": False, "batch_size": 7},
    "random N and lambda": {"adautomix.random_n": True, "adautomix.per_sample": True},
    "teacher with buffers of its own": {"teacher.buffers": "own"},
    "held-out images, rare checkpoints": {
        "val_fraction": 0.25,
        "batch_size": 4,
        "eval_every": 2,
        "checkpoint_every": 2,
        "log_every": 3,
        "epochs": 3,
    },
    "cutmix with warm-up": {"method": "cutmix", "warmup_epochs": 1.5},
    "dropped paths and dropout": {
        "model": "swin_tiny_patch4_window7_224",
        "stem": "standard",
        "image_size": 32,
        "drop_path": 0.3,
        "model_options.proj_drop_rate": 0.2,
        "optimizer": "adamw",
        "lr": 1e-3,
        "accumulate": 2,
        "method": "mixup",
    },
}


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in VARIANTS],
)
def test_resumed_inside_an_epoch(variant: str, photos: Path, tmp_path: Path) -> None:
    flags = VARIANTS[variant]
    whole = train(load_config(flags=settings(photos, tmp_path / "whole", **flags)), quiet=True)
    stop = whole.summary.steps // 2 + 1
    trainer = new_trainer(settings(photos, tmp_path / "stopped", **flags))
    assert stop % trainer.batches.steps_per_epoch, "the run must stop within an epoch"
    trainer.fit(until=stop)
    trainer.save()
    halfway = tensors(tmp_path / "stopped")
    resume(tmp_path / "stopped", quiet=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    final = tensors(tmp_path / "whole")
    assert any(not torch.equal(halfway[name], final[name]) for name in final)


@pytest.mark.slow
def test_random_numbers_drawn_elsewhere_change_nothing(photos: Path, tmp_path: Path) -> None:
    flags = VARIANTS["dropped paths and dropout"]
    first = new_trainer(settings(photos, tmp_path / "first", **flags))
    first.fit(until=2)
    other = new_trainer(settings(photos, tmp_path / "other", **flags))
    other.fit(until=1)
    torch.manual_seed(12345)
    other.fit(until=2)
    mine, theirs = first.weights(), other.weights()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


@pytest.mark.slow
def test_resuming_a_finished_run_gives_its_summary_again(
    whole: Whole, tmp_path: Path, command: Command
) -> None:
    run = Path(shutil.copytree(whole("mixup"), tmp_path / "copy"))
    (run / "summary.json").unlink()
    assert command("resume", run).status == 0
    assert_same_run(run, whole("mixup"))


def test_a_run_without_a_checkpoint_cannot_be_resumed(photos: Path, tmp_path: Path) -> None:
    new_trainer(settings(photos, tmp_path / "run"))
    with pytest.raises(
        UsageError, match="has no checkpoint yet: start it again with `adautomix train"
    ):
        open_run(tmp_path / "run", quiet=True)


# --- resume --verify -------------------------------------------------------------------------


@pytest.fixture
def copied(whole: Whole, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole("adautomix"), tmp_path / "copy"))


def everything_in(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.*")}


def alter_weight(run: Path, owner: str) -> None:
    """Change one weight of the last checkpoint, and correct the hash in the manifest."""
    last = run / "checkpoints" / "last"
    weights = load_file(last / "weights.safetensors")
    name = next(name for name in weights if name.startswith(owner) and weights[name].ndim > 1)
    weights[name].view(-1)[0] += 1e-6
    save_file(weights, last / "weights.safetensors")
    manifest = read_manifest(last)
    manifest["sha256"]["weights.safetensors"] = file_hash(last / "weights.safetensors")
    write_manifest(last, manifest)


@pytest.mark.slow
def test_verify_finds_an_unaltered_run_equal(copied: Path, command: Command) -> None:
    before = everything_in(copied)
    outcome = command("resume", copied, "--verify", "--json")
    assert outcome.status == 0
    assert [row["verdict"] for row in outcome.json] == ["equal"] * 6
    assert all(row["run"] == row["resumed"] for row in outcome.json)
    assert everything_in(copied) == before, "verifying must change nothing"
    described = command("resume", copied, "--verify")
    assert described.status == 0
    assert "From step 4 to step 8, resumed and uninterrupted are equal." in described.out


@pytest.mark.slow
@pytest.mark.parametrize("owner", ["student", "teacher", "method"])
def test_verify_finds_an_altered_weight(owner: str, copied: Path, command: Command) -> None:
    alter_weight(copied, owner)
    outcome = command("resume", copied, "--verify", "--json")
    assert outcome.status == 1
    different = [row["what"] for row in outcome.json if row["verdict"] == "DIFFERENT"]
    assert different == [owner]
    assert outcome.err == f"adautomix: {copied} does not resume exactly from step 4\n"


def test_verify_finds_an_altered_line_of_metrics(copied: Path) -> None:
    rows = RunFolder(copied).rows()
    rows[-1] = rows[-1].model_copy(update={"loss": rows[-1].loss + 1e-9})
    write_metrics(copied / "metrics.jsonl", rows)
    result = verify_resume(copied)
    assert [name for name, mine, theirs in result.rows if mine != theirs] == ["metrics"]
    assert not result.equal


def test_verify_of_a_run_stopped_inside_its_first_epoch(photos: Path, tmp_path: Path) -> None:
    trainer = new_trainer(settings(photos, tmp_path / "run"))
    trainer.fit(until=2)
    trainer.save()
    result = verify_resume(tmp_path / "run")
    assert (result.start, result.step, result.equal) == (0, 2, True)
