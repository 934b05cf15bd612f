"""Significance over seeds, the bootstrap over test images, equal training time, best epochs."""

import io
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_NET, Command
from numpy.typing import ArrayLike
from records import epoch_fields
from rich.console import Console
from safetensors.numpy import save_file
from test_reporting import SCRIPT, compare, make_run, measures, page_of

from adautomix.data import load_data
from adautomix.data.dataset import OnDisk
from adautomix.errors import UsageError
from adautomix.metrics import Scores
from adautomix.reporting.comparison import compare_runs
from adautomix.reporting.flat_masks import flat_mask_lines
from adautomix.reporting.plots import time_chart
from adautomix.reporting.significance import PairedTest, pick_baseline, summarize_tests
from adautomix.reporting.statistics import (
    ImageDifferences,
    bootstrap_interval,
    resample_means,
)
from adautomix.reporting.tables import comparison_table, markdown_table, significance_lines
from adautomix.rng import generator_at
from adautomix.runs.records import Run, read_run, read_runs
from adautomix.training.evaluator import Evaluator, fingerprints
from adautomix.training.run import resume

NBSP = "\N{NO-BREAK SPACE}"


def make_runs(
    place: Path, tops: Sequence[float], method: str = "vanilla", **settings: Any
) -> list[Path]:
    """Seeds of one method whose students end at `tops`."""
    return [
        make_run(place / f"{method}-s{seed}", method=method, seed=seed, top1=top, **settings)
        for seed, top in enumerate(tops)
    ]


def student_test(*folders: Path, baseline: str | None = None) -> PairedTest:
    """The only test of a student's accuracy."""
    tests = compare_runs(read_runs(folders), baseline).tests
    (found,) = (one for one in tests if (one.network, one.metric) == ("student", "top1"))
    return found


def add_predictions(run: Path, right: Sequence[int], images: Sequence[int] | None = None) -> None:
    """Of student and teacher, which of the images they got right."""
    names = range(len(right)) if images is None else images
    values = np.array(right, dtype=np.uint8)
    tensors: dict[str, Any] = {"student": values, "teacher": values}
    tensors["images"] = np.array(names, dtype=np.int64)
    save_file(tensors, run / "predictions.safetensors")


def write_epochs(run: Path, *epochs: tuple[float, float | None]) -> Path:
    """Log (seconds, student's top-1) a row; None: an epoch that was not tested."""
    rows = []
    for epoch, (seconds, top1) in enumerate(epochs, 1):
        row = epoch_fields(epoch, epoch=epoch, seconds=seconds)
        networks = ("student", "teacher") if top1 is not None else ()
        rows.append(row | {network: measures(top1 or 0) for network in networks})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


# Seeds


def test_an_interval_over_zero_names_the_seeds_it_takes_by_hand(tmp_path: Path) -> None:
    """Differences of 1, 2 and 6 points: mean 3, s² = (4 + 1 + 9) / 2 = 7.

    Student's t at 0.975 from a printed table, times √(7 / n), for n seeds: 3: 4.30265 → 6.57;
    4: 3.18245 → 4.21; 5: 2.77645 → 3.29; 6: 2.57058 → 2.78, the first below 3.
    """
    runs = make_runs(tmp_path, [0.7] * 3) + make_runs(tmp_path, (0.71, 0.72, 0.76), "mixup")
    test = student_test(*runs)
    assert test.differences == pytest.approx((0.01, 0.02, 0.06))
    assert test.interval is not None
    assert test.interval.half_width == pytest.approx(0.0430265 * (7 / 3) ** 0.5, rel=1e-5)
    assert test.seeds_needed == 3
    assert test.sentence == (
        "mixup vs. vanilla, student: no significant difference "
        f"(+3.00{NBSP}±{NBSP}6.57 points, 3 seeds); "
        "about 3 more seeds would be needed."
    )


@pytest.mark.parametrize(
    ("differences", "conclusion", "needed"),
    [
        ((0.02, 0.02, 0.02), "significantly better", None),
        ((-0.02, -0.02, -0.02), "significantly worse", None),
        ((0.02, 0.021, 0.023), "significantly better", None),
        ((0.0, 0.0, 0.0), "no significant difference", "more than 50 more seeds would be needed"),
        (
            (0.1, -0.1, 0.001),
            "no significant difference",
            "more than 50 more seeds would be needed",
        ),
        # s = 1 and mean 2: 2.4841 with three seeds, 1.5912 with four.
        ((0.01, 0.02, 0.03), "no significant difference", "about 1 more seed would be needed"),
    ],
)
def test_the_conclusion_follows_the_interval_over_seeds(
    tmp_path: Path, differences: Sequence[float], conclusion: str, needed: str | None
) -> None:
    runs = make_runs(tmp_path, [0.5] * 3)
    runs += make_runs(tmp_path, [0.5 + difference for difference in differences], "mixup")
    test = student_test(*runs)
    assert test.conclusion == conclusion
    assert (needed or "points, 3 seeds).") in test.sentence
    assert ("needed" in test.sentence) == (needed is not None)


