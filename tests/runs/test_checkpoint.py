"""Checkpoints survive damage, full disks and crashes, and reading one runs no code."""

import errno
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_NET, Command, assert_same_run, steps_in, tensors

from adautomix.config import TrainConfig, load_config
from adautomix.errors import RunError, UsageError
from adautomix.runs.build import data_info, load_images
from adautomix.runs.checkpoint import (
    Checkpoint,
    checkpoint_names,
    epoch_checkpoint_name,
    file_hash,
    kept_epochs,
    load_checkpoint,
    read_checkpoint,
    read_manifest,
    save_checkpoint,
    write_manifest,
)
from adautomix.runs.folder import RunFolder
from adautomix.runs.trained import load_trained
from adautomix.training.loop import Trainer
from adautomix.training.run import open_run, resume, train

FILES = ("weights.safetensors", "state.pt", "manifest.json")


def checkpoint(step: int) -> Checkpoint:
    weights = {
        "student.conv": torch.full((2, 3), float(step)),
        "student.count": torch.tensor(step),
        "teacher.conv": torch.full((2, 3), step + 0.5),
        "method.studentship": torch.tensor([1.0, float(step)]),
    }
    state = {"optimizer": {"state": {0: torch.arange(step)}}, "best": {"top1": 0.1 * step}}
    return Checkpoint(step, weights, state)


def saved(run: Path, *steps: int) -> Path:
    for step in steps:
        save_checkpoint(run, checkpoint(step))
    return run / "checkpoints"


def assert_equal(mine: Checkpoint, theirs: Checkpoint) -> None:
    assert mine.step == theirs.step
    assert mine.weights.keys() == theirs.weights.keys()
    assert all(torch.equal(mine.weights[name], theirs.weights[name]) for name in mine.weights)
    first, second = (c.state["optimizer"]["state"][0] for c in (mine, theirs))
    assert torch.equal(first, second)
    assert mine.state["best"] == theirs.state["best"]


def flip_byte(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x01
    path.write_bytes(content)


def rewrite_state(folder: Path, content: bytes) -> None:
    """Replace the content of `state.pt`, and correct the hash in the manifest."""
    (folder / "state.pt").write_bytes(content)
    manifest = read_manifest(folder)
    manifest["sha256"]["state.pt"] = file_hash(folder / "state.pt")
    write_manifest(folder, manifest)


# --- writing and reading ---------------------------------------------------------------------


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path: Path) -> None:
    folder = saved(tmp_path, 3)
    assert_equal(read_checkpoint(folder / "last"), checkpoint(3))
    assert sorted(path.name for path in (folder / "last").iterdir()) == sorted(FILES)


def test_a_path_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    run = tmp_path / os.fsdecode(b"caf\xe9")
    assert_equal(read_checkpoint(saved(run, 3) / "last"), checkpoint(3))


def test_part_is_one_owners_state(tmp_path: Path) -> None:
    whole = checkpoint(2)
    assert whole.part("student").keys() == {"conv", "count"}
    assert whole.part("method").keys() == {"studentship"}
    assert torch.equal(whole.part("teacher")["conv"], whole.weights["teacher.conv"])


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1), best=True)
    folder = saved(tmp_path, 2, 3)
    steps = {path.name: read_checkpoint(path).step for path in folder.iterdir()}
    assert steps == {"last": 3, "previous": 2, "best": 1}
    save_checkpoint(tmp_path, checkpoint(4), best=True)
    steps = {path.name: read_checkpoint(path).step for path in folder.iterdir()}
    assert steps == {"last": 4, "previous": 3, "best": 4}


def test_kept_checkpoints_are_not_replaced_and_only_hold_weights(tmp_path: Path) -> None:
    for epoch in (2, 10, 11):
        save_checkpoint(
            tmp_path, checkpoint(epoch), kept=epoch_checkpoint_name(epoch) if epoch < 11 else None
        )
    assert kept_epochs(tmp_path) == [2, 10]
    assert checkpoint_names(tmp_path) == ["epoch-0002", "epoch-0010", "previous", "last"]
    kept = read_checkpoint(tmp_path / "checkpoints/epoch-0002")
    assert (kept.step, kept.state) == (2, {})
    assert kept.weights.keys() == checkpoint(2).weights.keys()
    assert all(torch.equal(kept.weights[n], w) for n, w in checkpoint(2).weights.items())
    assert_equal(load_checkpoint(tmp_path)[0], checkpoint(11))


def test_a_run_without_checkpoints_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        load_checkpoint(tmp_path)


