"""Estimates of hours and memory, against figures computed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from records import epoch_fields, summary_fields

from adautomix.config import make_config
from adautomix.config.recipes import compose, read_cells
from adautomix.tables.cost import Estimate, estimate, network_cost, network_cost_of, peak_memory_gib
from adautomix.tables.tasks import Task

VANILLA = "cifar100-r18/vanilla@200"
SPEED = 1e12


def task_of(name: str, folder: Path, **changes: Any) -> Task:
    cell = read_cells()[name]
    return Task(name, cell, 0, folder, compose(cell) | changes)


def write_run(folder: Path, *rows: dict[str, Any], summary: dict[str, Any] | None = None) -> None:
    folder.mkdir()
    (folder / "config.yaml").write_text("method: vanilla\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))


def test_work_of_a_convolution_network() -> None:
    # Multiply-accumulate operations of the CIFAR ResNet-18: 0.5554 billion, and one per weight of
    # each linear head.
    cost = network_cost("resnet18", "cifar", 1.0, 32)
    assert cost.flops == pytest.approx(2 * 0.5554e9, rel=1e-3)
    assert cost.parameters == 11_168_832 + 2 * (512 * 100 + 100)
    # A map of 64 × 32 × 32 numbers behind the stem's convolution, batch norm and ReLU alone.
    assert cost.activations > 3 * 64 * 32 * 32


def test_hours_are_forward_passes_at_the_speed_of_the_device(tmp_path: Path) -> None:
    task = task_of(VANILLA, tmp_path / "none")
    flops = network_cost_of(task.settings()).flops
    passes = 200 * (50_000 * 3 + 10_000 * 2)
    found = estimate(task, SPEED)
    assert found.hours == pytest.approx(passes * flops / SPEED / 3600)
    assert (found.basis, found.state) == ("estimated", "new")
    twelve = estimate(task_of("cifar100-r18/adautomix@200", tmp_path / "none"), SPEED)
    assert twelve.hours / found.hours == pytest.approx((50_000 * 12 + 20_000) / 170_000)


def test_fewer_images_cost_less(tmp_path: Path) -> None:
    whole = estimate(task_of(VANILLA, tmp_path / "none"), SPEED)
    part = estimate(task_of(VANILLA, tmp_path / "none", per_class=5), SPEED)
    assert part.hours / whole.hours == pytest.approx((500 * 3 + 20_000) / 170_000)


def test_memory_grows_with_batch_precision_and_method() -> None:
    values = compose(read_cells()[VANILLA])
    cost = network_cost_of(make_config(values))
    weights = 4 * cost.parameters * 4  # student, teacher, gradient and momentum
    images = 4 * cost.activations * 100
    assert peak_memory_gib(make_config(values), cost) == pytest.approx((weights + images) / 2**30)
    halved = {"precision": "bf16"}, {"batch_size": 50}, {"accumulate": 2}
    for change in halved:
        assert peak_memory_gib(make_config(values | change), cost) == pytest.approx(
            (weights + images / 2) / 2**30
        )
    learned = peak_memory_gib(make_config(values | {"method": "adautomix"}), cost)
    assert learned == pytest.approx((weights + 4 * images) / 2**30)


def test_epochs_that_were_timed_replace_the_estimate(tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    write_run(folder, epoch_fields(10, 1, seconds=36.0), epoch_fields(20, 2, seconds=72.0))
    found = estimate(task_of(VANILLA, folder), SPEED)
    assert found.hours == pytest.approx(198 * 36 / 3600)
    assert (found.basis, found.state) == ("measured", "2 of 200 epochs")


def test_a_finished_run_costs_nothing_more(tmp_path: Path) -> None:
    folder = tmp_path / "finished"
    write_run(folder, summary=summary_fields(peak_memory_mib=2048.0))
    assert estimate(task_of(VANILLA, folder), SPEED) == Estimate(0.0, 2.0, "measured", "finished")