def test_one_seed_cannot_be_tested(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, [0.70]) + make_runs(tmp_path, [0.75], "mixup")
    test = student_test(*runs)
    assert test.sentence == (
        "mixup vs. vanilla, student: only one common seed, so significance cannot be tested "
        "(+5.00 points)."
    )


def test_nll_and_ece_are_better_where_they_are_lower(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, [0.5] * 3) + make_runs(tmp_path, [0.5] * 3, "mixup")
    for seed, run in enumerate(runs[3:]):
        summary = json.loads((run / "summary.json").read_text())
        summary["final"]["student"] |= {"nll": 1.5 + seed / 100, "ece": 0.0217}
        (run / "summary.json").write_text(json.dumps(summary))
    found = compare(runs)
    told = [one.sentence for one in found.tests if one.conclusion.startswith("significantly")]
    nll, ece = f"+0.260{NBSP}±{NBSP}0.025", f"-2.00{NBSP}±{NBSP}0.00"
    assert told == [
        f"mixup vs. vanilla, student NLL: significantly worse ({nll}, 3 seeds).",
        f"mixup vs. vanilla, student ECE: significantly better ({ece} points, 3 seeds).",
    ]
    summary = (
        f"mixup vs. vanilla over 3 seeds: significantly better in ECE of the student ({ece}); "
        f"significantly worse in NLL of the student ({nll}); no significant difference in 4 of 6 "
        "tests."
    )
    assert summarize_tests(found.tests) == [summary]
    assert significance_lines(found)[0] == f"- {summary}"


def test_seeds_that_decide_nothing_are_said_to(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, [0.5, 0.5]) + make_runs(tmp_path, [0.6, 0.4], "mixup")
    assert summarize_tests(compare(runs).tests) == [
        "mixup vs. vanilla over 2 seeds: no significant difference in accuracy, NLL or ECE."
    ]
    assert summarize_tests(compare([runs[0], runs[2]]).tests) == []


