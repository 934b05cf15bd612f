"""Findings: from run folders to rows, and from rows to the page."""

from pathlib import Path

import findings
import mask_spread
import pytest
import yaml
from test_reporting import compare, make_run

from adautomix.bench.rows import read
from adautomix.bench.workload import Workload
from adautomix.errors import UsageError

NBSP = "\N{NO-BREAK SPACE}"


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three seeds of plain training and of Mixup, which is better by exactly 2 points."""
    return [
        make_run(tmp_path / f"{method}-s{seed}", method=method, seed=seed, top1=top)
        for method, top in (("vanilla", 0.5), ("mixup", 0.52))
        for seed in range(3)
    ]


def collected(runs: list[Path], rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["collect", *runs, "--work", "toy", "--trained-at", "abc123", "--rows", rows]
    monkeypatch.setattr("sys.argv", ["findings.py", *map(str, words)])
    findings.main()


def test_runs_become_a_page(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, page = tmp_path / "results", tmp_path / "findings.md"
    collected(runs, results / "findings.jsonl", monkeypatch)
    (row,) = read(results / "findings.jsonl")
    assert (row["work"], row["commit"], row["kind"]) == ("toy", "abc123", "comparison")
    plain, mixup = row["figures"]
    assert (plain["variant"], plain["seeds"], plain["differences"]) == ("vanilla", [0, 1, 2], {})
    change = mixup["differences"]["student top1"]
    assert change == {"mean": pytest.approx(0.02), "half_width": pytest.approx(0, abs=1e-9)}
    described = {"toy": {"title": "Toy work", "text": "Ten images.\n"}}
    text = yaml.safe_dump({"decided": "Mixing pays.", "works": described})
    (results / "findings.yaml").write_text(text)
    lines = findings.write(results, page).read_text().splitlines()
    assert "## Toy work" in lines
    (better,) = (line for line in lines if line.startswith("| mixup, equal epochs"))
    cells = [cell.strip() for cell in better.strip("|").split("|")]
    assert cells[1] == f"**+2.00{NBSP}±{NBSP}0.00**"
    assert cells[2] == f"+0.000{NBSP}±{NBSP}0.000"
    assert any("commit abc123" in line for line in lines)


def test_a_work_without_a_description_is_named(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected(runs, tmp_path / "findings.jsonl", monkeypatch)
    (tmp_path / "findings.yaml").write_text("decided: nothing\nworks: {}\n")
    with pytest.raises(UsageError, match=r"findings\.yaml does not describe toy: add it"):
        findings.write(tmp_path, tmp_path / "page.md")


def test_unfinished_runs_give_no_row(tmp_path: Path) -> None:
    run = make_run(tmp_path / "going", finished=False)
    with pytest.raises(UsageError, match="no finished run to collect"):
        findings.collect(compare([run]))


@pytest.mark.slow
def test_spread_of_masks_by_width_and_first_weights(tmp_path: Path) -> None:
    values = {"model": "resnet18", "stem": "cifar", "batch_size": 8}
    data = Workload(values, ["adautomix"], classes=5, size=16).images()
    rows = mask_spread.measure(values, data, [0.125], steps=4, every=2)
    assert [(row["initialization"], row["step"]) for row in rows] == [
        (init, step) for init in ("released", "scaled") for step in (1, 2, 4)
    ]
    released, scaled = (
        [row["spread"] for row in rows if row["initialization"] == init]
        for init in ("released", "scaled")
    )
    assert max(released) < 0.001
    assert min(scaled) > 0.005
    picture = mask_spread.draw(rows, tmp_path / "spread.svg").read_text()
    assert "width 0.125, scaled" in picture
