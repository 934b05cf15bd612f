"""Sweeps: named variants beside one another, as methods are; and what accuracy costs in time."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL_NET, Command
from rich.console import Console
from test_reporting import MEAN_OF_70_72_77, make_run

from adautomix.config import list_packaged, make_config
from adautomix.config.sweeps import read_sweep
from adautomix.errors import UsageError
from adautomix.methods.adautomix import AdAutoMixSettings, generator_weights
from adautomix.reporting.figures import groups
from adautomix.reporting.plots import efficiency_chart
from adautomix.reporting.significance import significance
from adautomix.reporting.tables import comparison_table
from adautomix.runs.records import read_runs

SWEEPS = list(list_packaged("sweeps"))
TWO_VARIANTS = """
common: {method: mixup, epochs: 2}
variants:
  weak: {mixup: {alpha: 0.2}}
  strong: {mixup: {alpha: 2.0}}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


def refused(name: object) -> str:
    """The one line that a sweep is refused with."""
    with pytest.raises(UsageError) as error:
        read_sweep(str(name))
    assert "\n" not in str(error.value)
    return str(error.value)


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SWEEPS)
def test_every_packaged_sweep_is_valid(name: str) -> None:
    variants = read_sweep(name)
    assert len(variants) > 1
    on_progress = []
    for label, settings in variants.items():
        config = make_config(settings)
        assert config.method == "adautomix"
        assert config.label == label
        on_progress.append(config.model_copy(update={"label": None}).resolved())
    assert all(on_progress.count(one) == 1 for one in on_progress), "two variants are the same"
    assert len(list_packaged("sweeps")[name]) > 20


def test_the_ablations_of_the_paper_are_there() -> None:
    n = [make_config(values).method_settings for values in read_sweep("adautomix/n").values()]
    assert [settings.model_dump()["n"] for settings in n] == [2, 3, 4]
    for name, setting, default in (
        ("alpha", "alpha", 0.5),
        ("beta", "beta", 0.3),
        ("ratio", "beta_parameter", 1.0),
    ):
        variants = read_sweep(f"adautomix/{name}").values()
        assert default in [values["adautomix"][setting] for values in variants]


def test_terms_are_added_one_at_a_time() -> None:
    """Of the generator first nothing but the student, at last equation 16 with β = 0.3."""
    on_progress = []
    for values in read_sweep("adautomix/terms").values():
        settings = make_config(values).method_settings
        assert isinstance(settings, AdAutoMixSettings)
        weights = generator_weights(settings, adversarial=True)
        on_progress.append((settings.mixup_term, settings.clean_term, weights))
    bare = {"student": -1.0}
    cosine = pytest.approx({**bare, "cosine": -0.7})
    every = pytest.approx({**bare, "cosine": -0.7, "teacher": 0.3})
    assert on_progress == [
        (False, False, bare),
        (True, False, bare),
        (True, True, bare),
        (True, True, cosine),
        (True, True, every),
    ]


def test_the_variant_wins_over_the_common_settings(tmp_path: Path) -> None:
    text = "common: {lr: 0.3, teacher: {buffers: copy}}\nvariants: {a: {lr: 0.2}, b-2: {}}\n"
    assert read_sweep(str(written(tmp_path, text))) == {
        "a": {"lr": 0.2, "teacher": {"buffers": "copy"}, "label": "a"},
        "b-2": {"lr": 0.3, "teacher": {"buffers": "copy"}, "label": "b-2"},
    }


def test_an_unknown_sweep_is_told_with_the_nearest() -> None:
    assert refused("adautomix/m") == "unknown sweep 'adautomix/m': did you mean 'adautomix/n'?"
    assert refused("qqqqqq") == "unknown sweep 'qqqqqq': `adautomix sweeps` lists them all"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("common: {lr: 0.1}", ", variants: field required; write `variants:` and below it"),
        ("variants: {}", ", variants: dictionary should have at least 1 item"),
        ("variants: {a: 3}", ", variants.a: input should be a valid dictionary"),
        ("variants: {a/b: {}}", ", variants.a/b: string should match pattern"),
        ("variants: {0.5: {}}", ", variants.0.5: input should be a valid string"),
        ("variants: {a: {}}\nvariant: {}", ", variant: extra inputs are not permitted"),
        ("just words", " holds no settings"),
    ],
)
def test_files_that_are_no_sweep(text: str, line: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    assert refused(file).startswith(f"{file}{line}")


def test_a_wrong_setting_is_told_before_anything_is_trained(
    tmp_path: Path, command: Command
) -> None:
    file = written(tmp_path, "variants: {a: {lr: 0.1}, b: {epohcs: 1}}")
    outcome = command("compare", "--sweep", file, "--out", tmp_path / "runs")
    assert outcome.status == 2
    assert outcome.err == "adautomix: unknown setting epohcs: did you mean epochs?\n"
    assert not (tmp_path / "runs").exists()


def test_methods_and_a_sweep_exclude_each_other(command: Command) -> None:
    outcome = command("compare", "--sweep", "adautomix/n", "--methods", "vanilla")
    assert outcome.status == 2
    assert outcome.err == (
        "adautomix: --methods and --sweep both say what to compare: leave out one\n"
    )


def test_the_packaged_sweeps_are_listed(command: Command) -> None:
    rows = command("sweeps", "--json").json
    assert [row["sweep"] for row in rows] == SWEEPS
    (one,) = (row for row in rows if row["sweep"] == "adautomix/n")
    assert one["variants"] == "N=2, N=3, N=4"
    assert "adautomix/n" in command("sweeps").out


# --- run and shown ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `test_two_variants_are_compared` trains; a second command finds the runs there."""
    return tmp_path_factory.mktemp("swept")


def test_two_variants_are_compared(swept: Path, command: Command) -> None:
    file = written(swept, TWO_VARIANTS)
    data = ("--data", "digits", "--per-class", 2, "--image-size", 8, "--batch-size", 10)
    words = ("compare", "--sweep", file, "--seeds", "0,1", "--jobs", 1, "--epochs", 1)
    outcome = command(*words, *data, *SMALL_NET, "--out", swept / "runs", "--json")
    assert outcome.status == 0, outcome.err
    names = ["weak-s0", "weak-s1", "strong-s0", "strong-s1"]
    folders = [swept / "runs" / name for name in names]
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in folders]
    assert [(c["label"], c["mixup"]["alpha"], c["seed"]) for c in configs] == [
        ("weak", 0.2, 0),
        ("weak", 0.2, 1),
        ("strong", 2.0, 0),
        ("strong", 2.0, 1),
    ]
    assert all(config["epochs"] == 2 for config in configs), "the sweep wins over the flags"
    finals = [json.loads((folder / "summary.json").read_text())["final"] for folder in folders]
    assert [run["final"] for run in outcome.json] == finals
    assert finals[0] != finals[2]

    again = command(*words, *data, *SMALL_NET, "--out", swept / "runs", "--baseline", "strong")
    assert again.status == 0, again.err
    rows = [line for line in again.out.splitlines() if "-s0" in line]
    assert [row.split()[1] for row in rows] == ["weak", "strong"]
    assert again.out.count("- weak against strong, ") == 2
    page = (swept / "runs" / "report.html").read_text()
    assert '<tr><th scope="row">weak</th><td>strong</td><td>student</td>' in page
    assert 'id="efficiency-title"' in page

    unknown = command(*words, *data, "--out", swept / "runs", "--baseline", "vanilla")
    assert unknown.err == "adautomix: --baseline: 'vanilla' is not among weak, strong\n"


