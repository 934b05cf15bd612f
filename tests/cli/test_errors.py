"""An error is one line that names the problem and the remedy."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CLASSES, SMALL_NET, Command, Outcome, write_photos

from adautomix.config import load_config
from adautomix.runs.folder import RunFolder

Fails = Callable[..., str]


def error_line(outcome: Outcome, status: int) -> str:
    """Return the one line of an error, without the program's name."""
    assert outcome.status == status, outcome.err
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1, outcome.err
    program, _, line = outcome.err.rstrip("\n").partition(": ")
    assert program == "adautomix"
    return line


@pytest.fixture
def fails(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fails:
    """`fails("train", …)` is the error line of a command, which must not leave files behind."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)

    def run(*args: object, status: int = 2) -> str:
        line = error_line(command(*args), status)
        assert not any(path.is_file() for path in place.rglob("*")), "something was left behind"
        return line

    return run


@pytest.fixture
def train_fails(fails: Fails, photos: Path) -> Fails:
    """`train_fails("--lr", 0)` is the error line of a training with these flags."""

    def run(*args: object, status: int = 2) -> str:
        data = () if "--data" in args else ("--data", photos)
        return fails("train", *data, *SMALL_NET, "--batch-size", 6, *args, status=status)

    return run


@pytest.fixture
def own_photos(tmp_path: Path) -> Path:
    """A folder of photographs to damage: two training images and a test image per class."""
    return write_photos(tmp_path / "own", {"train": 2, "test": 1})


# --- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--epohcs", 3), "unknown setting epohcs: did you mean epochs?"),
        (("--teacher.momentun", 0.9), "unknown setting teacher.momentun: did you mean"),
        (("--adautomix.bata", 0.3), "unknown setting adautomix.bata: did you mean adautomix.beta?"),
        (("--qqqqqq", 1), "unknown setting qqqqqq: `adautomix settings` lists them all"),
        (("--lr", 0), "--lr '0': input should be greater than 0"),
        (("--lr", "fast"), "--lr 'fast': input should be a valid number"),
        (("--epochs", -1), "--epochs '-1': input should be greater than or equal to 1"),
        (("--precision", "int8"), "--precision 'int8': input should be 'fp32', 'bf16' or 'fp16'"),
        (("--adautomix.beta", 7), "--adautomix.beta '7': input should be less than or equal to 1"),
        (("--seed",), "Option '--seed' requires an argument. (`adautomix train --help`)"),
        (("--seed=",), "--seed '': input should be a valid integer"),
        (("--flip", "maybe"), "--flip 'maybe': input should be a valid boolean"),
        (("--adautomix.no-such.x", 1), "unknown setting adautomix.no_such.x: did you mean "),
        (("--no-flap",), "unknown setting no-flap: did you mean no-flip?"),
        (("--sweep", "adautomix/n"), "unknown setting sweep: did you mean "),
        (("stray",), "unexpected argument 'stray': settings are written --name value"),
        (("--method", "cutmicks"), "unknown method 'cutmicks': did you mean 'cutmix'?"),
        (("--model", "resnet19"), "unknown timm model 'resnet19': did you mean 'resnet18'?"),
        (("--device", "gpu"), "no device 'gpu' here: use cpu, or auto"),
        (("--device", "cuda:99"), "no device 'cuda:99' here: use cpu, or auto"),
        (("--batch-size", 7, "--accumulate", 2), "--accumulate 2 does not divide batch_size = 7"),
        (
            ("--recipe", "cifar100-r18/adautomx@200"),
            "unknown recipe 'cifar100-r18/adautomx@200': "
            "did you mean 'cifar100-r18/adautomix@200'?",
        ),
        (("--config", "nowhere.yaml"), "cannot read nowhere.yaml: No such file or directory"),
    ],
)
def test_settings(args: tuple[object, ...], line: str, train_fails: Fails) -> None:
    assert train_fails(*args).startswith(line)


def test_bare_train_says_what_to_give(fails: Fails, tmp_path: Path) -> None:
    """Without --data it would train on a small built-in set for minutes, which nobody asked for."""
    for args in ((), ("--method", "mixup", "--out", tmp_path / "run")):
        assert fails("train", *args).startswith("train needs images: name a folder that has one")


def test_a_file_without_settings(tmp_path: Path, train_fails: Fails) -> None:
    file = tmp_path / "settings.yaml"
    for text, line in {
        "epochs: [1": f"{file} is not YAML: ",
        "epochs": f"{file} holds no settings: write lines like `epochs: 20`",
    }.items():
        file.write_text(text)
        assert train_fails("--config", file).startswith(line)


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (("trian",), "Did you mean 'train'?"),
        (("predict",), "RUN"),
        (("export", "run"), "--out"),
        (("bench", "--steps", "1"), "--steps"),
        (("report", "--uot", "x.html"), "--uot"),
        (("completion", "tcsh"), "tcsh"),
    ],
)
def test_wrong_usage_of_commands(args: tuple[str, ...], name: str, fails: Fails) -> None:
    assert name in fails(*args)


def test_debug_shows_the_traceback(command: Command, photos: Path, tmp_path: Path) -> None:
    args = ("train", "--data", photos, *SMALL_NET, "--lr", 0, "--out", tmp_path / "run")
    line = error_line(command(*args), 2)
    outcome = command(*args, "--debug")
    assert outcome.status == 2
    assert outcome.err.startswith("Traceback (most recent call last)")
    assert outcome.err.splitlines()[-1] == f"adautomix: {line}"


def test_an_unexpected_error_is_one_line_too(
    fails: Fails, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("adautomix.config.list_settings", broken)
    line = fails("settings", status=1)
    assert line == "ZeroDivisionError: first second (--debug shows where)"
    with pytest.raises(ZeroDivisionError):
        command("settings", "--debug")


@pytest.mark.parametrize(
    "words", [("predict", "{}", "a.png"), ("report", "{}"), ("evaluate", "{}")]
)
def test_a_name_that_no_file_has(words: tuple[str, ...], fails: Fails) -> None:
    long = "x" * 300
    line = fails(*(word.format(long) for word in words), status=1)
    assert line.endswith("File name too long (--debug shows where)")
    assert line.count(long) == 1


def test_a_full_disk_is_one_line_whatever_is_written(
    fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "table.csv")

    monkeypatch.setattr("adautomix.config.list_settings", full)
    line = fails("settings", status=1)
    assert line == "no space left to write table.csv: free some, then repeat the command"


def test_ctrl_c_without_anything_to_save(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adautomix.config.list_settings", interrupted)
    line = fails("settings", status=1)
    assert line == "stopped, nothing is unfinished: repeat the command to start again"


# --- folders of images -----------------------------------------------------------------------


def test_a_missing_folder(train_fails: Fails) -> None:
    assert train_fails("--data", "nowhere/pets").startswith("no folder nowhere/pets and no data ")
    assert "did you mean 'digits'?" in train_fails("--data", "digist")


def test_classes_without_images(own_photos: Path, train_fails: Fails) -> None:
    for path in own_photos.glob("train/*/*.png"):
        path.unlink()
    line = train_fails("--data", own_photos)
    assert line.startswith(f"class folder {own_photos / 'train' / sorted(CLASSES)[0]} holds no")


def test_a_class_without_training_images(own_photos: Path, train_fails: Fails) -> None:
    shutil.rmtree(own_photos / "train" / CLASSES[1])
    line = train_fails("--data", own_photos)
    assert line.startswith(f"class {CLASSES[1]!r} is in {own_photos / 'test'} but not in ")


def test_an_unreadable_image_is_named_or_skipped(
    own_photos: Path, tmp_path: Path, command: Command
) -> None:
    bad = own_photos / "train" / CLASSES[0] / "bad.png"
    bad.write_bytes(b"no image")
    small = ("--method", "mixup", *SMALL_NET, "--batch-size", 3, "--epochs", 1)
    args = ("--data", own_photos, *small)
    refused = command("train", *args)
    assert refused.status == 2
    line = refused.err.splitlines()[-1]  # below the bar of the decoding
    assert line.startswith(f"adautomix: cannot read image {bad}: ")
    assert "skip_bad" in line

    outcome = command("train", *args, "--skip-bad", "--out", tmp_path / "run")
    assert outcome.status == 0
    assert f"skipped, unreadable: {bad}" in outcome.err.splitlines()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bad_files"] == [str(bad)]
    assert summary["train_images"] == 6


# --- impossible batches ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ((1,), ["adautomix mixes 3 images", "a batch has 1 "]),
        ((25,), ["batch size 25", "training set of 24 images", "at most 24"]),
        ((23, "--drop-last", "false"), ["mixes 3 images", "a batch has 1 ", "drop_last"]),
        ((2,), ["adautomix mixes 3 images", "a batch has 2", "batch_size"]),
        ((4, "--accumulate", 4, "--method", "mixup"), ["needs 2 per part", "a batch has 4"]),
        ((22, "--drop-last", "false"), ["adautomix mixes 3", "a batch has 2", "drop_last"]),
    ],
)
def test_batches(args: tuple[object, ...], parts: list[str], train_fails: Fails) -> None:
    line = train_fails("--preset", "published", "--batch-size", *args)
    assert all(part in line for part in parts), line


# --- runs ------------------------------------------------------------------------------------


@pytest.fixture
def started(photos: Path, tmp_path: Path) -> Path:
    """A run folder without a checkpoint."""
    flags = {"data": str(photos), "out": tmp_path / "started"}
    return RunFolder.create(load_config(flags=flags)).path


def test_a_run_folder_is_not_overwritten(started: Path, train_fails: Fails) -> None:
    (started / "checkpoints" / "last").mkdir(parents=True)
    line = train_fails("--out", started)
    assert line.startswith(f"{started} was run with other settings: batch_size was ")


@pytest.mark.parametrize(
    "args", [("resume",), ("resume", "--verify"), ("evaluate",), ("report",), ("predict", "a.png")]
)
def test_a_folder_that_is_not_a_run(args: tuple[str, ...], tmp_path: Path, fails: Fails) -> None:
    name, *others = args
    line = fails(name, tmp_path, *others)
    assert line == f"{tmp_path} is not a run folder: it has no config.yaml"


@pytest.mark.parametrize("args", [("resume",), ("resume", "--verify"), ("evaluate",)])
def test_a_run_without_a_checkpoint(args: tuple[str, ...], started: Path, fails: Fails) -> None:
    name, *others = args
    (started / "data.json").write_text('{"classes": ["a", "b"], "mean": [0], "std": [1]}')
    assert fails(name, started, *others).startswith(f"{started} has no checkpoint yet")


def test_names_of_networks_and_checkpoints(started: Path, fails: Fails) -> None:
    assert fails("evaluate", started, "--which", "newest") == (
        f"{started} has no checkpoint 'newest'; it has none yet"
    )


# --- comparisons and pictures ----------------------------------------------------------------


def test_a_comparison_fails_before_it_trains(photos: Path, fails: Fails) -> None:
    args = ("compare", "--data", photos, *SMALL_NET, "--epochs", 1, "--batch-size", 6)
    assert fails(*args, "--methods", "vanilla,mixip").startswith("unknown method 'mixip'")
    assert fails(*args, "--seeds", "0,x") == "--seeds: 'x' is no whole number; write 0,1,2"
    assert fails(*args, "--seeds", ",").startswith("no run to compare")


def test_a_preview_of_a_file_that_is_not_an_image(tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    line = fails("preview", "--method", "mixup", "--images", tmp_path / "notes.txt")
    assert line == f"cannot read {tmp_path / 'notes.txt'}: not an image that can be identified"
