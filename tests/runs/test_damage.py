"""A run folder that was damaged or edited is refused or repaired in one line, never obeyed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL_NET, Command, assert_same_run, write_photos
from PIL import Image

from adautomix.cli import main
from adautomix.config import load_config
from adautomix.errors import UsageError
from adautomix.runs.folder import RunFolder
from adautomix.runs.records import read_run
from adautomix.runs.trained import load_trained
from adautomix.training.loop import Trainer
from adautomix.training.run import train

TRAINING = (*SMALL_NET, "--epochs", 2, "--batch-size", 6, "--method", "mixup", "--log-every", 1)


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    run = tmp_path_factory.mktemp("damage") / "run"
    names = [str(word).removeprefix("--").replace("-", "_") for word in TRAINING[::2]]
    flags = dict(zip(names, TRAINING[1::2], strict=True))
    train(load_config(flags=flags | {"data": str(photos), "out": run}), quiet=True)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a YAML or JSON file."""
    load, dump = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.dump)
    path.write_text(dump(load(path.read_text()) | changes))


def error_of(command: Command, *words: object) -> str:
    outcome = command(*words)
    assert outcome.status in (1, 2), outcome.out
    assert outcome.err.count("\n") == 1, outcome.err
    return outcome.err.removeprefix("adautomix: ").rstrip("\n")


# --- edited ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"lr": 0.2}, "lr = 0.2, but the run was trained with 0.1"),
        ({"epochs": 3}, "epochs = 3, but the run was trained with 2"),
        ({"seed": 1}, "seed = 1, but the run was trained with 0"),
        ({"method": "cutmix"}, "method = cutmix, but the run was trained with mixup"),
        ({"mixup": {"alpha": 0.5}}, "mixup.alpha = 0.5, but the run was trained with 1.0"),
    ],
)
@pytest.mark.parametrize("name", ["resume", "predict", "report"])
def test_an_edited_setting_is_refused(
    name: str, change: dict[str, Any], difference: str, run: Path, image: Path, command: Command
) -> None:
    edit(run / "config.yaml", **change)
    line = error_of(command, name, run, *([image] if name == "predict" else []))
    assert line.startswith(f"{run / 'config.yaml'} has {difference}")
    assert "set it back, or train another run" in line


@pytest.mark.slow
def test_settings_that_do_not_decide_results_may_change(run: Path, command: Command) -> None:
    edit(run / "config.yaml", workers=0, label="mine", out="elsewhere", eval_batch_size=7)
    (run / "summary.json").unlink()
    assert command("resume", run).status == 0
    assert RunFolder(run).summary() is not None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"mean": [0.1, 0.2, 0.3]}, "has mean = (0.1, 0.2, 0.3), but the run was trained with"),
        ({"classes": ["a", "b", "c"]}, "has other classes than the run was trained with"),
        ({"image_size": 32}, "has image_size = 32, but the run was trained with 16"),
    ],
)
def test_edited_facts_about_the_data_are_refused(
    change: dict[str, Any], problem: str, run: Path, image: Path, command: Command
) -> None:
    edit(run / "data.json", **change)
    line = error_of(command, "predict", run, image)
    assert line.startswith(f"{run / 'data.json'} {problem}")
    assert line.endswith(f"delete the file, and `adautomix resume {run}` restores it")


@pytest.mark.slow
def test_changed_images_are_refused(tmp_path: Path, command: Command) -> None:
    images = write_photos(tmp_path / "images")
    out = tmp_path / "own"
    assert command("train", "--data", images, *TRAINING, "--out", out).status == 0
    next(images.glob("train/*/0.png")).unlink()
    (out / "summary.json").unlink()
    outcome = command("resume", out)
    assert outcome.status == 2
    line = outcome.err.splitlines()[-1]  # below the bar of the decoding
    assert "0.png has vanished since the run started (one of 1 such images)" in line


def test_a_changed_data_set_is_refused(run: Path) -> None:
    folder = RunFolder(run)
    info = folder.data_info()
    folder.check_same_data(info)
    folder.check_same_data({**info, "mean": [value * (1 + 1e-9) for value in info["mean"]]})
    with pytest.raises(UsageError) as error:
        folder.check_same_data({**info, "train_images": 23, "mean": [0.1, 0.2, 0.3]})
    assert str(error.value) == (
        f"the data set of {run} has changed, it now has train_images = 23, but the run was trained "
        "with 24: restore it, or train another run with another --out"
    )


# --- damaged ---------------------------------------------------------------------------------


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 3],
    "not UTF-8": lambda content: b"\xff\xfe" + content,
    "zeroed": lambda content: bytes(len(content)),
    "other content": lambda content: b"[1]",
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["config.yaml", "data.json"])
def test_a_damaged_file_is_named_and_restored_by_a_resume(
    file: str, damage: str, run: Path, finished: Path, image: Path, command: Command
) -> None:
    path = run / file
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    line = error_of(command, "predict", run, image)
    assert str(path) in line
    assert f"`adautomix resume {run}` restores it from the last checkpoint" in line

    outcome = command("resume", run)
    assert outcome.status == 0, outcome.err
    assert f"restored {file} from the last checkpoint" in outcome.err
    assert_same_run(run, finished)
    assert load_trained(run).step == 8


def test_a_fifo_is_not_read(run: Path, image: Path, command: Command) -> None:
    for file in ("config.yaml", "data.json"):
        copy = Path(shutil.copytree(run, run.with_name(f"fifo-{file}")))
        (copy / file).unlink()
        os.mkfifo(copy / file)
        line = error_of(command, "predict", copy, image)
        assert line.startswith(f"cannot read {copy / file}: not a regular file")


