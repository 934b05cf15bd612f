"""Batches of whole pictures and of augmented images: the same whatever reads them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from adautomix.data import Erasing, ImageData, PictureOptions, TrainBatches, load_data
from adautomix.data.augment import draw_boxes
from adautomix.data.batches import eval_batches
from adautomix.data.dataset import InMemory, OnDisk
from adautomix.data.policies import rand_augment
from adautomix.data.preparation import Preparation, recorded_preparation
from adautomix.decoder.views import random_box
from adautomix.errors import RunError
from adautomix.rng import generator_at

CPU = torch.device("cpu")
POLICY = rand_augment("timm", 2, 9.0, 0.5, 0.5)
PHOTO = Image.fromarray(load_sample_image("flower.jpg"))
SHAPES = [(130, 100), (100, 170), (140, 140), (210, 105), (99, 120), (300, 150)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photographs of several shapes in two classes."""
    folder = tmp_path_factory.mktemp("photos") / "set"
    for number in range(12):
        width, height = SHAPES[number % len(SHAPES)]
        left = 20 * number
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PHOTO.crop((left, 0, left + width, height)).save(path)
    return folder


def read(folder: Path, cache: Path, **options: Any) -> ImageData:
    pictures = PictureOptions(**{"cache": "off", **options.pop("pictures", {})})
    usual: dict[str, Any] = {"image_size": 112, "workers": 1, "progress": False}
    return load_data(str(folder), cache_dir=cache, pictures=pictures, **(usual | options))


def epoch(data: ImageData, number: int = 3, start: int = 0, **options: Any) -> list[Tensor]:
    usual: dict[str, Any] = {"batch_size": 4, "seed": 1, "device": CPU, "drop_last": False}
    batches = TrainBatches(data, **(usual | options))
    return [batches.augment(batch) for batch in batches.epoch(number, start)]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_crops_are_torchvisions_of_the_whole_picture(photos: Path, tmp_path: Path) -> None:
    data = read(photos, tmp_path)
    assert isinstance(data.train, OnDisk)
    (batch,) = epoch(data, 0, batch_size=len(data.train), flip=False)
    order = torch.randperm(len(data.train), generator=generator_at(1, 0, "order"))
    views = draw_boxes(len(order), False, generator_at(1, 0, "augment")).views()
    mean, std = (torch.tensor(c)[:, None, None] for c in (data.mean, data.std))
    for image, row, view in zip(batch, order.tolist(), views, strict=True):
        whole = Image.open(data.train.paths[row]).convert("RGB")
        box = random_box(*whole.size, *view[1:])
        place = [int(v) for v in (box.top, box.left, box.bottom - box.top, box.right - box.left)]
        expected = tv.resized_crop(whole, *place, [112, 112], InterpolationMode.BICUBIC)
        found = (image * std + mean) * 255
        theirs = torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1)
        assert (found - theirs).abs().max() <= 1.01


@pytest.mark.parametrize("policy", [None, POLICY])
def test_an_epoch_depends_on_nothing_but_seed_and_number(
    photos: Path, tmp_path: Path, policy: Any
) -> None:
    """Not on the number of decoding processes, on the cache, or on where it is resumed."""
    whole = epoch(read(photos, tmp_path), policy=policy)
    assert [len(batch) for batch in whole] == [4, 4, 2]
    assert equal(whole, epoch(read(photos, tmp_path, workers=3), policy=policy))
    kept = read(photos, tmp_path, pictures={"cache": "exact"})
    assert isinstance(kept.train, OnDisk)
    assert kept.train.store is not None
    assert equal(whole, epoch(kept, policy=policy))
    for start in range(4):
        assert equal(whole[start:], epoch(kept, start=start, policy=policy))
    assert not equal(whole, epoch(kept, number=4, policy=policy))
    assert not equal(whole, epoch(kept, seed=2, policy=policy))
    parts = [epoch(kept, policy=policy, rank=rank, world_size=2) for rank in range(2)]
    assert equal(whole, [torch.cat(halves) for halves in zip(*parts, strict=True)])


def test_evaluation_resizes_the_shorter_side_and_crops_the_center(
    photos: Path, tmp_path: Path
) -> None:
    for cache in ("off", "exact"):
        data = read(photos, tmp_path, pictures={"cache": cache, "crop_fraction": 0.8})
        assert data.preparation == Preparation("whole", 140)
        assert isinstance(data.train, OnDisk)
        images, _ = next(eval_batches(data.train, data, batch_size=12, device=CPU))
        mean, std = (torch.tensor(c)[:, None, None] for c in (data.mean, data.std))
        for image, path in zip(images, data.train.paths, strict=True):
            resized = tv.resize(Image.open(path), [140], InterpolationMode.BICUBIC)
            expected = np.asarray(tv.center_crop(resized, [112, 112])).transpose(2, 0, 1)
            error = abs(((image * std + mean) * 255).numpy() - expected)
            assert error.max() < 2.01  # where both passes round the other way
            assert error.mean() < 0.1


