"""Reports of runs: reading, grouping, means, charts, tables and the page."""

import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import CHROMIUM, Page, assert_accessible, assert_fits, assert_self_contained
from PIL import Image
from records import epoch_fields, summary_fields, train_fields
from rich.console import Console

from adautomix.errors import UsageError
from adautomix.reporting.comparison import Comparison, compare_runs
from adautomix.reporting.formatting import percent, plus_minus, shorten_list
from adautomix.reporting.groups import group_runs
from adautomix.reporting.page import summary_sentence, write_page
from adautomix.reporting.plots import curves
from adautomix.reporting.statistics import t_interval
from adautomix.reporting.tables import comparison_table, markdown_table
from adautomix.runs.records import read_run, read_runs
from adautomix.runs.schema import TrainRow

SCRIPT = "<script>alert(1)</script>"
# s² = (9 + 1 + 16) / 2 = 13 over three seeds, and t(0.975, 2) = 4.30265 from a printed table.
MEAN_OF_70_72_77 = f"73.00 ±\N{NO-BREAK SPACE}{4.30265 * (13 / 3) ** 0.5:.2f}"


def measures(top1: float) -> dict[str, float]:
    return {"top1": top1, "top5": top1 + 0.1, "nll": 1.25, "ece": 0.0417}


def epoch_row(epoch: int, top1: float) -> dict[str, Any]:
    networks = {"student": measures(top1), "teacher": measures(top1 + 0.02)}
    return epoch_fields(10 * epoch, epoch=epoch, seconds=5.0 * epoch, probe=0.9, **networks)


def train_row(step: int) -> dict[str, Any]:
    return train_fields(step, epoch=step / 10, loss=2.0 / step, seconds=step / 2)