# --- damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES[:2])
def test_a_damaged_file_is_named_and_the_previous_checkpoint_is_used(
    file: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, 1, 2)
    flip_byte(folder / "last" / file)
    found, problem = load_checkpoint(tmp_path)
    assert_equal(found, checkpoint(1))
    assert problem == (
        f"damaged checkpoint: {folder / 'last' / file} does not match its hash; "
        f"resuming from {folder / 'previous'}"
    )


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["cut short", "emptied", "removed"])
def test_every_kind_of_damage_is_survived(file: str, harm: str, tmp_path: Path) -> None:
    path = saved(tmp_path, 1, 2) / "last" / file
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes(b"" if harm == "emptied" else path.read_bytes()[:-10])
    found, problem = load_checkpoint(tmp_path)
    assert found.step == 1
    assert str(path.parent) in problem


@pytest.mark.slow
def test_every_flipped_byte_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    last = saved(tmp_path, 1, 2) / "last"
    whole = (last / "manifest.json").read_bytes()
    for position in range(len(whole)):
        for mask in (0x01, 0x80):
            content = bytearray(whole)
            content[position] ^= mask
            (last / "manifest.json").write_bytes(content)
            found, problem = load_checkpoint(tmp_path)
            assert found.step == 1
            assert problem.startswith(f"damaged checkpoint: {last / 'manifest.json'} ")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"step": 7}, "does not match its checksum"),
        ({"sha256": {}}, "does not match its checksum"),
        ({"settings": {"lr": 1}}, "does not match its checksum"),
        ({"version": 1}, "does not match its checksum"),
        ({"version": 3}, "has version 3, which only a newer adautomix can read"),
    ],
)
def test_an_edited_manifest_is_refused(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, 1) / "last" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=f"damaged checkpoint: {path} {problem}"):
        read_checkpoint(path.parent)


@pytest.mark.parametrize(
    "manifest",
    [
        {"step": 1, "sha256": {}},
        {"step": 1, "sha256": {"state.pt": "0"}},
        {"step": "1", "sha256": {"state.pt": "0", "weights.safetensors": "0"}},
        {"sha256": {"state.pt": "0", "weights.safetensors": "0"}},
        [],
    ],
)
def test_an_old_manifest_must_be_complete(manifest: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, 1) / "last" / "manifest.json"
    path.write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=f"damaged checkpoint: {path} "):
        read_checkpoint(path.parent)


def test_two_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1, 2)
    for name in ("last", "previous"):
        flip_byte(folder / name / "weights.safetensors")
    with pytest.raises(RunError, match=r"damaged checkpoint: .*last/weights\.safetensors does not"):
        load_checkpoint(tmp_path)


def test_unreadable_weights_with_a_correct_hash_are_damage(tmp_path: Path) -> None:
    """The manifest agrees with a file that is not a safetensors file."""
    last = saved(tmp_path, 1) / "last"
    (last / "weights.safetensors").write_bytes(b"not tensors")
    manifest = read_manifest(last)
    manifest["sha256"]["weights.safetensors"] = file_hash(last / "weights.safetensors")
    write_manifest(last, manifest)
    with pytest.raises(RunError, match="damaged checkpoint"):
        read_checkpoint(last)


# --- no code is run --------------------------------------------------------------------------


class Bomb:
    """Creates a folder when it is unpickled by a reader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch", "plain pickle"])
def test_a_state_with_code_in_it_is_refused_and_the_code_is_not_run(
    zipped: bool, tmp_path: Path
) -> None:
    last, trace = saved(tmp_path, 1) / "last", tmp_path / "exploded"
    content = io.BytesIO()
    if zipped:
        torch.save({"optimizer": Bomb(trace)}, content)
    else:
        pickle.dump({"optimizer": Bomb(trace)}, content, protocol=2)
    rewrite_state(last, content.getvalue())
    with pytest.raises(RunError, match="damaged checkpoint"):
        read_checkpoint(last)
    assert not trace.exists()
    if zipped:
        torch.load(last / "state.pt", weights_only=False)
        assert trace.exists(), "the bomb is a dud"


# --- full disks and crashes ------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function; after `full_disk(name)`, writing a file of that name finds no space."""
    write = Path.write_bytes

    def fill(name: str) -> None:
        def write_bytes(path: Path, content: Any) -> int:
            return write(Path("/dev/full") if path.name == name else path, content)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)

    return fill


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("file", FILES[:2])
def test_a_full_disk_is_reported_and_older_checkpoints_are_kept(
    file: str, full_disk: Callable[[str], None], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, checkpoint(1), best=True)
    folder = saved(tmp_path, 2)
    full_disk(file)
    with pytest.raises(RunError) as failure:
        save_checkpoint(tmp_path, checkpoint(3), best=True)
    assert str(failure.value) == (
        f"no space left to write {tmp_path}: free some, then `adautomix resume {tmp_path}`; "
        "the previous checkpoint is intact"
    )
    steps = {path.name: read_checkpoint(path).step for path in folder.iterdir()}
    assert steps == {"last": 2, "previous": 1, "best": 1}


