"""Variants of a sweep in tables and reports, and the chart of accuracy over time per epoch."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_reporting import MEAN_OF_70_72_77, compare, make_run

from adautomix.reporting.comparison import compare_runs
from adautomix.reporting.groups import group_runs
from adautomix.reporting.plots import efficiency_chart
from adautomix.reporting.tables import comparison_table
from adautomix.runs.records import read_runs


def make_variant(folder: Path, label: str | None, seed: int, **settings: Any) -> Path:
    name = f"{label}-s{seed}-{settings.get('epochs', '')}"
    return make_run(folder / name, seed=seed, label=label, **settings)


def test_variants_are_named_by_their_labels(tmp_path: Path) -> None:
    runs = [
        make_variant(tmp_path, label, seed, adautomix={"n": n, "beta": n / 10})
        for label, n in (("N=2", 2), ("N=3", 3))
        for seed in (0, 1)
    ]
    found = group_runs(read_runs(runs))
    assert [(group.label, len(group.runs)) for group in found] == [("N=2", 2), ("N=3", 2)]
    test, *_ = compare(runs).tests
    assert (test.method, test.baseline, test.other_settings) == ("N=3", "N=2", ())
    test, *_ = compare_runs(read_runs(runs), "N=3").tests
    assert (test.method, test.baseline) == ("N=2", "N=3")


def test_one_label_with_two_settings_gives_two_groups(tmp_path: Path) -> None:
    runs = [make_variant(tmp_path, "N=2", 0, epochs=epochs) for epochs in (1, 9)]
    runs.append(make_variant(tmp_path, None, 0))
    labels = [group.label for group in group_runs(read_runs(runs))]
    assert labels == ["N=2 (epochs 1)", "N=2 (epochs 9)", "adautomix"]


def test_a_run_older_than_a_setting_joins_the_runs_that_have_its_default(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "old", seed=0), make_variant(tmp_path, None, 1, init=None)]
    (group,) = group_runs(read_runs(runs))
    assert group.seeds == 2


def test_the_table_has_a_mean_for_each_variant(tmp_path: Path) -> None:
    runs = [
        make_variant(tmp_path, label, seed, top1=top1, note=label)
        for label, tops in (("a", (0.70, 0.72, 0.77)), ("b", (0.6, 0.6, 0.6)))
        for seed, top1 in enumerate(tops)
    ]
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(comparison_table(compare(runs)))
    text = console.export_text()
    assert MEAN_OF_70_72_77 in text
    assert re.search(r"│ a +│ a-s0", text)
    assert re.search(r"│ b +│ b-s0", text)


# --- accuracy against time -------------------------------------------------------------------


def timed(run: Path, seconds: float) -> Path:
    """Return the run after making its two epochs take `seconds` in total."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[-1]["seconds"] = seconds
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_one_point_per_method_by_hand(tmp_path: Path) -> None:
    """Epochs take 5, 6 and 10 s: mean 7, s² = (4 + 1 + 9) / 2 = 7, t(0.975, 2) = 4.30265."""
    seeds = [
        timed(make_run(tmp_path / f"mix-{seed}", seed=seed, top1=top1), 2 * seconds)
        for seed, (top1, seconds) in enumerate(zip((0.70, 0.72, 0.77), (5, 6, 10), strict=True))
    ]
    plain = timed(make_run(tmp_path / "plain", method="vanilla", top1=0.73), 7)
    open_ = make_run(tmp_path / "open", method="cutmix", finished=False)
    (chart,) = efficiency_chart(compare([open_, *seeds, plain]))
    space = "\N{NO-BREAK SPACE}"
    seconds = f"7.00 ±{space}{4.30265 * (7 / 3) ** 0.5:.2f}"
    teacher = MEAN_OF_70_72_77.replace("73.00", "75.00")
    assert chart.columns[:2] == ("method", "seconds per epoch")
    assert chart.rows == [
        ("adautomix", seconds, teacher, MEAN_OF_70_72_77),
        ("vanilla", "3.50", "75.00", "73.00"),
    ]
    # Colors 2 and 3 of the page: the unfinished method keeps the first. Teacher before student.
    places = {
        color: [
            (float(x), float(y))
            for x, y in re.findall(
                rf'<use [^>]*x="(\S+)" y="(\S+)"[^>]*--series-{color}', chart.svg
            )
        ]
        for color in (1, 2, 3)
    }
    assert places[1] == []
    mix, vanilla = places[2][:2], places[3][:2]
    assert [y for _, y in mix] == pytest.approx([y for _, y in vanilla]), "equal means"
    assert mix[0][1] < mix[1][1], "the teacher is the better one"
    assert vanilla[0][0] < mix[0][0], "an epoch of vanilla is the shorter one"


def test_one_method_has_no_efficiency_chart(tmp_path: Path) -> None:
    done, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)
    open_ = make_run(tmp_path / "c", method="vanilla", finished=False)
    assert efficiency_chart(compare([done, other, open_])) == []
