"""The command predict and `am.load(run).predict`: folders, lists, damaged files, CSV, views."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, SMALL_NET, Command, write_photo
from PIL import Image

import adautomix as am
from adautomix.cli import main
from adautomix.data.picture_sources import find_pictures, read_picture_list
from adautomix.data.preparation import recorded_preparation
from adautomix.errors import UsageError
from adautomix.runs.predictor import Predictor
from adautomix.runs.temperature import fitted_temperature
from adautomix.text import csv_cell


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "run"
    args = ("train", "--data", photos, *SMALL_NET, "--epochs", 1, "--batch-size", 12)
    main([str(word) for word in (*args, "--method", "vanilla", "--out", folder, "--json")])
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with two levels, a damaged file, and names that spreadsheets would run."""
    root = tmp_path / "album"
    for name in ("=1+2.png", "b.png", "trip/c.png"):
        write_photo(root / name, 0)
    (root / "trip" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (root / "notes.txt").write_text("not an image")
    return root


# --- which files ------------------------------------------------------------------------------


def test_folders_and_patterns_are_expanded(pictures: Path) -> None:
    names = [str(path.relative_to(pictures)) for path in find_pictures([pictures])]
    assert names == ["=1+2.png", "b.png", "trip/broken.jpg", "trip/c.png"]
    assert find_pictures([pictures / "**" / "c.png"]) == [pictures / "trip" / "c.png"]
    assert [path.name for path in find_pictures([pictures / "t*"])] == ["broken.jpg", "c.png"]
    assert len(find_pictures([pictures / "**"])) == 4
    assert find_pictures([pictures / "no.png"]) == [pictures / "no.png"]
    with pytest.raises(UsageError, match=r"no file matches .*\*\.gif"):
        find_pictures([pictures / "*.gif"])
    (pictures / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no image file"):
        find_pictures([pictures / "empty"])


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    write_photo(tmp_path / "a[1].png", 0)
    assert find_pictures([tmp_path / "a[1].png"]) == [tmp_path / "a[1].png"]


def test_a_list_names_files_beside_it(pictures: Path) -> None:
    names = pictures / "names.txt"
    names.write_text(f"b.png\n\n{pictures / 'trip' / 'c.png'}\nabsent.png\n")
    found = read_picture_list(names)
    assert found == [pictures / "b.png", pictures / "trip" / "c.png", Path("absent.png")]
    names.write_text("\n")
    with pytest.raises(UsageError, match="is empty: write the path of one image file per line"):
        read_picture_list(names)


# --- the command ------------------------------------------------------------------------------


def test_a_damaged_file_stops_nothing(
    run: Path, pictures: Path, tmp_path: Path, command: Command
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("album/absent.png\n")
    table = tmp_path / "new" / "out.csv"
    outcome = command("predict", run, pictures, "--list", names, "--csv", table, "--json")
    assert outcome.status == 1
    assert [line.split(": ")[0] for line in outcome.err.splitlines()] == ["adautomix"] * 3
    assert "2 of 5 images could not be read" in outcome.err
    problems = [entry.get("problem", "") for entry in outcome.json]
    assert [bool(problem) for problem in problems] == [False, False, True, False, True]
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["problem"]) for row in rows] == [bool(problem) for problem in problems]
    assert list(rows[0]) == [
        *("image", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"),
        "problem",
    ]
    for row, entry in zip(rows, outcome.json, strict=True):
        if not entry.get("problem"):
            name, probability = next(iter(entry["classes"].items()))
            assert row["class"] == csv_cell(name)
            assert float(row["probability"]) == pytest.approx(probability, abs=1e-6)


def test_no_cell_is_a_formula() -> None:
    for text in ("=1+2.jpg", "+1", "-1", "@sum", "\t=1", "\r=1"):
        assert csv_cell(text).startswith("'")
    assert csv_cell("photo 1.jpg") == "photo 1.jpg"
    assert csv_cell("a\nb") == "a\\nb"


def test_text_has_a_line_per_image(run: Path, pictures: Path, command: Command) -> None:
    outcome = command("predict", run, pictures / "b.png", pictures / "trip" / "c.png", "--top", 1)
    assert outcome.status == 0
    title, *lines = outcome.out.splitlines()
    assert title.split() == ["image", "teacher", "predicts"]
    assert [line.split()[0] for line in lines] == [
        str(pictures / "b.png"),
        str(pictures / "trip" / "c.png"),
    ]
    assert all(line.endswith("%") for line in lines)


def test_wrong_usage(run: Path, tmp_path: Path, pictures: Path, command: Command) -> None:
    for args, text in {
        (): "name image files, folders or a --list; or a split with --split",
        (pictures, "--split", "test"): "name image files, folders or a --list",
        (pictures, "--csv", tmp_path): "is a folder: name the CSV file to write",
        ("--list", tmp_path / "no.txt"): "cannot read",
    }.items():
        outcome = command("predict", run, *args)
        assert (outcome.status, outcome.out) == (2, "")
        assert text in outcome.err


# --- the same in Python -----------------------------------------------------------------------


def test_batches_of_any_size_predict_the_same(run: Path, photos: Path) -> None:
    trained = am.load(run)
    whole = trained.predict(photos / "test")
    assert whole.shape == (9, len(CLASSES))
    parts = trained.predict([photos / "test"], batch_size=2)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
    files = find_pictures([photos / "test"])
    named = list(trained.predict_files(files, batch_size=4))
    assert [one.file for one in named] == files
    with pytest.raises(UsageError, match="cannot read absent"):
        trained.predict([*files, "absent.png"])


def test_flip_averages_an_image_and_its_mirror(run: Path, photos: Path, tmp_path: Path) -> None:
    trained = am.load(run)
    original = photos / "test" / CLASSES[0] / "0.png"
    with Image.open(original) as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirror.png")
    both = trained.predict([original, tmp_path / "mirror.png"])
    assert not torch.allclose(both[0], both[1])
    flipped = trained.predict([original, tmp_path / "mirror.png"], tta="flip")
    torch.testing.assert_close(flipped, both.mean(0).expand(2, -1), atol=1e-6, rtol=1e-5)
    with pytest.raises(UsageError, match="unknown test-time augmentation 'crop': none or flip"):
        trained.predict(original, tta="crop")  # type: ignore[arg-type]


def test_a_fitted_temperature_calibrates(run: Path, photos: Path, command: Command) -> None:
    trained = am.load(run)
    raw = trained.predict(photos / "test")
    assert trained.temperature("teacher") is None
    assert command("evaluate", run, "--suites", "calibration", "--json").status == 0
    record = json.loads((run / "evaluation.json").read_text())
    fitted = record["suites"]["calibration"]["networks"]["teacher"]["temperature"]
    try:
        assert trained.temperature("teacher") == fitted
        expected = (raw.log() / fitted).softmax(dim=1)
        torch.testing.assert_close(trained.predict(photos / "test"), expected)
        torch.testing.assert_close(trained.predict(photos / "test", calibrated=False), raw)
        outcome = command("predict", run, photos / "test", "--top", 1)
        assert outcome.err == f"Probabilities are calibrated with temperature {fitted:.3f}.\n"
        assert command("predict", run, photos / "test", "--uncalibrated").err == ""
    finally:
        (run / "evaluation.json").unlink()


@pytest.mark.parametrize("value", ["1.5", "true", "-1", "0", "NaN", "[]", '"2"', "Infinity"])
def test_only_a_positive_temperature_of_these_weights_counts(value: str, tmp_path: Path) -> None:
    suites = f'{{"calibration": {{"networks": {{"teacher": {{"temperature": {value}}}}}}}}}'
    (tmp_path / "evaluation.json").write_text(f'{{"source": {{"step": 4}}, "suites": {suites}}}')
    assert fitted_temperature(tmp_path, "teacher", 4) == (1.5 if value == "1.5" else None)
    assert fitted_temperature(tmp_path, "teacher", 5) is None
    assert fitted_temperature(tmp_path, "student", 4) is None
    (tmp_path / "evaluation.json").write_text("{")
    assert fitted_temperature(tmp_path, "teacher", 4) is None


def test_few_pictures_are_held_at_a_time(run: Path, photos: Path) -> None:
    """Files are named one by one, so that the reader can never be more than a batch ahead."""
    trained = am.load(run)
    predictor: Predictor = trained.predictor("student", 3, "none", True)
    assert predictor.preparation == recorded_preparation(trained.data_info)
    named = 0

    def names() -> Iterator[Path]:
        nonlocal named
        for path in find_pictures([photos / "train"]):
            named += 1
            yield path

    ahead = []
    for done, _ in enumerate(predictor.files(names()), 1):
        ahead.append(named - done)
    assert done == named == 24
    assert max(ahead) <= 2 * 3 + 1