def test_runs_with_flat_masks_are_named(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, [0.5], "adautomix") + make_runs(tmp_path, [0.5])
    rows = [
        epoch_fields(step, epoch=step, parts={"mask_spread": spread})
        for step, spread in enumerate((0.0, 0.009, 0.02), 1)
    ]
    (runs[0] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (line,) = flat_mask_lines(read_runs(runs))
    assert line.startswith(
        "adautomix-s0: masks were flat (mean spread below 0.01) in 2 of 3 epochs"
    )
    assert line in page_of(runs, tmp_path / "page.html").text
    (runs[0] / "metrics.jsonl").write_text(json.dumps(rows[2]) + "\n")
    assert flat_mask_lines(read_runs(runs)) == []


def test_only_common_finished_seeds_are_paired(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, (0.5, 0.6, 0.9)) + make_runs(tmp_path, (0.6, 0.7), "mixup")
    going = make_run(tmp_path / "going", method="mixup", seed=2, top1=0.1, finished=False)
    assert student_test(*runs, going).differences == pytest.approx((0.1, 0.1))
    stranger = make_run(tmp_path / "stranger", method="cutmix", seed=7)
    assert student_test(runs[0], stranger).sentence == (
        "cutmix vs. vanilla, student: no finished runs with the same seed."
    )


# Baselines


def test_the_baseline_is_vanilla_or_the_first_or_the_one_asked_for(tmp_path: Path) -> None:
    assert pick_baseline(["mixup", "vanilla"]) == "vanilla"
    assert pick_baseline(["mixup", "cutmix"]) == "mixup"
    assert pick_baseline(["mixup", "vanilla"], "mixup") == "mixup"
    runs = make_runs(tmp_path, [0.5] * 2) + make_runs(tmp_path, [0.6] * 2, "mixup")
    assert student_test(*runs, baseline="mixup").sentence.startswith("vanilla vs. mixup")
    with pytest.raises(UsageError, match=r"--baseline: 'mixip' is not among vanilla, mixup"):
        compare_runs(read_runs(runs), "mixip")


def test_a_method_is_compared_with_the_baseline_of_its_settings(tmp_path: Path) -> None:
    runs = [
        *make_runs(tmp_path / "short", [0.5] * 2),
        *make_runs(tmp_path / "long", [0.6] * 2, note="long"),
        *make_runs(tmp_path / "long", [0.7] * 2, "mixup", note="long"),
    ]
    test = student_test(*runs)
    assert test.baseline == "vanilla (note long)"
    assert test.differences == pytest.approx((0.1, 0.1))
    without = student_test(*runs[:2], *runs[4:])
    assert without.sentence.endswith("2 seeds); other settings differ too: note.")


def test_settings_of_one_method_are_compared_with_the_first(tmp_path: Path) -> None:
    runs = [
        run
        for every in (1, 2)
        for run in make_runs(
            tmp_path / str(every), [0.5 + every / 10] * 2, "adautomix", adautomix={"every": every}
        )
    ]
    test = student_test(*runs)
    assert test.sentence.startswith(
        "adautomix (adautomix.every 2) vs. adautomix (adautomix.every 1), student: "
        "significantly better"
    )
    assert test.other_settings == ()


def test_nothing_to_compare_has_no_test(tmp_path: Path) -> None:
    assert compare(make_runs(tmp_path, (0.5, 0.6))).tests == ()
    assert significance_lines(compare([make_run(tmp_path / "going", finished=False)])) == []


# Test images


def outcome(differences: ArrayLike, first: int = 0) -> ImageDifferences:
    """Differences on images numbered from `first`."""
    values = np.asarray(differences, dtype=float)
    return np.arange(first, first + len(values)), values


def test_the_bootstrap_has_the_distribution_of_all_draws() -> None:
    """Three images, two seeds: all 27 equally likely draws, written out."""
    one, other = (1.0, 0.0, -1.0), (1.0, 1.0, 0.0)
    exact = Counter(
        round(float(np.mean([one[i] + other[i] for i in params])) / 2, 6)
        for params in itertools.product(range(3), repeat=3)
    )
    drawn = Counter(resample_means([outcome(one), outcome(other)], count=50_000).round(6).tolist())
    assert drawn.keys() == exact.keys()
    for value, times in exact.items():
        assert drawn[value] / 50_000 == pytest.approx(times / 27, abs=0.01)


def test_an_image_that_some_seeds_share_is_drawn_for_all_of_them() -> None:
    """Images 0 and 1 in one seed, 1 and 2 in the other; a draw without any image of one is lost."""
    one, other = {0: 1.0, 1: 0.0}, {1: 1.0, 2: -1.0}
    exact = []
    for params in itertools.product(range(3), repeat=3):
        parts = [[seed[i] for i in params if i in seed] for seed in (one, other)]
        if all(parts):
            exact.append(np.mean([np.mean(part) for part in parts]))
    drawn = resample_means([outcome((1.0, 0.0)), outcome((1.0, -1.0), first=1)], count=50_000)
    assert np.isnan(drawn).mean() == pytest.approx(2 / 27, abs=0.01)
    assert np.nanmean(drawn) == pytest.approx(np.mean(exact), abs=0.01)
    assert np.nanstd(drawn) == pytest.approx(np.std(exact), abs=0.01)


@pytest.mark.parametrize(("apart", "share"), [(0, 1.0), (5000, 0.5)])
def test_the_bootstrap_agrees_with_normal_theory(apart: int, share: float) -> None:
    """Two seeds that differ alike on the same images are one; on other images they are two."""
    generator = generator_at(0, 0, "differences")
    differences = (torch.randint(0, 3, (2000,), generator=generator) - 1).double().numpy()
    seeds = [outcome(differences), outcome(differences, first=apart)]
    low, high = bootstrap_interval(seeds) or (0, 0)
    deviation = (share * differences.var() / 2000) ** 0.5
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.05)
    assert (high + low) / 2 == pytest.approx(differences.mean(), abs=0.1 * deviation)


def test_runs_are_paired_image_by_image(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, [0.5] * 2) + make_runs(tmp_path, [0.75] * 2, "mixup")
    assert student_test(*runs).bootstrap is None
    for run in runs[:2]:
        add_predictions(run, [1, 1, 0, 0] * 50)
    for run in runs[2:]:
        add_predictions(run, [1, 1, 1, 0] * 50)
    low, high = student_test(*runs).bootstrap or (0, 0)
    # A quarter of the images differ by 1: the mean of 200 such has a deviation of √(0.1875 / 200).
    assert low == pytest.approx(0.25 - 1.96 * 0.0306, abs=0.01)
    assert high == pytest.approx(0.25 + 1.96 * 0.0306, abs=0.01)


