"""Recipes of every family train, AdAutoMix and plain training alike, on small images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adautomix.config import make_config, merge
from adautomix.config.recipes import compose, find_cell, read_cells, read_families
from adautomix.training import train

SMALL = {
    "width": 0.125,
    "pretrained": False,
    "epochs": 1,
    "warmup_epochs": 0.5,
    "batch_size": 4,
    "precision": "fp32",
    "workers": 1,
    "eval_batch_size": 8,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of noise: two classes with four training and two test images each."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in ("bird", "car"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (48, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def recipes() -> list[str]:
    """Plain training and AdAutoMix of every family; AutoMix where it was not published."""
    names = []
    for family in (family for family in read_families().values() if not family.missing):
        methods = {cell.method for cell in read_cells().values() if cell.family == family.name}
        learned = "adautomix" if "adautomix" in methods else "automix"
        names += [f"{family.name}/vanilla", f"{family.name}/{learned}"]
    return names


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipes())
def test_two_steps_of_every_family(recipe: str, photos: Path, tmp_path: Path) -> None:
    cell = find_cell(recipe)
    assert cell
    family = cell.family
    small = SMALL | {"image_size": 32 if "cifar" in family else 64}
    if "rx" in family:
        small["width"] = 0.25  # room for the 32 groups of a ResNeXt
    if "deit" in family or "vit" in family or "swin" in family:
        small["image_size"] = 64  # a whole number of patches and windows
    changes = small | {"data": str(photos), "out": str(tmp_path / "run")}
    result = train(make_config(merge(compose(cell), changes)), quiet=True)
    assert result.summary.steps == 2
    assert result.final.keys() == {"student", "teacher"}
