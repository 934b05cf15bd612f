"""Recipes name data sets that load by name: each trains two steps on a set in published layout.

A recipe is taken as it is, but for what makes a network large or needs a download: the batch size,
the width of the network and its pretrained weights.
"""

from pathlib import Path

import published
import pytest

from adautomix.config import load_config
from adautomix.config.recipes.families import read_families
from adautomix.data.sources.archives import ARCHIVES
from adautomix.runs.folder import RunFolder
from adautomix.training import train

COUNTS = {"train": 8, "val": 4, "test": 4}
SMALLER = {"batch_size": 4, "epochs": 1, "width": 0.125, "pretrained": False, "workers": 1}


def write_fixture(data: str, root: Path) -> None:
    if data in ("cifar10", "cifar100"):
        per_part = 4 if data == "cifar100" else 2
        published.write_cifar(root, data, classes=2, per_part=per_part * 2)
    else:
        published.WRITERS[data](root, published.Pictures(side=64), 4, COUNTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        "cifar10-r18/cutmix@200",
        "cifar100-r18/adautomix@200",
        "tiny-r18/adautomix@400",
        "imagenet-r18/adautomix@100",
        "cub-r18/adautomix@200",
        "aircraft-r18/adautomix@200",
        "cars-r18/adautomix@200",
    ],
)
def test_a_recipe_trains_two_steps(recipe: str, tmp_path: Path) -> None:
    config = load_config(recipe=recipe)
    write_fixture(config.data, tmp_path)
    flags = {**SMALLER, "data_root": tmp_path, "device": "cpu", "out": tmp_path / "run"}
    small = load_config(recipe=recipe, flags={**flags, "model": config.model.partition(".")[0]})
    assert small.data == config.data
    result = train(small, quiet=True)
    images = 20 if config.data == "cifar10" else 8
    assert result.summary.steps == images // 4
    assert result.summary.train_images == images
    record = RunFolder(tmp_path / "run").splits()
    assert record is not None
    assert record.source == config.data


@pytest.mark.parametrize("name", read_families())
def test_counts_of_a_family_are_those_of_the_archive(name: str) -> None:
    family = read_families()[name]
    archive = ARCHIVES[family.settings["data"]]
    assert family.classes == archive.classes
    assert {"train": family.train_images, "test": family.test_images} == dict(archive.images)