def test_other_test_images_are_no_pair(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, [0.5]) + make_runs(tmp_path, [0.5], "mixup")
    add_predictions(runs[0], [1, 0])
    add_predictions(runs[1], [1, 0], images=[0, 2])
    assert student_test(*runs).bootstrap is None
    assert any("no bootstrap" in line for line in significance_lines(compare(runs)))
    assert not any("resampled" in line for line in significance_lines(compare(runs)))


def test_damaged_predictions_are_named(tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, [0.5])
    (run / "predictions.safetensors").write_bytes(b"{")
    with pytest.raises(
        UsageError, match=r"predictions\.safetensors is damaged \(.*\): remove it, and"
    ):
        _ = read_run(run).predictions


# Equal time, best epoch


@pytest.fixture
def timed(tmp_path: Path) -> list[Path]:
    """Vanilla ends after 10 and 8 s; the slower mixup is tested at every other epoch."""
    fast, slow = make_runs(tmp_path, (0.6, 0.6)), make_runs(tmp_path, (0.9, 0.8), "mixup")
    write_epochs(fast[0], (5.0, 0.7), (10.0, 0.6))
    write_epochs(fast[1], (4.0, 0.3), (8.0, 0.6))
    write_epochs(slow[0], (4.0, 0.3), (9.0, 0.5), (9.9, None), (10.1, 0.7), (20.0, 0.9))
    write_epochs(slow[1], (4.0, 0.3), (8.0, 0.4), (8.5, 0.6), (12.0, 0.7), (20.0, 0.8))
    return [*fast, *slow]


def test_equal_time_is_when_the_fastest_run_of_the_seed_ended(timed: list[Path]) -> None:
    comparison = compare(timed)
    clock = comparison.equal_time
    assert clock is not None
    assert (clock.fastest, clock.limits) == ("vanilla", {0: 10.0, 1: 8.0})
    reached = [comparison.snapshots[run.name].equal_time for run in comparison.runs]
    assert [one and one.scores["student"].top1 for one in reached] == [0.6, 0.6, 0.5, 0.4]
    assert [one and one.epochs for one in reached[2:]] == [{"student": 2, "teacher": 2}] * 2
    assert [one and one.seconds for one in reached] == [10.0, 8.0, 9.0, 8.0]
    assert student_test(*timed).equal_time_differences == pytest.approx((-0.1, -0.2))
    assert student_test(*timed).differences == pytest.approx((0.3, 0.2))


def test_a_method_that_had_tested_no_epoch_by_then_has_no_figure(tmp_path: Path) -> None:
    (fast,), (slow,) = make_runs(tmp_path, [0.6]), make_runs(tmp_path, [0.9], "mixup")
    write_epochs(fast, (5.0, 0.6))
    write_epochs(slow, (6.0, 0.9))
    assert student_test(fast, slow).equal_time_differences == ()
    page = page_of([fast, slow], tmp_path / "page.html")
    assert "fastest method, vanilla" in page.text


def test_one_method_is_not_timed_against_itself(tmp_path: Path) -> None:
    comparison = compare(make_runs(tmp_path, (0.5, 0.6)))
    assert comparison.equal_time is None
    assert time_chart(comparison) == []


def best_epoch(run: Run) -> int | None:
    row = run.best_row("student")
    return None if row is None else row.epoch


def test_the_best_epoch_is_each_networks_own(tmp_path: Path) -> None:
    (folder,) = make_runs(tmp_path, [0.6])
    run = read_run(write_epochs(folder, (1.0, 0.4), (2.0, 0.7), (3.0, 0.7), (4.0, 0.6)))
    assert best_epoch(run) == 2
    assert run.picked_on == "test"
    rows = [
        row.model_copy(update={"val": {"student": Scores(row.seconds / 10, 1, 1, 0)}})
        for row in run.epoch_rows
    ]
    held_out = replace(run, epoch_rows=rows)
    assert best_epoch(held_out) == 4
    assert held_out.picked_on == "val"


def test_the_chart_over_time_has_a_line_a_method(timed: list[Path]) -> None:
    (chart,) = time_chart(compare(timed))
    assert chart.columns[:2] == ("run", "seconds")
    assert [row for row in chart.rows if row[0] == "vanilla"] == [
        ("vanilla", "4.5", "50.00", "50.00"),
        ("vanilla", "9", "60.00", "60.00"),
    ]
    assert "training time (s)" in chart.svg


