"""A single image per batch is enough for a network without batch norm, and for no other."""

import math
from pathlib import Path

import pytest
from every import CNN, TRANSFORMER, steps_of, trainer_of

from adautomix.errors import UsageError


@pytest.mark.parametrize("method", ["vanilla", "cutmix", "mergemix"])
def test_a_transformer_trains_on_single_images(method: str, tmp_path: Path) -> None:
    trainer = trainer_of(method, tmp_path, **TRANSFORMER, batch_size=1)
    rows = steps_of(trainer, 2)
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_a_transformer_accepts_a_last_batch_of_one(tmp_path: Path) -> None:
    trainer = trainer_of("cutmix", tmp_path, **TRANSFORMER, batch_size=47, drop_last=False)
    assert trainer.batches.steps_per_epoch == 2
    assert all(math.isfinite(row["loss"]) for row in steps_of(trainer, 2))


@pytest.mark.parametrize("values", [{"batch_size": 1}, {"batch_size": 47, "drop_last": False}])
def test_batch_norm_needs_two_images(values: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch norm needs 2 per part, but a batch has 1 image:"):
        trainer_of("cutmix", tmp_path, **CNN, **values)


def test_views_need_an_image_each(tmp_path: Path) -> None:
    """With `views: split` the three views of AdAutoMix share the images of a batch."""
    split = {"views": "split", "n": 2}
    trainer = trainer_of("adautomix", tmp_path / "3", **TRANSFORMER, batch_size=3, adautomix=split)
    assert all(math.isfinite(row["loss"]) for row in steps_of(trainer, 1))
    with pytest.raises(UsageError, match="adautomix mixes 3 images and training needs 3 per part"):
        trainer_of("adautomix", tmp_path / "2", **TRANSFORMER, batch_size=2, adautomix=split)
