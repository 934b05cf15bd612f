"""What a person types by mistake gets one line that names the cause and the remedy."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL_NET, Command
from safetensors.torch import save_file
from torch import nn

from adautomix.bench.steps import time_by_turns
from adautomix.checks.script import load_named
from adautomix.cli.app import as_flag
from adautomix.cli.neighbors import ANSWERS, EQUIVALENTS
from adautomix.config import load_config
from adautomix.config.settings import run_settings
from adautomix.errors import UsageError
from adautomix.evaluation.load_target import check_timm_name, load_weights
from adautomix.pictures.mix_rows import batch_from_files, classes_of_files
from adautomix.reporting.sources import runs_in


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--mixup", 0.8), "choose the method with --method mixup, and its strength with --mixup."),
        (("--vanilla",), "choose the method with --method vanilla"),
        (("--aa", "rand-m9"), "unknown setting aa: write --augment instead"),
        (("--opt", "adamw"), "unknown setting opt: write --optimizer instead"),
        (("--img-size", 224), "unknown setting img_size: write --image-size instead"),
        (("-b", 64), "unknown setting b: write --batch-size instead"),
        (("--batch", 64), "unknown setting batch: write --batch-size instead"),
        (("--num-classes", 5), "unknown setting num_classes: leave it out"),
        (("--epohcs", 5), "unknown setting epohcs: did you mean epochs?"),
    ],
)
def test_options_of_other_tools(args: tuple[object, ...], line: str, command: Command) -> None:
    outcome = command("train", *args)
    assert outcome.status == 2
    assert line in outcome.err
    assert outcome.err.endswith("(`adautomix train --help`)\n")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--epochs", "three"), "--epochs 'three': input should be a valid integer, unable to"),
        (("--mixup.alpha", -1), "--mixup.alpha '-1': input should be greater than 0"),
        (("--label-smoothing", 2), "--label-smoothing '2': input should be less than"),
    ],
)
def test_settings_are_named_as_they_are_typed(
    args: tuple[object, ...], line: str, command: Command
) -> None:
    outcome = command("train", "--method", "mixup", *args)
    assert outcome.status == 2
    assert outcome.err.startswith(f"adautomix: {line}")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("per_class is 0: use at least 1", "--per-class is 0: use at least 1"),
        ("mix.stop = 2: too large", "--mix.stop 2: too large"),
        ("images is a folder", "images is a folder"),
        ("a per_class is 0", "a per_class is 0"),
    ],
)
def test_only_settings_become_flags(text: str, named: str) -> None:
    assert as_flag(text) == named


def test_a_folder_that_cannot_be_written_to(photos: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for name, problem in (("file", "is a file"), ("mine", "holds files that are not of a run")):
        out = tmp_path / name
        outcome = command("train", "--data", photos, *SMALL_NET, "--epochs", 1, "--out", out)
        assert outcome.err.splitlines()[-1] == f"adautomix: {out} {problem}: choose another --out"
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_to_evaluate(command: Command) -> None:
    outcome = command("evaluate", "--pretrained", "--data", "digits")
    assert outcome.status == 2
    assert "a run folder, an exported folder, or a timm model with --pretrained" in outcome.err


def test_torchrun_shows_the_line_as_the_root_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert command("train", "--mix.prob", 3).status == 2
    message = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    assert message == "UsageError: mix.prob = '3': input should be less than or equal to 1"


def test_every_equivalent_is_a_setting() -> None:
    names = {setting.name for setting in run_settings()}
    for theirs, ours in EQUIVALENTS.items():
        assert ours[2:].partition(" ")[0].replace("-", "_") in names | {"model_options.drop_rate"}
        assert theirs not in names
    assert not ANSWERS.keys() & names


def test_settings_can_be_filtered(command: Command) -> None:
    rows = json.loads(command("settings", "label-smoothing", "--json").out)
    assert "label_smoothing" in json.dumps(rows)
    assert len(rows) < 5
    outcome = command("settings", "smothing")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("adautomix: unknown setting smothing: ")


def test_a_misspelled_run_folder(tmp_path: Path, command: Command) -> None:
    (tmp_path / "pets").mkdir()
    for name in ("report", "resume"):
        outcome = command(name, tmp_path / "petz")
        assert outcome.status == 2
        assert (
            f"no run folder {tmp_path / 'petz'}: did you mean {tmp_path / 'pets'}?" in outcome.err
        )
    with pytest.raises(UsageError, match=f"did you mean {tmp_path / 'pets'}"):
        check_timm_name(str(tmp_path / "petz"))
    with pytest.raises(UsageError, match=r"resnet81 is not a run folder.*: did you mean resnet"):
        check_timm_name("resnet81")


def test_weights_of_another_network(tmp_path: Path) -> None:
    save_file({name: torch.zeros(2) for name in "dcba"}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError) as error:
        load_weights(nn.Linear(3, 2), tmp_path / "w.safetensors", "line with 2 classes")
    assert str(error.value) == (
        f"{tmp_path / 'w.safetensors'} does not fit line with 2 classes: it has a [2], b [2], "
        "c [2] … (4 tensors), where the network has bias [2], weight [2, 3] … (2 tensors); name "
        "the network that the file was saved from"
    )
    (tmp_path / "w.pth").write_bytes(b"no safetensors")
    with pytest.raises(UsageError, match="--weights takes a safetensors file"):
        load_weights(nn.Linear(3, 2), tmp_path / "w.pth", "line with 2 classes")


def test_a_script_without_make_loop_is_not_run(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("raise SystemExit('was run')\n")
    with pytest.raises(UsageError, match=r"write `def make_loop\(\):` that.*nothing was run"):
        load_named(str(script), default="make_loop")
    script.write_text("from elsewhere import *\n")
    with pytest.raises(ModuleNotFoundError):
        load_named(str(script), default="make_loop")


def test_a_folder_of_runs(tmp_path: Path) -> None:
    for name in ("b", "a", "unfinished", "other"):
        (tmp_path / name).mkdir()
        if name != "other":
            (tmp_path / name / "config.yaml").touch()
    for name in ("a", "b", "other"):
        (tmp_path / name / "summary.json").touch()
    assert runs_in(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert runs_in(tmp_path / "a") == [tmp_path / "a"]
    assert runs_in(tmp_path / "nowhere") == [tmp_path / "nowhere"]


def test_pictures_are_labeled_by_class(photos: Path) -> None:
    folders = sorted((photos / "train").iterdir())
    files = [folders[0] / "0.png", folders[1] / "0.png", folders[0] / "1.png"]
    assert classes_of_files(files) == [folders[0].name, folders[1].name, folders[0].name]
    assert batch_from_files(files, 16).labels.tolist() == [0, 1, 0]
    assert classes_of_files([folders[0] / "0.png", folders[0] / "1.png"]) == ["0", "1"]


def test_a_single_picture_is_mixed_with_its_mirror_image(photos: Path) -> None:
    file = next((photos / "train").glob("*/0.png"))
    batch = batch_from_files([file], 16)
    assert torch.equal(batch.images[1], batch.images[0].flip(-1))
    assert batch.classes == ["0", "0, mirrored"]


def test_timing_stops_after_the_round_that_is_enough() -> None:
    rounds: list[int] = []
    config = load_config(flags={"method": "vanilla", "device": "cpu"})
    (timing,) = time_by_turns(
        {"one": lambda: lambda: None},
        config,
        steps=9,
        on_progress=rounds.append,
        enough=lambda: len(rounds) == 3,
    )
    assert rounds == [1, 2, 3]
    assert len(timing.seconds) == 3


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("evaluate", "stopped: the same command continues where `adautomix evaluate` stopped"),
        ("preview", "stopped, nothing is unfinished: repeat the command to start again"),
    ],
)
def test_ctrl_c_says_how_to_continue(
    name: str, line: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adautomix.cli.app import cli

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.commands[name], "invoke", interrupted)
    outcome = command(name, "resnet18")
    assert (outcome.status, outcome.err) == (1, f"adautomix: {line}\n")
