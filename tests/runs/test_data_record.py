"""A run records its images: they are summarized, never redrawn, and missed if they change."""

import gzip
import io
import json
import os
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, SMALL_NET, Command, write_photo
from PIL import Image
from torch import Tensor

import adautomix
from adautomix.cli import main
from adautomix.data import ImageData, Split, load_data
from adautomix.data.split_record import FILE, read_record, write_record
from adautomix.errors import UsageError
from adautomix.evaluation.load_target import EvalOptions, load_target
from adautomix.runs.folder import RunFolder
from adautomix.training.run import open_run

TRAINING = (*SMALL_NET, "--method", "vanilla", "--epochs", 1, "--batch-size", 4, "--device", "cpu")


def write_tree(root: Path, per_class: int = 6) -> Path:
    """`<class>/<number>.png` without splits, and some things that are no images."""
    for label, name in enumerate(CLASSES):
        for number in range(per_class):
            write_photo(root / name / f"{number}.png", label)
    (root / CLASSES[1] / "notes.txt").write_text("no image")
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A place with a tree of photos, a run on it and what it printed; and a copy of the place."""
    place = tmp_path_factory.mktemp("record") / "place"
    tree = write_tree(place / "pets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "1000")
        errors = io.StringIO()
        with redirect_stderr(errors):
            main(
                [str(word) for word in ("train", "--data", tree, *TRAINING, "--out", place / "run")]
            )
    (place / "stderr").write_text(errors.getvalue())
    return place, shutil.copytree(place, place.with_name("copy"))


@pytest.fixture
def run(trained: tuple[Path, Path]) -> Path:
    """The run, which may be damaged."""
    place, copy = trained
    shutil.rmtree(place)
    shutil.copytree(copy, place)
    return place / "run"


@pytest.fixture
def tree(run: Path) -> Path:
    """The photos of the run, which may be damaged."""
    return run.parent / "pets"


def images_of(split: Split) -> Tensor:
    ((images, _),) = split.read([torch.arange(len(split))])
    return images


def assert_same_splits(data: ImageData, reference: ImageData) -> None:
    assert data.splits().keys() == reference.splits().keys()
    for name, split in data.splits().items():
        assert torch.equal(images_of(split), images_of(reference.splits()[name]))
        assert split.labels.tolist() == reference.splits()[name].labels.tolist()


# --- the summary -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_summary_is_printed_and_stored(run: Path, tree: Path) -> None:
    stored = json.loads((run / "data_summary.json").read_text())
    assert stored["data"] == str(tree)
    assert stored["classes"] == 3
    assert stored["images"] == {"train": 15, "test": 3}
    assert stored["smallest_class"][1] == stored["largest_class"][1] == 5
    assert stored["image_size"] == 16
    assert stored["crop"] == "pad by 2 pixels, flipped"
    assert stored["device"]
    assert len(stored["mean"]) == len(stored["std"]) == 3
    assert stored["notes"] == ["passed over 1 .txt file"]
    assert stored["warnings"] == [
        f"1 class folder without images ignored: {tree / 'empty'}",
        f"3 classes have fewer than 10 test images; {min(CLASSES)!r} has 1",
    ]
    lines = (run.parent / "stderr").read_text().splitlines()
    start = lines.index(f"data: {tree}, 3 classes; images: 15 train, 3 test")
    assert lines[start + 1].startswith("training images per class: 5 (")
    assert lines[start + 2].startswith("input: 16x16, crop pad by 2 pixels, flipped; mean 0.")
    assert lines[start + 3].startswith("device: ")
    assert lines[start + 4] == "note: passed over 1 .txt file"
    assert lines[start + 5].startswith("warning: 1 class folder without images ignored")


def test_identical_files_are_warned_about(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label, name in enumerate(CLASSES):
            write_photo(tmp_path / "set" / split / name / f"{split}.png", label)
    shutil.copy(tmp_path / "set/train/猫/train.png", tmp_path / "set/test/猫/again.png")
    shutil.copy(tmp_path / "set/train/猫/train.png", tmp_path / "set/train/café/wrong.png")
    warnings = load_data(str(tmp_path / "set"), workers=1, progress=False).warnings
    assert warnings[0].startswith("1 image is in train and in test: ")
    assert warnings[0].endswith("again.png")
    assert warnings[1].startswith("1 image is in two classes: ")
    assert "wrong.png" in warnings[1]


def test_classes_without_test_images_are_warned_about(tmp_path: Path) -> None:
    for label, name in enumerate(CLASSES):
        write_photo(tmp_path / "set" / "train" / name / "1.png", label)
    for number in range(10):
        write_photo(tmp_path / "set" / "test" / CLASSES[1] / f"{number}.png", 1)
    warnings = load_data(str(tmp_path / "set"), workers=1, progress=False).warnings
    assert warnings == (f"2 classes have no test image: {CLASSES[0]}, {CLASSES[2]}",)


# --- the record --------------------------------------------------------------------------------


def test_every_file_and_label_is_recorded(run: Path, tree: Path) -> None:
    with gzip.open(run / FILE, "rt", encoding="utf-8") as file:
        facts, *lines = (json.loads(line) for line in file)
    assert facts["root"] == str(tree)
    assert facts["classes"] == list(CLASSES)
    assert {path for path, *_ in lines} == {f"{c}/{k}.png" for c in CLASSES for k in range(6)}
    assert [split for _, _, split, *_ in lines].count("test") == 3
    for path, label, _, size, *_ in lines:
        assert path.startswith(CLASSES[label])
        assert size == (tree / path).stat().st_size


@pytest.mark.slow
def test_an_added_photo_does_not_redraw_the_split(run: Path, tree: Path, command: Command) -> None:
    before = open_run(run, quiet=True).data
    for number in range(20):
        write_photo(tree / CLASSES[0] / f"a{number}.png", 0)
    assert len(load_data(str(tree), workers=1, progress=False).test) > len(before.test)
    assert_same_splits(open_run(run, quiet=True).data, before)
    assert_same_splits(load_target(str(run), EvalOptions({}, device="cpu")).data, before)
    assert command("resume", run).status == 0
    assert command("resume", run, "--verify").status == 0


def test_removed_photos_stop_resume_evaluate_and_predict(
    run: Path, tree: Path, command: Command
) -> None:
    (tree / CLASSES[0] / "0.png").unlink()
    (tree / CLASSES[2] / "1.png").unlink()
    (run / "summary.json").unlink()  # a finished run is not resumed
    for words in (("resume", run), ("evaluate", run), ("predict", run, "--split", "test")):
        outcome = command(*words)
        assert outcome.status == 2
        line = f"{tree / CLASSES[0] / '0.png'} has vanished since the run started (one of 2 such"
        assert line in outcome.err


def test_changed_photos_stop_and_touched_ones_do_not(run: Path, tree: Path) -> None:
    path = tree / CLASSES[0] / "0.png"
    os.utime(path, ns=(0, 0))
    assert RunFolder(run).splits() is not None
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 1] + b"?")
    with pytest.raises(UsageError, match=rf"{path.name} has changed since the run started"):
        RunFolder(run).splits()


def test_a_set_too_large_to_hash_is_compared_by_size_and_time(
    run: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adautomix.data.sources.content.MOST_HASHED", 0)
    record = load_data(str(tree), workers=1, progress=False).record
    assert record is not None
    write_record(record, tmp_path)
    assert read_record(tmp_path) is not None
    os.utime(tree / CLASSES[0] / "0.png", ns=(0, 0))
    with pytest.raises(UsageError, match=r"0\.png has changed"):
        read_record(tmp_path)


def test_a_damaged_record_is_an_error(run: Path) -> None:
    (run / FILE).write_bytes((run / FILE).read_bytes()[:-20])
    with pytest.raises(UsageError, match=rf"{FILE} is damaged .*: train the run again"):
        RunFolder(run).splits()


def test_a_run_of_old_has_no_record(run: Path, tree: Path) -> None:
    before = open_run(run, quiet=True).data
    (run / FILE).unlink()
    assert RunFolder(run).splits() is None
    assert_same_splits(open_run(run, quiet=True).data, before)


def test_the_record_keeps_what_per_class_and_val_left_out(tree: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"workers": 1, "progress": False}
    data = load_data(str(tree), **options, per_class=3, val_fraction=0.4, seed=4)
    assert data.record is not None
    write_record(data.record, tmp_path)
    again = load_data("elsewhere", **options, record=read_record(tmp_path))
    assert_same_splits(again, data)
    assert again.mean == data.mean
    first = (tmp_path / FILE).read_bytes()
    write_record(data.record, tmp_path)
    assert (tmp_path / FILE).read_bytes() == first


def test_arrays_are_recorded_by_row_and_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_data("digits", per_class=20, seed=3, image_size=16)
    assert data.record is not None
    write_record(data.record, tmp_path)
    record = read_record(tmp_path)
    assert record is not None
    assert_same_splits(load_data("digits", image_size=16, record=record), data)
    with pytest.raises(UsageError, match="the images of digits are not files"):
        record.files("test")
    monkeypatch.setattr("torch.Tensor.round", lambda tensor: tensor.floor())
    with pytest.raises(UsageError, match="the images of digits have changed since the run started"):
        load_data("digits", image_size=16, record=record)


# --- evaluation on other images ----------------------------------------------------------------


def test_a_folder_without_splits_is_evaluated_whole(
    run: Path, tmp_path: Path, command: Command
) -> None:
    write_tree(tmp_path / "more", 9)
    shutil.rmtree(tmp_path / "more" / CLASSES[0])  # a class that the new images do not show
    outcome = command("evaluate", run, "--data", tmp_path / "more", "--out", tmp_path / "scores")
    assert outcome.status == 0, outcome.err
    assert f"{run}: 18 test images of more" in outcome.out.replace("\n", " ")
    assert "all of its 18 images are evaluated" in outcome.out.replace("\n", " ")
    target = load_target(str(run), EvalOptions({"data": str(tmp_path / "more"), "workers": 1}))
    assert target.data.classes == CLASSES
    assert target.data.test.labels.tolist() == [1] * 9 + [2] * 9


def test_a_test_folder_alone_is_evaluated(run: Path, tmp_path: Path) -> None:
    for number in range(4):
        write_photo(tmp_path / "new" / "test" / CLASSES[1] / f"{number}.png", 1)
        write_photo(tmp_path / "new" / "test" / CLASSES[2] / f"{number}.png", 2)
    target = load_target(str(run), EvalOptions({"data": str(tmp_path / "new"), "workers": 1}))
    assert target.data.test.labels.tolist() == [1] * 4 + [2] * 4
    with pytest.raises(UsageError, match="test images only: evaluate on it, or add a train split"):
        load_data(str(tmp_path / "new"), workers=1, progress=False)


def test_a_copy_of_the_runs_images_keeps_the_runs_split(
    run: Path, tree: Path, tmp_path: Path
) -> None:
    own = load_target(str(run), EvalOptions({}, device="cpu")).data
    moved = tree.rename(tmp_path / "moved")
    target = load_target(str(run), EvalOptions({"data": str(moved), "workers": 1}, device="cpu"))
    assert_same_splits(target.data, own)


def test_settings_that_would_redraw_the_split_are_refused(run: Path) -> None:
    with pytest.raises(UsageError, match="test_fraction would draw other splits than run trained"):
        load_target(str(run), EvalOptions({"test_fraction": 0.5}))


@pytest.mark.slow
def test_other_pixels_of_the_same_labels_are_another_evaluation(run: Path, tmp_path: Path) -> None:
    prints = set()
    for name in ("one", "two"):
        for label, kind in enumerate(CLASSES):
            write_photo(tmp_path / name / "same" / kind / f"{name}.png", label)
        folder = tmp_path / name / "same"
        target = load_target(str(run), EvalOptions({"data": str(folder), "workers": 1}))
        prints.add(target.fingerprint())
    assert len(prints) == 2


def test_predict_takes_a_recorded_split(run: Path, command: Command) -> None:
    outcome = command("predict", run, "--split", "test", "--json")
    record = RunFolder(run).splits()
    assert record is not None
    assert [row["image"] for row in outcome.json] == record.files("test")
    assert len(outcome.json) == 3
    assert "name image files, folders or a --list; or a split" in command("predict", run).err
    assert (
        "there is no split 'dev': use train, test" in command("predict", run, "--split", "dev").err
    )


# --- data set objects --------------------------------------------------------------------------


class Toys(torch.utils.data.Dataset[Any]):
    classes = ("block", "ball")

    def __init__(self, start: int) -> None:
        self.start = start

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> tuple[Any, int]:
        noise = np.random.default_rng(self.start + row)
        return Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)), row % 2


@pytest.mark.slow
def test_a_run_on_objects_is_resumed_and_evaluated_without_them(tmp_path: Path) -> None:
    config = adautomix.TrainConfig(
        method="vanilla",
        stem="cifar",
        width=0.125,
        epochs=1,
        batch_size=4,
        workers=1,
        device="cpu",
        out=tmp_path / "run",
    )
    result = adautomix.train(config, data=(Toys(0), Toys(50)), quiet=True)
    assert result.summary.data == "python:Toys"
    assert (result.summary.train_images, result.summary.test_images) == (8, 8)
    assert result.summary.classes == ["block", "ball"]
    data = open_run(tmp_path / "run", quiet=True).data
    expected = np.stack([np.asarray(Toys(50)[row][0]) for row in range(8)])
    assert np.array_equal(images_of(data.test).permute(0, 2, 3, 1).numpy(), expected)
    record = adautomix.evaluate(tmp_path / "run", device="cpu")
    assert record.test_images == 8