def make_variant(folder: Path, label: str | None, seed: int, **settings: Any) -> Path:
    name = f"{label}-s{seed}-{settings.get('epochs', '')}"
    return make_run(folder / name, seed=seed, label=label, **settings)


def test_variants_are_called_by_their_names(tmp_path: Path) -> None:
    runs = [
        make_variant(tmp_path, label, seed, adautomix={"n": n, "beta": n / 10})
        for label, n in (("N=2", 2), ("N=3", 3))
        for seed in (0, 1)
    ]
    found = groups(read_runs(runs))
    assert [(group.label, len(group.runs)) for group in found] == [("N=2", 2), ("N=3", 2)]
    (verdict,) = (one for one in significance(read_runs(runs)) if one.network == "student")
    assert (verdict.method, verdict.baseline, verdict.apart) == ("N=3", "N=2", ())
    (verdict,) = (one for one in significance(read_runs(runs), "N=3") if one.network == "student")
    assert (verdict.method, verdict.baseline) == ("N=2", "N=3")


def test_one_name_for_two_settings_is_told_apart(tmp_path: Path) -> None:
    runs = [make_variant(tmp_path, "N=2", 0, epochs=epochs) for epochs in (1, 9)]
    runs.append(make_variant(tmp_path, None, 0))
    labels = [group.label for group in groups(read_runs(runs))]
    assert labels == ["N=2 (epochs 1)", "N=2 (epochs 9)", "adautomix"]


def test_a_run_from_before_a_setting_is_a_seed_of_those_that_leave_it(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "old", seed=0), make_variant(tmp_path, None, 1, init=None)]
    (group,) = groups(read_runs(runs))
    assert group.seeds == 2


def test_the_table_has_a_mean_for_each_variant(tmp_path: Path) -> None:
    runs = [
        make_variant(tmp_path, label, seed, top1=top1, note=label)
        for label, tops in (("a", (0.70, 0.72, 0.77)), ("b", (0.6, 0.6, 0.6)))
        for seed, top1 in enumerate(tops)
    ]
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(comparison_table(read_runs(runs)))
    text = console.export_text()
    assert MEAN_OF_70_72_77 in text
    assert re.search(r"│ a +│ a-s0", text)
    assert re.search(r"│ b +│ b-s0", text)


# --- accuracy against time -------------------------------------------------------------------


def timed(run: Path, seconds: float) -> Path:
    """The run with its two epochs over after `seconds`."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[-1]["seconds"] = seconds
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_a_point_a_method_by_hand(tmp_path: Path) -> None:
    """Epochs of 5, 6 and 10 s: mean 7, s² = (4 + 1 + 9) / 2 = 7, t(0.975, 2) = 4.30265."""
    seeds = [
        timed(make_run(tmp_path / f"mix-{seed}", seed=seed, top1=top1), 2 * seconds)
        for seed, (top1, seconds) in enumerate(zip((0.70, 0.72, 0.77), (5, 6, 10), strict=True))
    ]
    plain = timed(make_run(tmp_path / "plain", method="vanilla", top1=0.73), 7)
    open_ = make_run(tmp_path / "open", method="cutmix", finished=False)
    (chart,) = efficiency_chart(read_runs([open_, *seeds, plain]))
    space = "\N{NO-BREAK SPACE}"
    seconds = f"7.00 ±{space}{4.30265 * (7 / 3) ** 0.5:.2f}"
    teacher = MEAN_OF_70_72_77.replace("73.00", "75.00")
    assert chart.columns[:2] == ("method", "seconds an epoch")
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


def test_one_method_has_no_such_chart(tmp_path: Path) -> None:
    done, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)
    open_ = make_run(tmp_path / "c", method="vanilla", finished=False)
    assert efficiency_chart(read_runs([done, other, open_])) == []