def test_the_best_checkpoint_takes_no_space_of_its_own(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1), best=True)
    folder = saved(tmp_path, 2)
    for name in FILES:
        assert (folder / "best" / name).samefile(folder / "previous" / name)
    saved(tmp_path, 3)
    assert_equal(read_checkpoint(folder / "best"), checkpoint(1))


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSPC])
def test_without_hard_links_the_best_is_copied_and_a_full_disk_reported(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, checkpoint(1), best=True)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    if number == errno.EPERM:
        save_checkpoint(tmp_path, checkpoint(2), best=True)
    else:
        with pytest.raises(RunError, match="no space left"):
            save_checkpoint(tmp_path, checkpoint(2), best=True)
    step = 2 if number == errno.EPERM else 1
    for name in ("last", "best"):
        assert_equal(read_checkpoint(tmp_path / "checkpoints" / name), checkpoint(step))
    assert not list(tmp_path.rglob("*.tmp"))


def test_other_errors_with_a_file_are_not_reported_as_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(PermissionError):
        save_checkpoint(tmp_path, checkpoint(1))


class Crash(BaseException):
    """Simulates a kill between two instructions."""


def crashes_while_saving(run: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int) -> bool:
    """Save checkpoint 3, but crash before the n-th rename or removal. Return whether it crashed."""
    left = crash_at

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Crash
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        try:
            save_checkpoint(run, checkpoint(3), best=True, kept="epoch-0003")
        except Crash:
            return True
    return False


