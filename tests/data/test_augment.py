"""Batched augmentation against slow loops over single pixels and against torchvision."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from adautomix.data.augment import (
    CropParams,
    ResizedCropParams,
    apply_crop,
    apply_resized_crop,
    center_crop,
    draw_crop,
    draw_resized_crop,
    normalize,
    resize,
)
from adautomix.errors import UsageError
from adautomix.rng import generator_at


def random_images(batch: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)


def reflected(position: int, side: int) -> int:
    if position < 0:
        return -position
    if position >= side:
        return 2 * (side - 1) - position
    return position


def crop_by_hand(image: Tensor, top: int, left: int, flip: bool, pad: int) -> Tensor:
    side = image.shape[-1]
    out = torch.empty_like(image)
    for row in range(side):
        for column in range(side):
            unflipped = side - 1 - column if flip else column
            source_row = reflected(top + row - pad, side)
            source_column = reflected(left + unflipped - pad, side)
            out[:, row, column] = image[:, source_row, source_column]
    return out


@pytest.mark.parametrize("channels_last", [False, True])
def test_crop_equals_a_loop_over_pixels(channels_last: bool) -> None:
    pad, side = 3, 7
    images = random_images(5, side)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    params = CropParams(
        top=torch.tensor([0, 6, 3, 1, 5]),
        left=torch.tensor([6, 0, 3, 2, 5]),
        flip=torch.tensor([False, True, True, False, True]),
    )
    cropped = apply_crop(images, params, pad)
    assert cropped.dtype == torch.uint8
    for k, image in enumerate(images):
        top, left, flip = int(params.top[k]), int(params.left[k]), bool(params.flip[k])
        expected = crop_by_hand(image, top, left, flip, pad)
        assert torch.equal(cropped[k], expected), f"image {k}"


def test_crop_without_padding_is_the_image() -> None:
    images = random_images(4, 6)
    params = draw_crop(4, 0, False, generator_at(0, 0, "augment"))
    assert torch.equal(apply_crop(images, params, 0), images)


def test_padding_as_large_as_the_image_is_refused() -> None:
    params = draw_crop(2, 6, True, generator_at(0, 0, "augment"))
    with pytest.raises(UsageError, match="pad 6 does not fit images of 6 pixels: use at most 5"):
        apply_crop(random_images(2, 6), params, 6)


def test_crop_draws_are_uniform_and_seeded() -> None:
    pad, count = 4, 18_000
    params = draw_crop(count, pad, True, generator_at(1, 2, "augment"))
    for offsets in (params.top, params.left):
        counts = offsets.bincount(minlength=2 * pad + 1)
        assert len(counts) == 2 * pad + 1
        assert counts.min() > 0.9 * count / 9
        assert counts.max() < 1.1 * count / 9
    assert 0.48 < params.flip.float().mean() < 0.52
    together = torch.corrcoef(
        torch.stack([params.top.float(), params.left.float(), params.flip.float()])
    )
    assert (together - torch.eye(3)).abs().max() < 0.03
    again = draw_crop(count, pad, True, generator_at(1, 2, "augment"))
    assert torch.equal(params.top, again.top)
    assert torch.equal(params.flip, again.flip)
    assert not draw_crop(count, pad, False, generator_at(1, 2, "augment")).flip.any()


@pytest.mark.parametrize("size", [8, 24, 40])
def test_resized_crop_equals_torchvision(size: int) -> None:
    """Boxes both shrunk and enlarged; both sides compute in float32, to 1e-3 of 255 levels."""
    images = random_images(40, 24)
    params = draw_resized_crop(40, True, generator_at(0, 0, "augment"))
    out = apply_resized_crop(images, params, size)
    assert out.dtype == torch.float32
    assert params.flip.any()
    assert not params.flip.all()
    boxes = torch.stack(params.boxes(24), 1).tolist()
    for k, box in enumerate(boxes):
        expected = tv.resized_crop(images[k].float(), *box, [size, size], antialias=True)
        if params.flip[k]:
            expected = expected.flip(-1)
        torch.testing.assert_close(out[k], expected, atol=1e-3, rtol=0)


def test_the_whole_image_as_box_leaves_it_as_it_is() -> None:
    images = random_images(2, 9)
    one, zero = torch.ones(2), torch.zeros(2)
    params = ResizedCropParams(flip=zero.bool(), height=one, width=one, top=zero, left=zero)
    assert torch.equal(apply_resized_crop(images, params, 9), images.float())


def test_boxes_reach_every_place_and_stay_inside() -> None:
    fraction = torch.tensor([0.0, 0.5, 1 - 2**-24])
    params = ResizedCropParams(
        flip=torch.zeros(3, dtype=torch.bool),
        height=torch.full((3,), 0.5),
        width=torch.full((3,), 1e-6),
        top=fraction,
        left=fraction,
    )
    top, left, height, width = params.boxes(256)
    assert height.tolist() == [128] * 3
    assert width.tolist() == [1] * 3
    assert top.tolist() == [0, 64, 128]
    assert left.tolist() == [0, 128, 255]


def test_resized_draws_are_distributed_as_torchvisions() -> None:
    count, side = 4000, 64
    params = draw_resized_crop(count, True, generator_at(3, 0, "augment"))
    area, ratio = params.height * params.width, params.width / params.height
    assert area.min() >= 0.08 - 1e-6
    assert ratio.min() >= 3 / 4 - 1e-5
    assert ratio.max() <= 4 / 3 + 1e-5
    assert 0.48 < params.flip.float().mean() < 0.52
    torch.manual_seed(0)
    image = torch.zeros(3, side, side)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    ).float()
    ours = torch.stack(params.boxes(side), 1).float()
    for column in range(4):
        spread = theirs[:, column].std() * math.sqrt(2 / count)
        assert (ours[:, column].mean() - theirs[:, column].mean()).abs() < 4 * spread
        assert 0.93 < ours[:, column].std() / theirs[:, column].std() < 1.07


def test_a_smallest_area_is_kept() -> None:
    params = draw_resized_crop(2000, True, generator_at(3, 0, "augment"), scale=(0.5, 1.0))
    area = params.height * params.width
    assert area.min() >= 0.5 - 1e-6
    assert area.min() < 0.51


def test_boxes_that_never_fit_fall_back_to_the_widest_in_the_middle() -> None:
    generator = generator_at(0, 0, "augment")
    params = draw_resized_crop(3, False, generator, scale=(1.0, 1.0), ratio=(2.0, 3.0))
    assert torch.stack(params.boxes(64), 1).tolist() == [[16, 0, 32, 64]] * 3
    params = draw_resized_crop(3, False, generator, scale=(1.0, 1.0), ratio=(0.25, 0.5))
    assert torch.stack(params.boxes(64), 1).tolist() == [[0, 16, 64, 32]] * 3


def test_draws_move_to_a_device() -> None:
    params = draw_crop(2, 4, True, generator_at(0, 0, "augment")).to(torch.device("meta"))
    assert {params.top.device.type, params.left.device.type, params.flip.device.type} == {"meta"}


def test_center_crop() -> None:
    images = random_images(2, 10)
    assert torch.equal(center_crop(images, 4), images[:, :, 3:7, 3:7])
    assert torch.equal(center_crop(images, 10), images)
    assert torch.equal(center_crop(images, 12), images)


def test_resize_equals_torchvision_and_leaves_the_right_size_alone() -> None:
    images = random_images(2, 8)
    assert resize(images, 8) is images
    expected = tv.resize(images.float(), [20, 20], antialias=True)
    torch.testing.assert_close(resize(images, 20), expected, atol=1e-3, rtol=0)


def test_normalize_lets_gradients_through_after_inference() -> None:
    mean, std = (0.11, 0.22, 0.33), (0.25, 0.5, 1.0)  # met nowhere else: nothing is kept yet
    images = random_images(1, 4).float()
    with torch.inference_mode():
        normalize(images, mean, std)
    images.requires_grad_()
    (slope,) = torch.autograd.grad(normalize(images, mean, std).sum(), images)
    expected = 1 / (255 * torch.tensor(std))
    torch.testing.assert_close(slope[0, :, 0, 0], expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalize_by_hand(dtype: torch.dtype) -> None:
    images = random_images(2, 4).to(dtype)
    mean, std = (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)
    out = normalize(images, mean, std)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    for b, c, row, column in [(0, 0, 0, 0), (1, 2, 3, 1), (0, 1, 2, 2)]:
        expected = (float(images[b, c, row, column]) / 255 - mean[c]) / std[c]
        assert float(out[b, c, row, column]) == pytest.approx(expected, abs=1e-5)
