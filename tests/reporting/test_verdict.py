"""The plain sentences about results, and the part of a page about classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pages import assert_accessible, assert_self_contained
from PIL import Image
from test_reporting import compare, make_run, page_of

from adautomix.class_results import ClassResults, class_results
from adautomix.data.dataset import InMemory
from adautomix.pictures.wrong_photos import write_wrong_photos
from adautomix.reporting.class_charts import OTHER, class_bars, confusion_chart, matrix_of
from adautomix.reporting.formatting import MAP, shown_metrics
from adautomix.reporting.verdict import (
    all_lines,
    best_network,
    cautions,
    class_lines,
    network_sentence,
    percent_of,
    plain_sentence,
    worse_than_plain,
)
from adautomix.runs.folder import RunFolder

NAMES = ("rose", "tulip", "daisy")


def predicted(counts: dict[tuple[int, int], int], names: tuple[str, ...] = NAMES) -> ClassResults:
    """Results with so many images per (label, prediction)."""
    pairs = [pair for pair, n in counts.items() for _ in range(n)]
    labels, top = torch.tensor(pairs).T
    return class_results(3 * torch.nn.functional.one_hot(top, len(names)).float(), labels, names)


FLOWERS = predicted({(0, 0): 37, (0, 1): 3, (1, 1): 5, (1, 0): 3})


def test_the_plain_sentence() -> None:
    assert plain_sentence(FLOWERS) == (
        "Right on 42 of 48 test photos (88 %, 95 % interval 75 to 94 %); weakest class: tulip, "
        "5 of 8."
    )
    assert plain_sentence(predicted({(0, 0): 4, (1, 1): 4})).endswith("no class has a wrong photo.")


@pytest.mark.parametrize(
    ("correct", "images", "text"),
    [(42, 48, "88"), (48, 48, "100"), (0, 48, "0"), (599, 600, "99.8"), (9999, 10000, "99.99")],
)
def test_a_percentage_is_100_only_if_all_are_right(correct: int, images: int, text: str) -> None:
    assert percent_of(correct, images) == text


def test_the_sentence_about_several_labels() -> None:
    logits = torch.tensor([[3.0, -3, -3], [-3, 3, -3], [2, 1, -3], [1, 2, -3]])
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]])
    assert plain_sentence(class_results(logits, labels, NAMES)) == (
        "Mean average precision 91.7 % over the 2 classes that occur; the most likely label is "
        "right on 3 of 4 test photos (75 %, 95 % interval 30 to 95 %); weakest class: tulip, "
        "average precision 83.3 %."
    )


def test_which_network_answers() -> None:
    worse = predicted({(0, 0): 10, (0, 1): 30, (1, 1): 8})
    assert network_sentence({"network": FLOWERS}) == ""
    assert best_network({"student": FLOWERS, "teacher": FLOWERS}) == "teacher"
    assert "right on 18" in network_sentence({"student": worse, "teacher": FLOWERS})
    lagging = network_sentence({"student": FLOWERS, "teacher": worse})
    assert "is right on 18; in a short run the average lags behind" in lagging
    assert "--network student" in lagging
    first, second, *_ = all_lines({"student": FLOWERS, "teacher": worse})
    assert (first, second) == (plain_sentence(FLOWERS), lagging)


def test_cautions_about_a_small_test_set() -> None:
    wide, few, absent = cautions(FLOWERS)
    assert wide.startswith("48 test photos say little: on new photos like these, between 75 and 94")
    assert few == "Of the 3 classes, 1 has fewer than 10 test photos: their order says little."
    assert absent == "The test photos show nothing about classes without any: daisy."
    assert cautions(predicted({(k, k): 400 for k in range(3)})) == []


def test_weak_classes_and_confusions_are_named() -> None:
    assert class_lines(FLOWERS) == [
        "Weakest classes: tulip 5 of 8, rose 37 of 40.",
        "Most often confused: rose as tulip (3), tulip as rose (3).",
    ]


def test_a_method_that_is_worse_than_plain_training(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / f"{name}-{seed}", method=name, seed=seed, top1=top1 + seed / 1000)
        for name, top1 in (("vanilla", 0.7), ("mixup", 0.6), ("cutmix", 0.8))
        for seed in (0, 1)
    ]
    comparison = compare(folders)
    (line,) = worse_than_plain(comparison)
    assert line.startswith("mixup is worse than vanilla, plain training, here: -10.00 points")
    assert "try twice the --epochs" in line
    page = page_of(folders, tmp_path / "page.html")
    assert line in page.text
    first = page.text.index("cutmix: 82.05")  # the best method comes first
    assert first < page.text.index("vanilla: 72.05") < page.text.index("mixup: 62.05")


def test_a_large_matrix_keeps_the_confused_classes() -> None:
    names = tuple(f"class {k}" for k in range(30))
    counts = {(k, k): 5 for k in range(30)} | {(3, 7): 4, (7, 3): 2, (3, 20): 1}
    matrix = matrix_of(predicted(counts, names), limit=2)
    assert matrix.names == ["class 3", "class 7", OTHER]
    assert matrix.counts == [[5, 4, 1], [2, 5, 0]]
    small = matrix_of(FLOWERS)
    assert small.names == list(NAMES)
    assert small.counts == [[37, 3, 0], [3, 5, 0], [0, 0, 0]]


def run_with_results(folder: Path, results: ClassResults, **settings: Any) -> Path:
    """A finished run of the digits with these results per class for both networks."""
    make_run(folder, **settings)
    pixels = torch.randint(256, (results.images, 8, 8, 3)).to(torch.uint8)
    rows = torch.arange(results.images)
    split = InMemory(pixels, rows, torch.zeros(results.images, dtype=torch.int64))
    drawn = write_wrong_photos(results, split, folder / "wrong", "teacher")
    run = RunFolder(folder)
    summary = run.summary()
    assert summary is not None
    found = {"student": results, "teacher": drawn}
    run.write_summary(summary.model_copy(update={"results": found}))
    return folder


def test_the_page_of_a_run_starts_with_the_verdict(tmp_path: Path) -> None:
    names = ("<script>", "tulip", "daisy")
    results = predicted({(0, 0): 37, (0, 1): 3, (1, 1): 5, (1, 0): 3}, names)
    folder = run_with_results(tmp_path / "a", results, classes=names)
    page = page_of([folder], tmp_path / "page.html")
    assert_accessible(page)
    assert_self_contained(page)
    order = [
        *("Right on 42 of 48 test photos", "48 test photos say little", "Right per class, teacher"),
        *(
            "Most confident wrong photos, teacher",
            "Mixed samples",
            "Balanced accuracy is",
            "Student: the trained network. Teacher",
        ),
    ]
    places = [page.text.index(text, page.text.index("Right on 42")) for text in order]
    assert places == sorted(places)
    assert len(page.all("img")) == 6 + 1 + 6  # wrong photos, mixed samples, and the photos again
    assert "Confusion matrix: a, student" in page.text
    assert "expected calibration error" in page.text


def test_a_page_of_several_runs_shows_the_classes_of_each_method(tmp_path: Path) -> None:
    folders = [
        run_with_results(tmp_path / name, FLOWERS, method=name) for name in ("vanilla", "mixup")
    ]
    page = page_of(folders, tmp_path / "page.html")
    assert_accessible(page)
    assert {f"Classes of {name}, teacher" in page.text for name in ("vanilla", "mixup")} == {True}


def test_pictures_of_wrong_photos(tmp_path: Path) -> None:
    results = predicted({(0, 1): 2, (1, 1): 1})
    pixels = torch.randint(256, (3, 200, 200, 3)).to(torch.uint8)
    split = InMemory(pixels, torch.arange(3), torch.tensor([0, 0, 1]))
    drawn = write_wrong_photos(results, split, tmp_path / "wrong", "student")
    assert [one.picture for one in drawn.wrong] == ["student-01.webp", "student-02.webp"]
    with Image.open(tmp_path / "wrong" / "student-02.webp") as picture:
        assert picture.size == (160, 160)
    right = predicted({(0, 0): 2})
    assert write_wrong_photos(right, split, tmp_path / "none", "student") == right
    assert not (tmp_path / "none").exists()


def test_map_is_a_column_only_where_there_is_one() -> None:
    assert MAP not in shown_metrics([{"top1": 0.5}, None])
    assert shown_metrics([{"top1": 0.5}, {"top1": 0.5, "map": 0.4}])[0] is MAP


@pytest.mark.parametrize("name", ["x\udcffy", "a\u202eb", "a\x1b[31m", "$x^2$", "_hidden"])
def test_charts_hold_any_name(name: str) -> None:
    results = predicted({(0, 1): 2, (1, 1): 1}, (name, "tulip"))
    for chart in (class_bars("bars", "Bars", results), confusion_chart("matrix", "M", results)):
        chart.svg.encode()
        assert "\u202e" not in chart.svg
        assert "\x1b" not in chart.svg
