"""Crops of whole pictures beside torchvision's, and operations beside torchvision's and timm's."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from sklearn.datasets import load_sample_image
from timm.data import auto_augment as timm_augment
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2
from torchvision.transforms import functional as tv

from adautomix.data.augment import apply_crop, draw_boxes, draw_crop
from adautomix.decoder.operations import apply_operations
from adautomix.decoder.reading import Rules, picture_of, read_view, see
from adautomix.decoder.views import center_box, padded, random_box
from adautomix.rng import generator_at

PHOTO = Image.fromarray(load_sample_image("china.jpg"))  # 640 × 427
FILL = (1, 2, 3)


@pytest.fixture(scope="module", params=["png", "jpg"])
def photo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photo") / f"photo.{request.param}"
    PHOTO.save(path, quality=95)
    return str(path)


def difference(image: Image.Image, other: Image.Image) -> np.ndarray:
    return abs(np.asarray(image).astype(int) - np.asarray(other).astype(int))


def same(image: Image.Image, other: object) -> bool:
    return np.array_equal(np.asarray(image), np.asarray(other))


def boxes(count: int, width: int, height: int) -> list[tuple[Any, tuple[int, int, int, int]]]:
    """Views of random boxes, and each box as torchvision names it: top, left, height, width."""
    views = draw_boxes(count, False, generator_at(0, 0, "augment")).views()
    found = [random_box(width, height, *view[1:]) for view in views]
    return [
        (view, (int(b.top), int(b.left), int(b.bottom - b.top), int(b.right - b.left)))
        for view, b in zip(views, found, strict=True)
    ]


@pytest.mark.parametrize("filters", ["bicubic", "bilinear"])
def test_crops_equal_torchvisions_of_the_same_box(photo: str, filters: str) -> None:
    whole = Image.open(photo).convert("RGB")
    for view, box in boxes(12, *whole.size):
        mine, _ = read_view(photo, view, 224, Rules(resample=filters))
        theirs = tv.resized_crop(whole, *box, [224, 224], InterpolationMode(filters))
        assert difference(mine, theirs).max() <= 1


def test_crops_of_stored_pictures_equal_those_of_files(photo: str) -> None:
    whole = Image.open(photo).convert("RGB")
    stored = picture_of(whole.tobytes(), *whole.size)
    for view, _ in boxes(4, *whole.size):
        mine, _ = read_view(photo, view, 224, Rules())
        assert same(mine, see(stored, view, 224, Rules()))


def test_jpeg_files_decoded_at_a_fraction_look_the_same(tmp_path: Path) -> None:
    path = str(tmp_path / "x.jpg")
    PHOTO.save(path, quality=95)
    whole = Image.open(path).convert("RGB")
    for size in (24, 48, 70):  # at 1/8, 1/4 and 1/2
        view = ("box", [1.0], [640 / 427], 0.0, 0.0)
        mine, decoded = read_view(path, view, size, Rules())
        assert decoded.width < 640
        error = difference(mine, whole.resize((size, size), Image.Resampling.BICUBIC))
        assert np.quantile(error, 0.99) <= 2
        assert error.mean() < 0.5


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (500, 500), (301, 777)])
@pytest.mark.parametrize("resize", [64, 70])
def test_evaluation_equals_resize_and_center_crop(
    tmp_path: Path, size: tuple[int, int], resize: int
) -> None:
    path = str(tmp_path / "x.png")
    picture = PHOTO.resize(size)
    picture.save(path)
    mine, _ = read_view(path, ("center", resize), 56, Rules())
    resized = tv.resize(picture, [resize], InterpolationMode.BICUBIC)
    assert difference(mine, tv.center_crop(resized, [56, 56])).max() <= 1
    box = center_box(*size, resize, 56)
    assert box.shorter == pytest.approx(56 * min(size) / resize, rel=0.02)


def test_the_cameras_orientation_turns_boxes_too(tmp_path: Path) -> None:
    path = str(tmp_path / "x.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    PHOTO.save(path, quality=95, exif=exif)
    upright = Image.open(path).transpose(Image.Transpose.ROTATE_270)
    for view, box in boxes(4, *upright.size):
        mine, _ = read_view(path, view, 224, Rules())
        theirs = tv.resized_crop(upright, *box, [224, 224], InterpolationMode.BICUBIC)
        assert difference(mine, theirs).max() <= 1


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (100, 100), (900, 100)])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    count = 3000
    mine = torch.tensor([box for _, box in boxes(count, *size)]).float()
    torch.manual_seed(0)
    blank = torch.zeros(3, size[1], size[0])
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    ).float()
    for column in range(4):
        assert ks_2samp(mine[:, column], theirs[:, column]).pvalue > 1e-3


def test_all_thirds_of_a_wide_picture_are_seen_as_often_as_by_torchvision(tmp_path: Path) -> None:
    """Red, green and blue thirds of the width: the sides must not be lost."""
    picture = Image.new("RGB", (300, 100))
    for third, color in enumerate(("red", "lime", "blue")):
        picture.paste(color, (100 * third, 0, 100 * third + 100, 100))
    path, count = str(tmp_path / "thirds.png"), 1500
    picture.save(path)
    mine = np.stack(
        [
            np.asarray(read_view(path, view, 16, Rules())[0]).mean((0, 1))
            for view in draw_boxes(count, True, generator_at(5, 0, "augment")).views()
        ]
    )
    torch.manual_seed(0)
    crop = RandomResizedCrop(16, interpolation=InterpolationMode.BICUBIC)
    theirs = np.stack([np.asarray(crop(picture)).mean((0, 1)) for _ in range(count)])
    for channel in range(3):
        error = np.hypot(mine[:, channel].std(), theirs[:, channel].std()) / count**0.5
        assert abs(mine[:, channel].mean() - theirs[:, channel].mean()) < 4 * error
        seen, seen_there = (mine[:, channel] > 1).mean(), (theirs[:, channel] > 1).mean()
        assert abs(seen - seen_there) < 4 * (2 * 0.25 / count) ** 0.5
        assert seen > 0.3


def test_padded_crops_equal_those_on_the_device() -> None:
    pixels = torch.from_numpy(np.asarray(PHOTO.resize((20, 20))).copy())
    params = draw_crop(30, 6, False, generator_at(0, 0, "augment"))
    batch = pixels.permute(2, 0, 1).expand(30, 3, 20, 20)
    expected = apply_crop(batch, params, 6).permute(0, 2, 3, 1).numpy()
    picture = Image.fromarray(pixels.numpy())
    for k in range(30):
        mine = padded(picture, 6, int(params.top[k]), int(params.left[k]))
        assert same(mine, expected[k])
        view = ("padded", None, 6, int(params.top[k]), int(params.left[k]))
        assert same(see(picture, view, 20, Rules()), expected[k])
    assert padded(picture, 0, 0, 0) is picture


# --- operations -----------------------------------------------------------------------------

SMALL = PHOTO.resize((90, 70))


@pytest.mark.parametrize(
    ("name", "magnitude"),
    [
        ("Identity", 0.0),
        ("ShearX", 0.23),
        ("ShearY", -0.3),
        ("TranslateX", 13.6),
        ("TranslateY", -9.0),
        ("Rotate", 27.0),
        ("Rotate", -100.0),
        ("Brightness", 0.7),
        ("Color", -0.9),
        ("Contrast", 0.5),
        ("Sharpness", -0.4),
        ("Posterize", 3.0),
        ("Solarize", 0.4),
        ("AutoContrast", 0.0),
        ("Equalize", 0.0),
        ("Invert", 0.0),
    ],
)
@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic"])
def test_operations_equal_torchvisions(name: str, magnitude: float, resample: str) -> None:
    value = magnitude
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        value += 1
    elif name == "Solarize":
        value *= 255
    elif name.startswith("Translate"):
        value = -int(magnitude)
    mine = apply_operations(SMALL, [(name, value, resample)], FILL)
    theirs = v2.RandAugment()._apply_image_or_video_transform(
        SMALL, name, magnitude, InterpolationMode(resample), {Image.Image: list(FILL)}
    )
    error = difference(mine, theirs)  # the last digit of a matrix may differ
    assert error.max() <= 1
    assert (error > 0).mean() < 1e-3


@pytest.mark.parametrize("value", [-0.3, 0.0, 0.2])
def test_hue_equals_torchvisions(value: float) -> None:
    mine = apply_operations(SMALL, [("Hue", value)], FILL)
    assert same(mine, v2.functional.adjust_hue(SMALL, value))


@pytest.mark.parametrize("name", list(timm_augment._RAND_INCREASING_TRANSFORMS))
@pytest.mark.parametrize("level", [0.0, 4.4, 9.0, 10.0])
def test_timms_operations_and_levels(name: str, level: float) -> None:
    from adautomix.data.policies import _TIMM, _operation

    random.seed(0)
    negative = random.random() > 0.5
    random.seed(0)
    operation: Any = timm_augment.AugmentOp(  # type: ignore[no-untyped-call]
        name,
        prob=1.0,
        magnitude=level,
        hparams={"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC},
    )
    random.seed(0)
    picture = SMALL.resize((90, 90))
    short = name.removesuffix("Increasing").removesuffix("Rel")
    value = _TIMM[short](level, -1.0 if negative else 1.0, 90)
    mine = apply_operations(picture, [_operation(short, value, "bicubic")], FILL)
    if short == "Posterize" and value == 0:  # Pillow 13 refuses what timm asks for
        assert mine.getbbox() is None
    else:
        assert same(mine, operation(picture))
