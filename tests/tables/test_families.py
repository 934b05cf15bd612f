"""Recipes of every family train, AdAutoMix and plain training alike, on small images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adautomix.config import make_config, merge
from adautomix.config.recipes import compose, find_cell, read_families
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


TRAINABLE = [family.name for family in read_families().values() if not family.missing]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vanilla", "adautomix"])
@pytest.mark.parametrize("family", TRAINABLE)
def test_two_steps_of_every_family(family: str, method: str, photos: Path, tmp_path: Path) -> None:
    cell = find_cell(f"{family}/{method}")
    assert cell
    small = SMALL | {"image_size": 32 if "cifar" in family else 64}
    if "rx" in family:
        small["width"] = 0.25  # room for the 32 groups of a ResNeXt
    if "deit" in family or "vit" in family or "swin" in family:
        small["image_size"] = 64  # a whole number of patches and windows
    changes = small | {"data": str(photos), "out": str(tmp_path / "run")}
    result = train(make_config(merge(compose(cell), changes)), quiet=True)
    assert result.summary.steps == 2
    assert result.final.keys() == {"student", "teacher"}
