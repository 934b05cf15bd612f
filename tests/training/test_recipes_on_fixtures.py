"""Recipes name data sets that load by name: each trains two steps on a set in published layout.

A recipe is taken as it is, but for what makes training long or needs a download: the batch size,
the width of the network, the size of its input and its pretrained weights.
"""

from pathlib import Path
from typing import Any

import published
import pytest

from adautomix.config import TrainConfig, make_config, merge
from adautomix.config.recipes import compose, find_cell, read_cells, read_families
from adautomix.data.sources.archives import ARCHIVES
from adautomix.runs.folder import RunFolder
from adautomix.training import train

COUNTS = {"train": 8, "val": 4, "test": 4}
SMALLER = {
    "batch_size": 4,
    "epochs": 1,
    "warmup_epochs": 0.5,
    "width": 0.125,
    "pretrained": False,
    "precision": "fp32",
    "workers": 1,
    "eval_batch_size": 8,
    "device": "cpu",
}


def recipes() -> list[str]:
    """Plain training and AdAutoMix of every family; AutoMix where AdAutoMix was not published."""
    names = []
    for family in (family for family in read_families().values() if not family.missing):
        methods = {cell.method for cell in read_cells().values() if cell.family == family.name}
        learned = "adautomix" if "adautomix" in methods else "automix"
        names += [f"{family.name}/vanilla", f"{family.name}/{learned}"]
    return names


def smaller(recipe: str, root: Path, out: Path) -> TrainConfig:
    """The settings of a recipe with a small network on the data sets below a folder."""
    cell = find_cell(recipe)
    assert cell
    changes: dict[str, Any] = SMALLER | {"data_root": str(root), "out": str(out)}
    composed = compose(cell)
    if "cifar" not in recipe or composed.get("image_size"):
        changes["image_size"] = 64  # a whole number of patches and windows
    if "-rx" in recipe:
        changes["width"] = 0.25  # room for the 32 groups of a ResNeXt
    changes["model"] = str(composed["model"]).partition(".")[0]  # without the name of weights
    return make_config(merge(composed, changes))


def write_fixture(data: str, root: Path) -> None:
    """Write a miniature of a published archive."""
    if data in ("cifar10", "cifar100"):
        per_part = 4 if data == "cifar100" else 2
        published.write_cifar(root, data, classes=2, per_part=per_part * 2)
    else:
        published.WRITERS[data](root, published.Pictures(side=64), 4, COUNTS)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_trains_two_steps(recipe: str, tmp_path: Path) -> None:
    config = smaller(recipe, tmp_path, tmp_path / "run")
    write_fixture(config.data, tmp_path)
    result = train(config, quiet=True)
    images = 20 if config.data == "cifar10" else 8
    assert result.summary.train_images == images
    assert result.summary.steps == images // 4
    assert result.final.keys() == {"student", "teacher"}
    record = RunFolder(tmp_path / "run").splits()
    assert record is not None
    assert record.source == config.data


@pytest.mark.parametrize("name", read_families())
def test_counts_of_a_family_are_those_of_the_archive(name: str) -> None:
    family = read_families()[name]
    archive = ARCHIVES[family.settings["data"]]
    assert family.classes == archive.classes
    assert {"train": family.train_images, "test": family.test_images} == dict(archive.images)
