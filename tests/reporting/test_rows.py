"""Comparisons as files of rows, the rows committed in docs/results, and sources of a report."""

import json
from pathlib import Path

import pytest
from conftest import Command
from pages import Page, assert_accessible, assert_self_contained
from test_reporting import compare, make_run
from test_significance import add_predictions, make_runs, write_epochs

from adautomix.errors import UsageError
from adautomix.reporting.overview import settings_rows
from adautomix.reporting.page import write_page
from adautomix.reporting.rows import read_rows, write_rows
from adautomix.reporting.tables import markdown_table, significance_lines

RESULTS = Path(__file__).parents[2] / "docs" / "results"
RESULTS_PAGE = RESULTS.with_suffix(".md").read_text(encoding="utf-8")
COMMITTED = ["cifar100-compare", "cifar100", "digits"]
RECORDS = sorted(RESULTS.glob("*-evaluation.json"))


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two seeds of a fast and of a slow method with predictions, and an unfinished run."""
    fast, slow = make_runs(tmp_path, (0.5, 0.6)), make_runs(tmp_path, (0.8, 0.7), "mixup")
    for run in fast:
        write_epochs(run, (5.0, 0.4), (10.0, 0.6))
    for run in slow:
        write_epochs(run, (8.0, 0.3), (20.0, 0.9))
    for run in (*fast, *slow):
        add_predictions(run, [1, 0, 1, int(run in slow)] * 5)
    return [*fast, *slow, make_run(tmp_path / "going", method="cutmix", finished=False)]


def test_rows_give_the_same_tables_and_tests(folders: list[Path], tmp_path: Path) -> None:
    comparison = compare(folders[:-1])
    write_rows(comparison, tmp_path / "rows.jsonl")
    again = read_rows(tmp_path / "rows.jsonl")
    assert again.source == tmp_path / "rows.jsonl"
    assert markdown_table(again) == markdown_table(comparison)
    assert significance_lines(again) == significance_lines(comparison)
    assert any("Bootstrap" in line for line in significance_lines(again))
    assert (again.snapshots, again.equal_time) == (comparison.snapshots, comparison.equal_time)
    assert again.summaries == comparison.summaries
    differing = settings_rows(again.runs)["differing"]
    assert differing == settings_rows(comparison.runs)["differing"]


def test_rows_of_rows_are_the_same_file(folders: list[Path], tmp_path: Path) -> None:
    write_rows(compare(folders), tmp_path / "a.jsonl")
    write_rows(read_rows(tmp_path / "a.jsonl"), tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()


def test_rows_are_values_that_people_can_read(folders: list[Path], tmp_path: Path) -> None:
    write_rows(compare(folders), tmp_path / "rows.jsonl")
    first, *rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert first["baseline"] == "vanilla"
    assert first["equal_time"] == {"fastest": "vanilla", "limits": {"0": 10.0, "1": 10.0}}
    runs = [row for row in rows if row["kind"] == "run"]
    assert [row["run"] for row in runs] == ["vanilla-s0", "vanilla-s1", "mixup-s0", "mixup-s1"]
    assert "out" not in runs[0]["config"], "a path of this machine"
    slow = runs[2]
    assert slow["snapshots"]["equal_time"]["epochs"] == {"student": 1, "teacher": 1}
    assert slow["snapshots"]["equal_time"]["scores"]["student"]["top1"] == 0.3
    assert slow["snapshots"]["best"]["scores"]["student"]["top1"] == 0.9
    assert [epoch["seconds"] for epoch in slow["epochs"]] == [8.0, 20.0]
    student, teacher, *others = rows[4:]
    assert [row["test"]["metric"] for row in others] == ["nll", "nll", "ece", "ece"]
    assert (student["test"]["network"], teacher["test"]["network"]) == ("student", "teacher")
    assert student["interval"]["mean"] == pytest.approx(0.2)
    # t(0.975, 1) = 12.7062; s of two values is their distance over √2.
    assert student["interval"]["half_width"] == pytest.approx(12.7062 * 0.2 / 2, rel=1e-5)
    assert student["sentence"].startswith("mixup vs. vanilla, student: no significant difference")


def test_another_baseline_is_tested_from_the_rows(folders: list[Path], tmp_path: Path) -> None:
    write_rows(compare(folders), tmp_path / "rows.jsonl")
    student, *_ = read_rows(tmp_path / "rows.jsonl", "mixup").tests
    assert (student.method, student.baseline) == ("vanilla", "mixup")
    assert student.differences == pytest.approx((-0.3, -0.1))
    assert student.bootstrap is None
    with pytest.raises(UsageError, match="'mixip' is not among"):
        read_rows(tmp_path / "rows.jsonl", "mixip")


@pytest.mark.slow
def test_a_page_from_rows_says_what_is_missing(folders: list[Path], tmp_path: Path) -> None:
    write_rows(compare(folders), tmp_path / "rows.jsonl")
    page = Page(write_page(read_rows(tmp_path / "rows.jsonl"), tmp_path / "page.html"))
    assert_self_contained(page)
    assert_accessible(page)
    assert "This page was written from a file of rows." in page.text
    assert "no accuracy curves" not in page.text
    assert len(page.all("svg")) == 4, "accuracy, training accuracy, time and efficiency"
    assert page.all("img") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a file of rows"),
        ("{", "line 1: Invalid JSON"),
        ('{"kind":"comparison"}', "line 1, comparison.baseline: Field required"),
        ('{"kind":"comparison","baseline":null,"equal_time":null}\n{"kind":"x"}', "line 2: "),
        ('{"kind":"run","run":"a"}', "line 1, run.config: Field required"),
    ],
)
def test_a_damaged_file_of_rows_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        read_rows(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"cannot read .*absent.jsonl"):
        read_rows(tmp_path / "absent.jsonl")


# --- the command -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMITTED)
def test_a_page_is_written_from_committed_rows(name: str, tmp_path: Path, command: Command) -> None:
    page = tmp_path / "page.html"
    outcome = command("report", RESULTS / f"{name}.jsonl", "--markdown", "--out", page)
    assert outcome.status == 0, outcome.err
    written = Page(page)
    assert_self_contained(written)
    assert_accessible(written)
    assert "no accuracy curves" in written.text, "these runs were older than recorded epochs"
    results = [line for line in outcome.out.splitlines() if line.startswith(("|", "- "))]
    assert len(results) > 3


def test_the_results_page_shows_what_the_rows_say(tmp_path: Path, command: Command) -> None:
    rows = RESULTS / "cifar100-compare.jsonl"
    outcome = command("report", rows, "--markdown", "--out", tmp_path / "page.html")
    tests = [line for line in outcome.out.splitlines() if " vs. vanilla, " in line]
    assert len(tests) == 16
    assert all(line in RESULTS_PAGE for line in tests)
    cells = [line for line in outcome.out.splitlines() if line.startswith("|")]
    assert len(cells) == 2 + 9 * 3
    assert all(line in RESULTS_PAGE for line in cells)


@pytest.mark.slow
def test_a_page_is_written_from_committed_evaluations(tmp_path: Path, command: Command) -> None:
    alone, together = tmp_path / "alone.html", tmp_path / "together.html"
    assert len(RECORDS) == 4
    outcome = command("report", *RECORDS, "--out", alone)
    assert outcome.status == 0, outcome.err
    rows = RESULTS / "cifar100-compare.jsonl"
    outcome = command("report", rows, *RECORDS, "--out", together)
    assert outcome.status == 0, outcome.err
    for page in map(Page, (alone, together)):
        assert_self_contained(page)
        assert_accessible(page)
        assert {"accuracy", "attack", "maps"} <= {tag.get("id") for tag in page.all("h2")}
        assert page.text.count("18.00") >= 1, "the linear probe of AdAutoMix's student"
    assert "The pictures are only in the folders" in Page(alone).text
    assert "Means over seeds" in Page(together).text


def test_sources_that_do_not_go_together_are_refused(
    folders: list[Path], tmp_path: Path, command: Command
) -> None:
    rows = tmp_path / "rows.jsonl"
    write_rows(compare(folders), rows)
    outcome = command("report", rows, folders[0])
    assert (outcome.status, outcome.out) == (2, "")
    assert f"{rows} cannot be combined with other runs" in outcome.err
    outcome = command("report", RECORDS[0], "--markdown", "--out", tmp_path / "p.html")
    assert "--markdown and --rows need runs" in outcome.err
    (tmp_path / "x.json").write_text("{}")
    outcome = command("report", tmp_path / "x.json")
    assert "x.json is not the evaluation.json of `adautomix evaluate`" in outcome.err