@pytest.mark.slow
def test_a_damaged_line_of_metrics_is_repaired_with_a_warning(run: Path, command: Command) -> None:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    last = lines[-1]
    path.write_text(
        "".join([lines[0][:20] + "\n", *lines[1:-1], last.replace("epoch", "epolh", 1)])
    )
    (run / "summary.json").unlink()
    outcome = command("resume", run)
    assert outcome.status == 0, outcome.err
    first = outcome.err.splitlines()[0]
    assert first == f"adautomix: warning: {path}, line 1, is not valid JSON: the line is left out"
    assert len(path.read_text().splitlines()) == len(lines) - 2
    # The scores of the last epoch, whose line was lost, are computed again.
    summary = RunFolder(run).summary()
    assert summary is not None
    assert summary.final["student"].top1 == json.loads(last)["student"]["top1"]
    assert command("report", run, "--out", run / "page.html").err == ""


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_a_damaged_picture_is_named(content: bytes, run: Path, command: Command) -> None:
    path = run / "samples" / "epoch-0001.png"
    path.write_bytes(content)
    line = error_of(command, "report", run)
    assert line.startswith(f"cannot show {path}, which is damaged (")
    assert line.endswith("delete it, and the page does without")
    path.unlink()
    assert command("report", run).status == 0


def test_damaged_predictions_are_named(run: Path, command: Command) -> None:
    path = run / "predictions.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        _ = read_run(run).predictions
    assert str(error.value) == (
        f"{path} does not match its hash: remove it, and `adautomix resume {run}` writes it again"
    )


# --- stopped before the first checkpoint -----------------------------------------------------


class Stop(BaseException):
    """Stands for a kill: nothing that belongs to the program catches it."""


@pytest.fixture
def unsaved(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Return a function that stops a training within a step of the first epoch."""

    def stop_at(step: int) -> Path:
        def die(self: Trainer, batch: Any) -> None:
            if self.step == step:
                raise Stop
            train_step(self, batch)

        train_step = Trainer.train_step
        out = tmp_path / "unsaved"
        words = [str(word) for word in ("train", "--data", photos, *TRAINING, "--out", out)]
        monkeypatch.setattr(Trainer, "train_step", die)
        with pytest.raises(Stop):
            main(words)
        monkeypatch.setattr(Trainer, "train_step", train_step)
        return out

    return stop_at


@pytest.mark.slow
def test_train_starts_a_run_again_that_has_no_checkpoint(
    unsaved: Callable[[int], Path], finished: Path, photos: Path, command: Command
) -> None:
    out = unsaved(2)
    assert (out / "metrics.jsonl").exists()
    line = error_of(command, "resume", out)
    again = f"adautomix train --config {out / 'config.yaml'} --out {out}"
    assert line == f"{out} has no checkpoint yet: start it again with `{again}`"
    assert command(*again.split()[1:]).status == 0
    assert_same_run(out, finished)


@pytest.mark.slow
def test_a_run_that_diverges_at_once_can_be_started_again(
    photos: Path, tmp_path: Path, finished: Path, command: Command
) -> None:
    words = ("train", "--data", photos, *TRAINING, "--out", tmp_path / "run")
    outcome = command(*words, "--lr", "1e30")
    assert outcome.status == 1
    assert outcome.err.rstrip().endswith("nothing was saved, so that the same --out can be used")
    assert command(*words).status == 0
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("name", ["notes.txt", "summary.json", "checkpoints/last/weights"])
def test_nothing_else_is_deleted(
    name: str, unsaved: Callable[[int], Path], photos: Path, command: Command
) -> None:
    out = unsaved(1)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("mine")
    line = error_of(command, "train", "--data", photos, *TRAINING, "--out", out)
    assert "choose another --out" in line or "damaged checkpoint" in line
    assert (out / name).read_text() == "mine"
    assert (out / "metrics.jsonl").exists()


def test_a_folder_with_settings_of_somebody_is_not_taken_for_a_run(
    photos: Path, tmp_path: Path, command: Command
) -> None:
    mine = tmp_path / "config.yaml"
    mine.write_text(f"data: {photos}\nepochs: 1  # mine\n")
    line = error_of(command, "train", "--config", mine, *TRAINING, "--out", tmp_path)
    assert line.startswith(f"{tmp_path} exists: choose another --out")
    assert mine.read_text().endswith("# mine\n")


@pytest.mark.slow
@pytest.mark.parametrize("state", ["empty config", "no predictions", "no checkpoint"])
def test_compare_goes_on_after_any_stop(
    state: str, finished: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    words: tuple[object, ...] = ("compare", "--data", photos, *TRAINING[:-4], "--log-every", 1)
    words += ("--methods", "mixup", "--seeds", 0, "--jobs", 1, "--out", tmp_path / "all")
    out = tmp_path / "all" / "mixup-s0"
    if state == "no predictions":
        shutil.copytree(finished, out)
        edit(out / "config.yaml", out=str(out))
        (out / "predictions.safetensors").unlink()
    else:
        out.mkdir(parents=True)
        shutil.copy(finished / "config.yaml", out)
        edit(out / "config.yaml", out=str(out))
    if state == "empty config":
        (out / "config.yaml").write_text("")
    outcome = command(*words)
    assert outcome.status == 0, outcome.err
    assert_same_run(out, finished)
    assert (out / "predictions.safetensors").exists()