def make_run(
    folder: Path,
    method: str = "adautomix",
    seed: int = 0,
    top1: float = 0.7,
    finished: bool = True,
    classes: tuple[str, ...] = ("cat", "dog"),
    **settings: Any,
) -> Path:
    """A run folder of two epochs whose student ends at `top1` and whose teacher 0.02 above."""
    (folder / "samples").mkdir(parents=True)
    config = {"method": method, "data": "digits", "model": "resnet18", "epochs": 2, "seed": seed}
    config |= {"out": str(folder)} | settings
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [train_row(5), train_row(10), epoch_row(1, top1 / 2), train_row(20), epoch_row(2, top1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (8, 8), "red").save(folder / "samples" / "epoch_002.png")
    if finished:
        summary = summary_fields(
            command=f"adautomix train --method {method}",
            classes=list(classes),
            final={"student": measures(top1), "teacher": measures(top1 + 0.02)},
        )
        same = {name: value for name, value in config.items() if name in summary}
        (folder / "summary.json").write_text(json.dumps(summary | same))
    return folder


def compare(folders: Sequence[Path]) -> Comparison:
    """Return the comparison of some run folders."""
    return compare_runs(read_runs(folders))


def page_of(folders: Sequence[Path], out: Path) -> Page:
    """Write the report of some run folders and read it."""
    return Page(write_page(compare(folders), out))


@pytest.fixture
def compared(tmp_path: Path) -> list[Path]:
    """Three seeds of one method, one of another, and a run still going."""
    tops = (0.70, 0.72, 0.77)
    seeds = [make_run(tmp_path / f"mix-{s}", seed=s, top1=top) for s, top in enumerate(tops)]
    vanilla = make_run(tmp_path / "plain", method="vanilla", top1=0.6)
    going = make_run(tmp_path / "going", method="cutmix", top1=0.5, finished=False, epochs=9)
    return [*seeds, vanilla, going]


# Run folders


def test_read_run_splits_rows_by_kind(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a"))
    assert [row.step for row in run.train_rows] == [5, 10, 20]
    assert [row.epoch for row in run.epoch_rows] == [1, 2]
    assert run.name == "a"
    assert run.finished
    assert run.figure("teacher", "top1") == pytest.approx(0.72)
    assert run.seconds == 12.34
    assert [path.name for path in run.samples] == ["epoch_002.png"]


def test_a_last_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind":"train","step":25,"lo')
    assert [row.step for row in read_run(folder).train_rows] == [5, 10, 20]


def test_steps_trained_again_after_a_resume_replace_the_first(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n".join(json.dumps(train_row(step) | {"loss": 9.0}) for step in (20, 10, 30)))
    rows = read_run(folder).train_rows
    assert [(row.step, row.loss) for row in rows] == [(5, 0.4), (10, 9), (20, 9), (30, 9)]


def test_an_unfinished_run_gives_its_latest_figures(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", top1=0.5, finished=False))
    assert not run.finished
    assert run.figure("student", "top1") == 0.5
    assert run.seconds == 10.0


def test_a_run_that_has_only_begun_can_be_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", finished=False)
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder)
    assert [*run.train_rows, *run.epoch_rows] == []
    assert run.figure("student", "top1") is None
    assert run.seconds is None
    assert "epoch 0 of 2" in page_of([folder], tmp_path / "page.html").text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", None, "is not a run folder: it has no config.yaml"),
        ("config.yaml", "a: [", "is not YAML"),
        ("config.yaml", "- a", "holds no settings"),
        ("summary.json", "{", "is not valid JSON"),
        ("summary.json", "[]", "is not a JSON object"),
    ],
)
def test_damaged_folders_are_named(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    folder = make_run(tmp_path / "a")
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        read_run(folder)
    assert str(folder) in str(error.value)


def test_runs_of_one_name_are_told_apart_and_read_once(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a" / "seed0"), make_run(tmp_path / "b" / "seed0")
    assert [run.name for run in read_runs([first, second, first])] == ["a/seed0", "b/seed0"]


def test_no_runs_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="no run to report"):
        read_runs([])


# Figures


def test_t_interval_by_hand() -> None:
    # s² = (2.25 + 0.25 + 0.25 + 2.25) / 3 = 5 / 3; t(0.975, 3) = 3.18245 from a printed table.
    interval = t_interval([1.0, 2.0, 3.0, 4.0])
    assert interval.mean == 2.5
    assert interval.n == 4
    assert interval.half_width == pytest.approx(3.18245 * (5 / 3) ** 0.5 / 2, rel=1e-5)
    assert plus_minus(interval, percent) == "250.00 ±\N{NO-BREAK SPACE}205.43"


def test_one_seed_has_no_interval() -> None:
    interval = t_interval([0.5])
    assert interval.half_width is None
    assert plus_minus(interval, percent) == "50.00"
    assert plus_minus(None, percent) == "–"


def test_a_seed_run_twice_counts_once(tmp_path: Path) -> None:
    tops = ((0, 0.6), (0, 0.8), (1, 0.9))
    folders = [make_run(tmp_path / str(i), seed=s, top1=t) for i, (s, t) in enumerate(tops)]
    (group,) = group_runs(read_runs(folders))
    interval = group.interval(lambda run: run.figure("student", "top1"))
    assert group.seeds == 2
    assert interval is not None
    assert interval.mean == pytest.approx((0.7 + 0.9) / 2)
    # t(0.975, 1) = 12.7062; s of two values is their distance over √2.
    assert interval.half_width == pytest.approx(12.7062 * 0.2 / 2, rel=1e-5)


def test_only_seeds_of_one_another_are_averaged(tmp_path: Path) -> None:
    betas = (0.3, 0.3, 0.5)
    folders = [
        make_run(tmp_path / str(i), seed=i, adautomix={"beta": beta})
        for i, beta in enumerate(betas)
    ]
    found = group_runs(read_runs(folders))
    assert [(group.label, len(group.runs)) for group in found] == [
        ("adautomix (adautomix.beta 0.3)", 2),
        ("adautomix (adautomix.beta 0.5)", 1),
    ]


def test_unfinished_runs_enter_no_mean(tmp_path: Path) -> None:
    done = make_run(tmp_path / "a", seed=0, top1=0.7)
    going = make_run(tmp_path / "b", seed=1, top1=0.1, finished=False)
    (group,) = group_runs(read_runs([done, going]))
    interval = group.interval(lambda run: run.figure("student", "top1"))
    assert interval is not None
    assert (interval.mean, interval.n) == (0.7, 1)


def test_listing_and_sentence(compared: list[Path]) -> None:
    assert shorten_list("a") == "a"
    assert shorten_list("abc") == "a, b and c"
    assert shorten_list("abcdef", 3) == "a, b and 4 more"
    assert summary_sentence(read_runs(compared)) == (
        "5 runs compare adautomix, vanilla and cutmix on digits with resnet18, 2 and 9 epochs, "
        "seeds 0, 1 and 2; 1 of them is unfinished."
    )


# Curves


def test_curves_draw_student_dashed_and_teacher_solid(tmp_path: Path) -> None:
    svg = curves(compare_runs([read_run(make_run(tmp_path / "a"))]))[0].svg
    lines = re.findall(r'<path d="[^"]*" clip-path[^>]*style="([^"]*--series-1[^"]*)"', svg)
    assert len(lines) == 2
    assert ["stroke-dasharray" in style for style in lines] == [False, True]


def test_curves_put_points_where_the_figures_are(tmp_path: Path) -> None:
    """Student accuracy 35 % then 70 %, teacher 37 % then 72 %: heights in the same proportions."""
    svg = curves(compare_runs([read_run(make_run(tmp_path / "a", top1=0.7))]))[0].svg
    paths = re.findall(r'<path d="([^"]*)" clip-path[^>]*--series-1', svg)
    teacher, student = ([float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)] for path in paths)
    rise = student[0] - student[1]
    assert rise > 0
    assert teacher[0] - teacher[1] == pytest.approx(rise, rel=1e-3)
    assert student[0] - teacher[0] == pytest.approx(rise * 2 / 35, rel=1e-3)


def test_every_curve_has_its_numbers(tmp_path: Path) -> None:
    charts = {
        chart.slug: chart for chart in curves(compare_runs([read_run(make_run(tmp_path / "a"))]))
    }
    assert set(charts) == {"accuracy", "training-accuracy", "loss", "schedule"}
    assert charts["accuracy"].rows == [("a", "1", "37.00", "35.00"), ("a", "2", "72.00", "70.00")]
    assert charts["loss"].rows == [("a", "0.5", "0.4"), ("a", "1", "0.2"), ("a", "2", "0.1")]
    assert charts["schedule"].rows[0] == ("a", "0.5", "0.1", "0.999")


@pytest.mark.slow
def test_numbers_are_thinned_over_all_runs(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a"))
    long = replace(run, train_rows=[TrainRow(**train_row(step)) for step in range(1, 2000)])
    loss = curves(compare_runs([long, replace(long, name="b")]))[2]
    assert len(loss.rows) == 60
    assert Counter(row[0] for row in loss.rows) == {"a": 30, "b": 30}
    assert loss.rows[-1][1] == "199.9"


@pytest.mark.slow
def test_curves_are_deterministic_and_share_no_id(compared: list[Path]) -> None:
    comparison = compare(compared)
    charts = curves(comparison)
    assert [chart.svg for chart in curves(comparison)] == [chart.svg for chart in charts]
    ids = [name for chart in charts for name in re.findall(r' id="([^"]+)"', chart.svg)]
    assert len(ids) == len(set(ids))
    for chart in charts:
        used = re.findall(r'(?:url\(|href=")#([^")]+)', chart.svg)
        assert used
        assert set(used) <= set(ids)


def test_curves_follow_the_page_in_ink_and_color(tmp_path: Path) -> None:
    for chart in curves(compare_runs([read_run(make_run(tmp_path / "a"))])):
        assert "currentColor" in chart.svg
        assert "var(--series-1, #" in chart.svg
        assert "#000000" not in chart.svg
        assert "#123456" not in chart.svg


def test_names_that_matplotlib_would_read_otherwise(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "_$\\bad$"), make_run(tmp_path / ("b" * 80))]
    svg = curves(compare(folders))[0].svg
    assert "$\\bad$" in svg
    assert "b" * 24 + "…" + "b" * 24 in svg


# The terminal's table


def test_comparison_table_groups_seeds(compared: list[Path]) -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(comparison_table(compare(compared)))
    text = console.export_text()
    assert MEAN_OF_70_72_77 in text
    assert "mean of 3 seeds" in text
    assert "going (unfinished)" in text
    assert "mean of 1" not in text


# The page


@pytest.mark.slow
def test_page_escapes_what_runs_bring(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "<script>alert(1)<" / "script>",
        method=SCRIPT,
        classes=(SCRIPT, "b"),
        note={SCRIPT: SCRIPT},
    )
    other = make_run(tmp_path / "b" / "script>", method="vanilla")
    page = page_of([folder, other], tmp_path / "page.html")
    assert page.all("script") == []
    assert page.text.count(SCRIPT) >= 5
    assert "<script>alert(1)</script>" in {run.name for run in read_runs([folder, other])}


@pytest.mark.slow
def test_page_asks_nothing_of_the_network(compared: list[Path], tmp_path: Path) -> None:
    assert_self_contained(page_of(compared, tmp_path / "page.html"))


@pytest.mark.slow
def test_page_is_accessible(compared: list[Path], tmp_path: Path) -> None:
    page = page_of(compared, tmp_path / "page.html")
    assert_accessible(page)
    assert page.all("img")
    assert len(page.all("svg")) == 6


def cells_of(page: Page, run: str) -> list[str]:
    """The written cells of a run's row in the table of results."""
    _, _, results = page.html.partition('aria-label="Results, one row per run"')
    row = re.search(rf'<tr><th scope="row">{run}\b.*?</tr>', results, re.DOTALL)
    assert row is not None
    return [re.sub(r"<[^>]+>", " ", cell).strip() for cell in re.findall(r"<td.*?</td>", row[0])]


@pytest.mark.slow
def test_page_prints_the_final_figures(compared: list[Path], tmp_path: Path) -> None:
    page = page_of(compared, tmp_path / "page.html")
    student, teacher = ["72.00", "82.00", "1.250", "4.17"], ["74.00", "84.00", "1.250", "4.17"]
    assert cells_of(page, "mix-1") == [
        *("adautomix", "1", *student, *teacher),
        *("80.00 teacher, epoch 1", "12.3", "512"),
    ]
    assert "chosen on the\nval images" in page.text
    assert "optimistic" not in page.text.partition("Equal epochs")[0]


@pytest.mark.slow
def test_page_prints_means_over_seeds(compared: list[Path], tmp_path: Path) -> None:
    page = page_of(compared, tmp_path / "page.html")
    assert MEAN_OF_70_72_77 in page.text
    assert page.text.count("no interval") == 1
    assert page.text.count("none finished") == 1


def test_page_without_seeds_has_no_table_of_means(tmp_path: Path) -> None:
    page = page_of([make_run(tmp_path / "a")], tmp_path / "page.html")
    assert "Means over seeds" not in page.text
    assert "Settings that differ" not in page.text


@pytest.mark.slow
def test_page_labels_unfinished_runs(compared: list[Path], tmp_path: Path) -> None:
    page = page_of(compared, tmp_path / "page.html")
    assert "unfinished: epoch 2 of 9" in page.text
    cells = cells_of(page, "going")
    assert cells[2] == "50.00"
    assert cells[-3] == cells[-1] == "–"


@pytest.mark.slow
def test_page_tells_settings_apart(compared: list[Path], tmp_path: Path) -> None:
    page = page_of(compared, tmp_path / "page.html")
    first, rest = page.html.split('aria-label="Settings that differ"')[1].split("</table>", 1)
    names = re.findall(r'<th scope="row">(.*?)</th>', first)
    assert sorted(names) == ["epochs", "method", "seed"]
    assert re.findall(r'<th scope="row">(.*?)</th>', rest.split("</table>")[0])[0] == "data"


def test_page_refuses_a_folder_as_its_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name the HTML file"):
        page_of([make_run(tmp_path / "a")], tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to render with")
def test_page_never_scrolls_sideways(compared: list[Path], tmp_path: Path) -> None:
    long = make_run(tmp_path / ("a-very-long-run-name" * 6), method="m" * 70, note="n" * 300)
    page_of([*compared, long], tmp_path / "page.html")
    assert_fits(tmp_path / "page.html", tmp_path)


def test_markdown_table_has_a_row_a_method_with_several_seeds(tmp_path: Path) -> None:
    tops = (0.70, 0.72, 0.77)
    seeds = [make_run(tmp_path / f"s{i}", seed=i, top1=top) for i, top in enumerate(tops)]
    single = make_run(tmp_path / "a|b", method="vanilla", top1=0.5)
    lines = markdown_table(compare([*seeds, single])).splitlines()
    assert all(len(re.split(r"(?<!\\)\|", line)[1:-1]) == 9 for line in lines)
    assert [line.split(" | ")[1] for line in lines[2:]] == [
        *("mean of 3 seeds", "at equal time", "best by test"),
        *(r"a\|b", "at equal time", "best by test"),
    ]
    assert lines[2].startswith("| adautomix | mean of 3 seeds |")
    assert MEAN_OF_70_72_77 in lines[2]
    assert lines[5].startswith(r"| vanilla | a\|b | 0 | 50.00 | 52.00 |")


def test_a_page_of_many_runs_is_small(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"s{seed}", seed=seed) for seed in range(24)]
    sizes = []
    for count in (4, 24):
        page = write_page(compare_runs(read_runs(runs[:count])), tmp_path / "page.html")
        text = page.read_text(encoding="utf-8")
        sizes.append(len(text))
        assert ('colspan="24">resnet18<' in text) == (count == 24)
    # Each further run adds so little that 200 runs stay below 3 MB.
    assert (sizes[1] - sizes[0]) / 20 < 9000
