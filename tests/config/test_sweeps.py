"""Sweeps: their files, the packaged ones, and a comparison of variants."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import SMALL_NET, Command

from adautomix.config import list_packaged, make_config
from adautomix.config.sweeps import read_sweep
from adautomix.errors import UsageError
from adautomix.methods.adautomix import AdAutoMixSettings, generator_weights

SWEEPS = list(list_packaged("sweeps"))
TWO_VARIANTS = """
common: {method: mixup, epochs: 2}
variants:
  weak: {mixup: {alpha: 0.2}}
  strong: {mixup: {alpha: 2.0}}
"""


def write_sweep(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


def error_line(name: object) -> str:
    """Return the one-line error that reading the sweep ends with."""
    with pytest.raises(UsageError) as error:
        read_sweep(str(name))
    assert "\n" not in str(error.value)
    return str(error.value)


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SWEEPS)
def test_every_packaged_sweep_is_valid(name: str) -> None:
    variants = read_sweep(name)
    assert len(variants) > 1
    resolved = []
    for label, settings in variants.items():
        config = make_config(settings)
        if name.startswith("adautomix/"):
            assert config.method == ("vanilla" if label == "plain" else "adautomix")
        assert config.label == label
        resolved.append(config.model_copy(update={"label": None}).resolved())
    assert all(resolved.count(one) == 1 for one in resolved), "two variants are the same"
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
    """The generator starts with the student's loss alone and ends with equation 16, β = 0.3."""
    terms = []
    for values in read_sweep("adautomix/terms").values():
        settings = make_config(values).method_settings
        assert isinstance(settings, AdAutoMixSettings)
        weights = generator_weights(settings, adversarial=True)
        terms.append((settings.mixup_term, settings.clean_term, weights))
    bare = {"student": -1.0}
    cosine = pytest.approx({**bare, "cosine": -0.7})
    every = pytest.approx({**bare, "cosine": -0.7, "teacher": 0.3})
    assert terms == [
        (False, False, bare),
        (True, False, bare),
        (True, True, bare),
        (True, True, cosine),
        (True, True, every),
    ]


def test_a_variant_overrides_the_common_settings(tmp_path: Path) -> None:
    text = "common: {lr: 0.3, teacher: {buffers: copy}}\nvariants: {a: {lr: 0.2}, b-2: {}}\n"
    assert read_sweep(str(write_sweep(tmp_path, text))) == {
        "a": {"lr": 0.2, "teacher": {"buffers": "copy"}, "label": "a"},
        "b-2": {"lr": 0.3, "teacher": {"buffers": "copy"}, "label": "b-2"},
    }


def test_an_unknown_sweep_suggests_the_nearest() -> None:
    assert error_line("adautomix/m") == "unknown sweep 'adautomix/m': did you mean 'adautomix/n'?"
    assert error_line("qqqqqq") == "unknown sweep 'qqqqqq': `adautomix sweeps` lists them all"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("common: {lr: 0.1}", ", variants: field required; write `variants:` and below it"),
        ("variants: {}", ", variants: dictionary should have at least 1 item"),
        ("variants: {a: 3}", ", variants.a: input should be a valid dictionary"),
        ("variants: {a/b: {}}", ", variants.a/b: string should match pattern"),
        ("variants: {0.5: {}}", ", variants.0.5: input should be a valid string"),
        ("variants: {a: {}}\nvariant: {}", ", variant: extra inputs are not permitted"),
        ("just text", " holds no settings"),
    ],
)
def test_files_that_are_not_sweeps(text: str, line: str, tmp_path: Path) -> None:
    file = write_sweep(tmp_path, text)
    assert error_line(file).startswith(f"{file}{line}")


def test_a_wrong_setting_is_reported_before_anything_is_trained(
    tmp_path: Path, command: Command
) -> None:
    file = write_sweep(tmp_path, "variants: {a: {lr: 0.1}, b: {epohcs: 1}}")
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


# --- comparing -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `test_two_variants_are_compared`; its second command finds the runs there."""
    return tmp_path_factory.mktemp("swept")


@pytest.mark.slow
def test_two_variants_are_compared(swept: Path, command: Command) -> None:
    file = write_sweep(swept, TWO_VARIANTS)
    data = ("--data", "digits", "--per-class", 2, "--image-size", 8, "--batch-size", 10)
    args = ("compare", "--sweep", file, "--seeds", "0,1", "--jobs", 1, "--epochs", 1)
    outcome = command(*args, *data, *SMALL_NET, "--out", swept / "runs", "--json")
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
    assert all(config["epochs"] == 2 for config in configs), "the sweep overrides the flags"
    finals = [json.loads((folder / "summary.json").read_text())["final"] for folder in folders]
    assert [run["final"] for run in outcome.json] == finals
    assert finals[0] != finals[2]

    again = command(*args, *data, *SMALL_NET, "--out", swept / "runs", "--baseline", "strong")
    assert again.status == 0, again.err
    rows = [line for line in again.out.splitlines() if "-s0" in line]
    assert [row.split()[1] for row in rows] == ["weak", "strong"]
    assert again.out.count("- weak vs. strong, ") == 6, "two networks, three metrics"
    page = (swept / "runs" / "report.html").read_text()
    assert '<tr><th scope="row">weak</th><td>strong</td><td>student</td>' in page
    assert 'id="efficiency-title"' in page

    unknown = command(*args, *data, "--out", swept / "runs", "--baseline", "vanilla")
    assert unknown.err == "adautomix: --baseline: 'vanilla' is not among weak, strong\n"