def test_a_cache_of_chosen_size_keeps_the_shape(photos: Path, tmp_path: Path) -> None:
    data = read(photos, tmp_path, pictures={"cache": 64})
    assert isinstance(data.train, OnDisk)
    assert data.train.store is not None
    for path, (_, width, height, _) in zip(
        sorted(str(path) for path in photos.rglob("*.png")),
        data.train.store.index.tolist(),
        strict=True,
    ):
        wide, high = Image.open(path).size
        assert min(width, height) == 64
        assert width / height == pytest.approx(wide / high, rel=0.02)
    assert epoch(data)[0].shape == (4, 3, 112, 112)


def test_a_damaged_stored_picture_is_read_from_its_file(photos: Path, tmp_path: Path) -> None:
    expected = epoch(read(photos, tmp_path, pictures={"cache": "exact"}))
    (file,) = tmp_path.glob("*/whole-exact/pixels.bin")
    content = bytearray(file.read_bytes())
    for position in range(1000, len(content), 5000):
        content[position] ^= 64
    file.write_bytes(content)
    assert equal(expected, epoch(read(photos, tmp_path, pictures={"cache": "exact"})))


def test_pictures_too_many_for_memory_are_not_kept(photos: Path, tmp_path: Path) -> None:
    data = read(photos, tmp_path, pictures={"cache": "exact"}, memory_limit=100_000)
    assert isinstance(data.train, OnDisk)
    assert data.train.store is None


def test_a_cache_that_does_not_fit_on_the_disk_is_an_error(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(RunError, match=r"image cache needs about 0\.0 GiB .* cache off"):
        read(photos, tmp_path, pictures={"cache": "exact"})


def test_a_missing_file_is_named_in_training(photos: Path, tmp_path: Path) -> None:
    data = read(photos, tmp_path)
    assert isinstance(data.train, OnDisk)
    gone = [*data.train.paths[:3], "nowhere.png", *data.train.paths[4:]]
    with pytest.raises(RunError, match=r"cannot read image nowhere\.png: no such file"):
        epoch(replace(data, train=replace(data.train, paths=gone)))


def test_images_in_memory_are_augmented_in_processes(tmp_path: Path) -> None:
    data = load_data("digits", cache_dir=tmp_path, per_class=2)
    assert isinstance(data.train, InMemory)
    plain, rich = epoch(data, flip=True), epoch(data, flip=True, policy=POLICY)
    assert [batch.shape for batch in plain] == [batch.shape for batch in rich]
    untouched = [
        k
        for k, ops in enumerate(POLICY.operations(4, 32, generator_at(1, 15, "policy")))
        if not ops
    ]
    assert equal([plain[0][untouched]], [rich[0][untouched]])
    assert not torch.equal(plain[0], rich[0])
    assert equal(rich, epoch(data, flip=True, policy=POLICY, workers=2))


def test_repeated_augmentation_shows_images_in_a_row(photos: Path, tmp_path: Path) -> None:
    data = read(photos, tmp_path)
    batches = TrainBatches(data, batch_size=5, seed=0, device=CPU, repeats=3)
    rows = batches._order(0).repeat_interleave(3)[:10]
    assert batches.steps_per_epoch == 2
    labels = torch.cat([batch.labels for batch in batches.epoch(0)])
    assert torch.equal(labels, data.train.labels[rows])
    images = torch.cat([batches.augment(batch) for batch in batches.epoch(0)])
    assert not torch.equal(images[0], images[1])


def test_erased_boxes_are_those_of_the_whole_batch(photos: Path, tmp_path: Path) -> None:
    data, erasing = read(photos, tmp_path), Erasing(1.0, "pixel")
    whole, plain = epoch(data, erasing=erasing), epoch(data)
    parts = [epoch(data, erasing=erasing, rank=rank, world_size=2) for rank in range(2)]
    assert equal(whole, [torch.cat(halves) for halves in zip(*parts, strict=True)])
    changed = torch.cat(whole) != torch.cat(plain)
    assert changed.flatten(1).any(1).all()
    assert 0.02 < changed.float().mean() < 0.34


def test_a_run_of_before_keeps_center_squares(photos: Path, tmp_path: Path) -> None:
    recorded = recorded_preparation({"image_size": 112})
    assert recorded == Preparation("square", 128, "bilinear", composite=False)
    data = read(photos, tmp_path, pictures={"cache": "exact", "recorded": recorded})
    assert isinstance(data.train, InMemory)
    assert data.train.images.shape[1:] == (128, 128, 3)
    assert data.preparation == recorded


def test_a_preparation_survives_being_recorded() -> None:
    how = Preparation("whole", 256, "bilinear", composite=True)
    assert recorded_preparation(json.loads(json.dumps({"preparation": how.as_dict()}))) == how


def test_plain_pictures_are_reported(photos: Path, tmp_path: Path) -> None:
    for name in "ab":
        folder = tmp_path / "set" / name
        folder.mkdir(parents=True)
        for number, size in enumerate([(40, 30), (30, 40), (50, 50)]):
            PHOTO.resize(size).save(folder / f"{number}.png")
    Image.new("L", (60, 60), 3).save(tmp_path / "set" / "a" / "empty.png")
    for cache in ("exact", 24):
        data = read(tmp_path / "set", tmp_path / "cache", pictures={"cache": cache})
        assert [Path(path).name for path in data.plain_files] == ["empty.png"]
        assert any("empty.png" in warning for warning in data.warnings)
