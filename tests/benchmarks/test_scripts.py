"""The benchmark scripts: what they run and write, never how long it takes."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import compare_openmixup
import growth
import pytest
import torch
import write_performance
from compare_openmixup import openmixup_makers, side_by_side, time_beside_openmixup
from growth import AXES, draw_growth, time_growth
from memory import held_memory_mib, memory_over_steps, time_epochs

from adautomix.bench import workload
from adautomix.bench.steps import Timing, step_rows
from adautomix.bench.workload import Workload
from adautomix.config import make_config
from adautomix.errors import UsageError

CPU = torch.device("cpu")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NET = {"model": "resnet18", "stem": "cifar", "width": 0.125, "batch_size": 8}
TOY = Workload(NET, ["vanilla", "adautomix"], steps=2, classes=5, size=16)
DIGITS = {"data": "digits", "per_class": 2, "image_size": 16}


def test_growth_in_rows_and_as_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def timed(grown: Workload) -> list[Timing]:
        for config in grown.configs():
            n = getattr(config.method_settings, "n", None)
            asked.append((config.method, config.batch_size, grown.size, n))
        return [Timing(name, 8, [0.25, 0.75]) for name in grown.methods]

    monkeypatch.setattr(growth, "time_steps", timed)
    found = time_growth(TOY, {"batch_size": [4], "image_size": [8], "n": [2]})
    assert asked == [
        ("vanilla", 4, 16, None),
        ("adautomix", 4, 16, 3),
        ("vanilla", 8, 8, None),
        ("adautomix", 8, 8, 3),
        ("adautomix", 8, 16, 2),
    ]
    assert found[-1] == {"axis": "n", "value": 2, "method": "adautomix", "seconds": 0.5}
    assert {row["seconds"] for row in found} == {0.5}
    first, second = (draw_growth(found, tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second
    for words in (*AXES.values(), *TOY.methods):
        assert words in first.decode()


@pytest.mark.slow
def test_memory_and_epochs_of_real_training() -> None:
    asked = replace(TOY, methods=["vanilla"], steps=5)
    memory = memory_over_steps(asked, every=2)
    assert [row["step"] for row in memory] == [1, 2, 4]
    assert all(row["memory_mib"] > 0 for row in memory)
    assert held_memory_mib(CPU) > 0
    epochs = time_epochs(make_config(NET | DIGITS | {"method": "vanilla", "epochs": 2}))
    assert [(row["method"], row["epoch"]) for row in epochs] == [("vanilla", 1), ("vanilla", 2)]


def test_openmixup_joins_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, dict[str, Any]]] = []

    def peer(method: str, **asked: Any) -> workload.Step:
        made.append((method, asked))
        return lambda: None

    monkeypatch.setattr(compare_openmixup, "openmixup_step", peer)
    monkeypatch.setattr(compare_openmixup, "real_step", lambda config, data: lambda: None)
    asked = replace(TOY, values={"batch_size": 8, "device": "cpu"})
    timings = time_beside_openmixup(asked)
    theirs = ["openmixup vanilla", "openmixup adautomix"]
    assert [t.method for t in timings] == ["vanilla", "adautomix", *theirs]
    alike = {"batch_size": 8, "classes": 5, "size": 16, "device": CPU}
    assert made == [("vanilla", alike), ("adautomix", alike)]
    for pair in side_by_side(timings):
        assert pair["times_ours"] == pair["library_seconds"] / pair["seconds"]
    for other in ({"width": 0.5}, {"model": "resnet34"}, {"precision": "bf16"}):
        with pytest.raises(UsageError, match="openmixup is timed on resnet18 of width 1"):
            openmixup_makers(replace(asked, values=asked.values | other))


def sample_rows() -> list[dict[str, Any]]:
    """One row of each kind that a page can have."""
    point = {"axis": "n", "value": 2, "method": "adautomix", "seconds": 0.5}
    figures: dict[str, list[dict[str, Any]]] = {
        "steps": step_rows([Timing("vanilla", 8, [0.1, 0.2]), Timing("mixup", 8, [0.3, 0.3])]),
        "peers": side_by_side([Timing("mixup", 8, [1.0]), Timing("openmixup mixup", 8, [2.5])]),
        "phases": [{"method": "vanilla", "seconds": 0.1, "data": 0.25, "rest": 0.75}],
        "work": [{"method": "vanilla", "flops": 2e9, "times": 1.0, "share_of_peak": 0.5}],
        "loading": [{"loader": "timm", "images_per_second": 90.0, "times_torchvision": 1.25}],
        "prefetching": [{"augment": "none", "images_per_second": 9.0, "share_waiting": 0.0125}],
        "mixing": [{"method": "mixup", "library": "timm", "seconds": 5e-4, "times_ours": 1.5}],
        "growth": [point, point | {"value": 3, "seconds": 0.7}],
        "memory": [{"method": "a|b", "step": s, "memory_mib": 700.0} for s in range(1, 101)],
        "epochs": [{"method": "adautomix", "epoch": 1, "seconds": 61.0}],
        "seeds": [{"way": "stacked", "networks": 4, "seconds": 0.5, "to_first": 1.5}],
        "scaling": [{"method": "vanilla", "processes": 2, "seconds": 0.2, "efficiency": 0.9}],
        "schedules": [{"generator_every": 4, "times": 3.5, "student": 0.5, "teacher": 0.6}],
    }
    machine = {"cpu": "A CPU", "threads": 2, "gpu": None}
    common = {"machine": machine, "versions": {"torch": "2.14"}, "commit": "abc", "command": "run"}
    date = {"date": "2026-01-02"}
    return [{"kind": k, "figures": f, **common, **date} for k, f in figures.items()]


def written(tmp_path: Path, found: list[dict[str, Any]]) -> str:
    (tmp_path / "rows").mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in found)
    (tmp_path / "rows" / "some.jsonl").write_text(text)
    return write_performance.write_performance(
        tmp_path / "rows", tmp_path / "docs" / "page.md"
    ).read_text()


def test_the_page_has_every_table(tmp_path: Path) -> None:
    page = written(tmp_path, sample_rows())
    assert [row["kind"] for row in sample_rows()] == list(write_performance.SECTIONS)
    titles = [title for title, _ in write_performance.SECTIONS.values()]
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == titles
    for line in (
        "| method | batch size | time | quartiles | × vanilla | × vanilla, means | images/s |",
        "| mixup | 8 | 300.0 ms | 300.0 ms to 300.0 ms | 2.00 | 2.00 | 27 |",
        "| mixup | openmixup | 1.00 s | 2.50 s | 2.50 |",
        "| vanilla | 100.0 ms | 25.00 | 75.00 |",
        "| vanilla | 1.00 | 2.000 | 50.00 |",
        "| timm | 90 | 1.25 |",
        "| none | 9 | 1.25 |",
        "| mixup | timm | 0.500 ms | 1.50 |",
        "| N, images per mix | 3 | 700.0 ms |",
        "| a\\|b | 100 | 700.0 |",
        "| adautomix | 1 | 61.00 s |",
        "| stacked | 4 | 500.0 ms | 1.50 |",
        "| vanilla | 2 | 200.0 ms | 90.00 |",
        "| 4 | 3.50 | 60.00 | 50.00 |",
    ):
        assert line in page.splitlines()
    assert page.count("A CPU, 2 threads; torch 2.14; commit abc; 2026-01-02:\n\n    run\n") == 13
    assert page.count("\n| a\\|b |") == write_performance.MOST_POINTS
    assert write_performance.NO_GPU in page


def test_the_page_links_to_what_is_there(tmp_path: Path) -> None:
    assert "](" not in written(tmp_path, sample_rows())
    picture = tmp_path / "docs" / write_performance.PICTURE
    picture.parent.mkdir(parents=True)
    picture.write_text("<svg/>")
    links = re.findall(r"\]\((.*?)\)", written(tmp_path, sample_rows()))
    assert [(tmp_path / "docs" / link).exists() for link in links] == [True]


def test_the_page_has_the_newest_of_each_machine(tmp_path: Path) -> None:
    old = sample_rows()[0]
    new = old | {"date": "2026-02-01", "commit": "new"}
    gpu = old | {"machine": old["machine"] | {"gpu": "A GPU"}, "commit": None}
    page = written(tmp_path, [new, old, gpu])
    assert re.findall(r"commit (\w+)", page) == ["new"]
    assert "A GPU beside A CPU, 2 threads; torch 2.14; outside of a checkout" in page
    assert write_performance.NO_GPU not in page
    assert page.count("## ") == 1


def test_a_page_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"no rows in {tmp_path}"):
        write_performance.write_performance(tmp_path, tmp_path / "page.md")


@pytest.mark.slow
def test_the_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [f"{name}={value}" for name, value in {**NET, **DIGITS}.items()]
    picture = tmp_path / "docs" / write_performance.PICTURE
    options = {
        "growth": ["--methods", "vanilla", "--points", "batch_size=4:8", "--picture", str(picture)],
        "memory": ["epochs=1", "--method", "vanilla"],
        "mixing_alone": [
            "--methods",
            "mixup",
            "--libraries",
            "timm",
            "--batch",
            "4",
            "--size",
            "8",
        ],
    }
    for name, words in options.items():
        own = [] if name == "mixing_alone" else [*settings, "--steps", "2"]
        place = ["--rows", str(tmp_path / "rows" / f"{name}.jsonl")]
        monkeypatch.setattr("sys.argv", [f"{name}.py", *own, *words, *place])
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    write_performance.main(tmp_path / "rows", tmp_path / "docs" / "page.md")
    page = (tmp_path / "docs" / "page.md").read_text()
    assert page.count("## ") == 4
    assert f"]({write_performance.PICTURE})" in page
    assert "timm" in (tmp_path / "rows" / "mixing_alone.jsonl").read_text()
