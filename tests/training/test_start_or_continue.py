"""The same command again continues a run, reports a finished one, and refuses other settings."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL_NET, Command, assert_same_run, steps_in
from PIL import Image
from test_resume import DIES

import adautomix as am
from adautomix.config import load_config
from adautomix.runs.lock import LOCK
from adautomix.runs.state import setting_changes
from adautomix.training import train

TRAINING = (*SMALL_NET, "--epochs", 2, "--batch-size", 6, "--log-every", 1, "--method", "mixup")


def settings(photos: Path, out: Path, **flags: Any) -> dict[str, Any]:
    values = {"data": str(photos), "out": str(out), "epochs": 2, "batch_size": 6, "log_every": 1}
    net = {"model": "resnet18", "stem": "cifar", "width": 0.125, "workers": 1, "method": "mixup"}
    return values | net | flags


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(load_config(flags=settings(photos, run)), quiet=True)
    return run


def content(run: Path) -> dict[str, bytes]:
    files = (path for path in run.rglob("*.*") if path.name != LOCK)  # a killed process leaves it
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def killed_once(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that `kill -9` ended in the second step of its second epoch."""
    run = tmp_path_factory.mktemp("killed") / "run"
    words = [str(word) for word in (5, "train", "--data", photos, *TRAINING, "--out", run)]
    process = subprocess.run([sys.executable, "-c", DIES, *words], capture_output=True)
    assert process.returncode == -9, process.stderr.decode()
    return run


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> Path:
    """A copy of the killed run."""
    return Path(shutil.copytree(killed_once, tmp_path / "run"))


@pytest.mark.slow
def test_the_same_command_continues_after_a_kill(
    killed: Path, whole: Path, photos: Path, command: Command
) -> None:
    words = ("train", "--data", photos, *TRAINING, "--out", killed)
    first = command(*words)
    assert first.status == 0, first.err
    assert f"continuing {killed} from step 4 of 8" in first.err
    assert_same_run(killed, whole)

    before = content(killed)
    for again in (words, ("resume", killed)):
        outcome = command(*again)
        assert outcome.status == 0
        assert f"{killed} has finished: nothing was changed" in outcome.err
        assert "test photos" in outcome.out
        assert content(killed) == before


def test_other_settings_are_refused_and_named(
    killed: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    before = content(killed)
    words = ("train", "--data", photos, *TRAINING, "--out", killed)
    outcome = command(*words, "--lr", 0.3, "--mixup.alpha", 2)
    assert outcome.status == 2
    assert outcome.err == (
        f"adautomix: {killed} was run with other settings: lr was 0.1 and is now 0.3, mixup.alpha "
        "was 1.0 and is now 2.0. Repeat the settings to continue it, choose another --out, or "
        "start over with --fresh\n"
    )
    assert content(killed) == before


def test_settings_that_change_no_result_are_taken_over(
    killed: Path, whole: Path, photos: Path, command: Command
) -> None:
    words = ("train", "--data", photos, *TRAINING, "--out", killed, "--eval-batch-size", 5)
    assert command(*words, "--workers", 2).status == 0
    assert "eval_batch_size: 5" in (killed / "config.yaml").read_text()
    assert steps_in(killed) == 8


@pytest.mark.slow
def test_fresh_says_what_it_removed(
    killed: Path, whole: Path, photos: Path, command: Command
) -> None:
    words = ("train", "--data", photos, *TRAINING, "--out", killed, "--fresh")
    outcome = command(*words)
    assert outcome.status == 0
    assert f"removed the unfinished run in {killed} (step 4)" in outcome.err
    assert_same_run(killed, whole)
    assert "removed the finished run" in command(*words, "--epochs", 1).err
    assert steps_in(killed) == 4


def test_fresh_removes_nothing_that_no_run_wrote(
    killed: Path, photos: Path, command: Command
) -> None:
    (killed / "notes.txt").write_text("mine")
    before = content(killed)
    outcome = command("train", "--data", photos, *TRAINING, "--out", killed, "--fresh")
    assert outcome.status == 2
    assert "holds notes.txt, which no run wrote: nothing was removed" in outcome.err
    assert content(killed) == before


def test_fresh_keeps_the_old_run_if_the_new_one_cannot_be_trained(
    killed: Path, photos: Path, command: Command
) -> None:
    before = content(killed)
    words = ("train", "--data", photos, *TRAINING, "--out", killed, "--fresh")
    assert command(*words, "--batch-size", 1000).status == 2
    assert content(killed) == before


def test_from_python(photos: Path, tmp_path: Path) -> None:
    config = load_config(flags=settings(photos, tmp_path / "run", epochs=1))
    first = am.train(config, quiet=True)
    again = am.train(config, quiet=True)
    assert (first.trained, again.trained) == (True, False)
    assert again.summary == first.summary
    assert am.resume(tmp_path / "run", quiet=True) == again
    assert am.train(config, fresh=True, quiet=True).trained


def test_data_sets_given_as_objects_continue(tmp_path: Path, command: Command) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    items = [(Image.fromarray(image), number % 3) for number, image in enumerate(pixels)]
    config = load_config(flags=settings(tmp_path, tmp_path / "run", test_fraction=0.5))
    first = am.train(config, data=(items,), quiet=True)
    (tmp_path / "run" / "summary.json").unlink()
    assert am.train(config, data=(items,), quiet=True).final == first.final
    with pytest.raises(am.UsageError, match="epochs was 2 and is now 3"):
        am.train(config.model_copy(update={"epochs": 3}), data=(items,), quiet=True)


def test_changes_of_settings_by_hand() -> None:
    old = {"method": "mixup", "lr": 1, "workers": 1, "mixup": {"alpha": 1}, "options": {}}
    new = {"method": "mixup", "lr": 2, "workers": 9, "mixup": {"alpha": 3}, "options": {"a": 1}}
    changes = [("lr", 1, 2), ("mixup.alpha", 1, 3), ("options.a", None, 1)]
    assert list(setting_changes(old, new)) == changes
    other = {**old, "method": "cutmix", "cutmix": {"alpha": 1}}
    del other["mixup"]
    assert list(setting_changes(old, other)) == [("method", "mixup", "cutmix")]