@pytest.mark.parametrize("before", [(), (1,), (1, 2)], ids=["none", "one", "two"])
def test_a_crash_at_any_moment_leaves_a_loadable_run(
    before: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found_steps = []
    for crash_at in range(20):
        run = tmp_path / str(crash_at)
        saved(run, *before)
        crashed = crashes_while_saving(run, monkeypatch, crash_at)
        if before or not crashed:
            found, problem = load_checkpoint(run)
            assert problem == ""
            assert_equal(found, checkpoint(found.step))
            found_steps.append(found.step)
        for epoch in kept_epochs(run):
            assert read_checkpoint(run / "checkpoints" / epoch_checkpoint_name(epoch)).step == epoch
        save_checkpoint(run, checkpoint(4), best=True)  # the run can continue
        assert load_checkpoint(run)[0].step == read_checkpoint(run / "checkpoints/best").step == 4
        if not crashed:
            break
    else:
        pytest.fail("every save crashed")
    assert found_steps[-1] == 3
    assert set(found_steps) <= {*before, 3}


# --- whole runs ------------------------------------------------------------------------------


def settings(photos: Path, run: Path, **flags: Any) -> TrainConfig:
    """The settings of a run of two epochs with four steps each."""
    words = [str(word).removeprefix("--") for word in SMALL_NET]
    net = dict(zip(words[::2], words[1::2], strict=True))
    usual = {"data": str(photos), "out": run, "method": "mixup", "epochs": 2, "batch_size": 6}
    return load_config(flags=net | usual | flags)


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints at steps 4 and 8."""
    run = tmp_path_factory.mktemp("checkpoints") / "run"
    train(settings(photos, run), quiet=True)
    return run


def new_trainer(config: TrainConfig) -> Trainer:
    """Build the trainer of a new run, as `train` does."""
    folder = RunFolder.create(config)
    data = load_images(config, progress=False)
    folder.write_data_info(data_info(data))
    return Trainer(config, data, folder, quiet=True)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_is_resumed_from_the_checkpoint_before_a_damaged_one(
    run: Path, finished: Path, command: Command
) -> None:
    flip_byte(run / "checkpoints/last/weights.safetensors", 100)
    (run / "summary.json").unlink()
    outcome = command("resume", run)
    assert outcome.status == 0
    first_line = outcome.err.splitlines()[0]
    assert "last/weights.safetensors does not match its hash" in first_line
    assert first_line.endswith(f"resuming from {run / 'checkpoints/previous'}")
    assert_same_run(run, finished)


@pytest.mark.parametrize("args", [("predict", "a.png"), ("evaluate",), ("export", "--out", "x")])
def test_a_damaged_checkpoint_is_not_replaced_by_the_one_before_it(
    args: tuple[str, ...], run: Path, command: Command, tmp_path: Path
) -> None:
    """Its predictions and scores would be taken for those of the newest."""
    flip_byte(run / "checkpoints/last/weights.safetensors", 100)
    name, *others = args
    outcome = command(name, run, *others)
    assert outcome.status == 1
    assert outcome.err == (
        f"adautomix: damaged checkpoint: {run}/checkpoints/last/weights.safetensors does not match "
        "its hash: use the checkpoint `previous`, or train it again with "
        f"`adautomix resume {run}`\n"
    )
    assert load_trained(run, checkpoint="previous").step == 4


@pytest.mark.slow
def test_keeping_checkpoints_changes_nothing_else(
    photos: Path, finished: Path, tmp_path: Path
) -> None:
    """Stopped after keeping one, the run resumes exactly; each has the weights of its epoch."""
    run = tmp_path / "stopped"
    new_trainer(settings(photos, run, keep_every=1)).fit(until=4)
    kept = tensors(run, "epoch-0001")
    resume(run, quiet=True)
    assert_same_run(run, finished)
    assert kept_epochs(run) == [1, 2]
    for name, at in {"epoch-0001": "previous", "epoch-0002": "last"}.items():
        mine, theirs = tensors(run, name), tensors(finished, at)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[tensor], theirs[tensor]) for tensor in mine)
    assert all(torch.equal(kept[n], value) for n, value in tensors(run, "epoch-0001").items())


def test_a_kept_checkpoint_is_saved_between_the_others(photos: Path, tmp_path: Path) -> None:
    flags = {"epochs": 4, "keep_every": 3, "checkpoint_every": 4, "eval_every": 4}
    trainer = new_trainer(settings(photos, tmp_path / "run", **flags))
    trainer.fit(until=12)
    assert checkpoint_names(tmp_path / "run") == ["epoch-0003", "last"]
    assert steps_in(tmp_path / "run") == 12


@pytest.mark.slow
def test_a_kept_checkpoint_is_loaded_by_its_name(
    photos: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    train(settings(photos, run, keep_every=1), quiet=True)
    for epoch in (1, 2):
        trained = load_trained(run, checkpoint=epoch_checkpoint_name(epoch))
        weights = tensors(run, epoch_checkpoint_name(epoch))
        assert trained.step == 4 * epoch
        for network, model in trained.networks.items():
            for name, value in model.state_dict().items():
                assert torch.equal(value, weights[f"{network}.{name}"])
    photo = next(photos.rglob("*.png"))
    assert command("predict", run, photo, "--which", "epoch-0001").status == 0
    with pytest.raises(UsageError) as failure:
        load_trained(run, checkpoint="../checkpoints/last")
    assert str(failure.value) == (
        f"{run} has no checkpoint '../checkpoints/last'; it has epoch-0001, epoch-0002, best, "
        "previous, last"
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_a_run_with_one_line_and_the_run_can_be_resumed(
    run: Path,
    finished: Path,
    command: Command,
    full_disk: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.rmtree(run / "checkpoints/last")
    (run / "summary.json").unlink()
    full_disk("weights.safetensors")
    outcome = command("resume", run)
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1].startswith(f"adautomix: no space left to write {run}: ")
    monkeypatch.undo()
    assert command("resume", run).status == 0
    assert_same_run(run, finished)


def test_a_loss_of_nan_ends_the_run_before_anything_is_saved(run: Path) -> None:
    good = tensors(run, "previous")
    shutil.rmtree(run / "checkpoints/last")
    (run / "checkpoints/previous").rename(run / "checkpoints/last")
    trainer = open_run(run, quiet=True)
    trainer.config = trainer.config.model_copy(update={"log_every": 1})
    with torch.no_grad():
        trainer.student.get_parameter("heads.clean.weight")[0, 0] = torch.nan
    message = "the loss became NaN or infinite at step 4: lower --lr"
    with pytest.raises(RunError, match=message) as failure:
        trainer.fit()
    assert str(run) in str(failure.value)
    kept = tensors(run)
    assert steps_in(run) == 4
    assert all(torch.equal(kept[name], good[name]) for name in good)
    assert all(value.isfinite().all() for value in kept.values())


def test_a_learning_rate_that_is_far_too_large(
    photos: Path, tmp_path: Path, command: Command
) -> None:
    """With one step per epoch, the first loss is finite, and the weights after it are not."""
    words = ("--data", photos, "--method", "vanilla", *SMALL_NET, "--batch-size", 24)
    outcome = command("train", *words, "--lr", "1e30", "--epochs", 3, "--out", tmp_path / "run")
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1].startswith(
        "adautomix: the loss became NaN or infinite at step 1: lower --lr"
    )
    assert not (tmp_path / "run/checkpoints").exists(), "weights that are not finite were saved"