# What is shown


def test_tables_show_the_moments(timed: list[Path]) -> None:
    mixup = [line for line in markdown_table(compare(timed)).splitlines() if "±" in line][3:]
    # t(0.975, 1) = 12.7062; s of two values is their distance over √2.
    assert [line.split(" | ")[1::2][:2] for line in mixup] == [
        ["mean of 2 seeds", f"85.00 ±{NBSP}{12.7062 * 10 / 2:.2f}"],
        ["at equal time", f"45.00 ±{NBSP}{12.7062 * 10 / 2:.2f}"],
        ["best by test", f"85.00 ±{NBSP}{12.7062 * 10 / 2:.2f}"],
    ]
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(comparison_table(compare(timed)))
    text = console.export_text()
    assert "evaluated before the run of vanilla with the same seed ended" in text
    assert "chosen on the test images, so these values are optimistic" in " ".join(text.split())


@pytest.mark.slow
def test_the_page_shows_significance_and_equal_time(timed: list[Path], tmp_path: Path) -> None:
    for run in timed:
        add_predictions(run, [1, 0, 1, 1])
    script = make_run(tmp_path / "x", method=SCRIPT, seed=0)
    page = page_of([*timed, script], tmp_path / "page.html")
    runs = read_runs([*timed, script])
    found = compare_runs(runs).tests
    assert [(one.method, one.metric, one.network) for one in found] == [
        (method, metric, network)
        for method in ("mixup", SCRIPT)
        for metric in ("top1", "nll", "ece")
        for network in ("student", "teacher")
    ]
    assert all(test.sentence in page.text for test in found if test.metric == "top1")
    assert all(line in page.text for line in summarize_tests(found))
    assert any(SCRIPT in test.sentence for test in found)
    assert page.all("script") == []
    assert "the test images are resampled" in page.text
    assert "no bootstrap interval" in page.text
    assert "after 9.0 s on average" in page.text
    assert {"significance", "equal-time"} <= {attributes.get("id") for _, attributes in page.tags}
    assert "Test accuracy over training time" in page.text


# Real runs


@pytest.mark.slow
def test_a_comparison_keeps_predictions_and_prints_significance(
    photos: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations: list[int] = []
    evaluate = Evaluator.evaluate

    def noted(self: Evaluator) -> dict[str, Any]:
        evaluations.append(1)
        return evaluate(self)

    monkeypatch.setattr(Evaluator, "evaluate", noted)
    methods = ("--methods", "mixup,vanilla", "--seeds", 0, "--jobs", 1, "--out", tmp_path)
    words = ("compare", "--data", photos, *SMALL_NET, "--epochs", 2, "--batch-size", 6, *methods)
    wrong = command(*words, "--baseline", "mixip")
    assert (wrong.status, evaluations) == (2, [])
    assert wrong.err == "adautomix: --baseline: 'mixip' is not among mixup, vanilla\n"
    outcome = command(*words, "--baseline", "mixup")
    assert outcome.status == 0, outcome.err
    assert len(evaluations) == 4, "each network is tested once an epoch"
    assert "- vanilla vs. mixup, teacher: only one common seed" in outcome.out

    runs = [read_run(tmp_path / f"{method}-s0") for method in ("mixup", "vanilla")]
    kept = [run.predictions or {} for run in runs]
    assert len(set(kept[0]["images"].tolist())) == 9
    assert np.array_equal(kept[0]["images"], kept[1]["images"])
    for run, right in zip(runs, kept, strict=True):
        for network in ("student", "teacher"):
            assert right[network].dtype == np.uint8
            assert right[network].mean() == pytest.approx(run.figure(network, "top1"))

    # A run of before this record gets it when it is resumed.
    file = tmp_path / "mixup-s0" / "predictions.safetensors"
    before = file.read_bytes()
    file.unlink()
    resume(tmp_path / "mixup-s0", quiet=True)
    assert file.read_bytes() == before


def test_an_image_is_known_in_any_place(photos: Path) -> None:
    test = load_data(str(photos), workers=1, progress=False).test
    names = fingerprints(test)
    rows = torch.tensor([5, 0, 8])
    assert names.dtype == torch.int64
    assert torch.equal(fingerprints(test.subset(rows)), names[rows])
    files = load_data(str(photos), workers=1, progress=False, memory_limit=1).test
    assert isinstance(files, OnDisk)
    assert torch.equal(fingerprints(files.subset(rows)), fingerprints(files)[rows])
    assert len(set(fingerprints(files).tolist())) == 9
