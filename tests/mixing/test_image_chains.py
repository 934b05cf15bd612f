"""Image operations compared with Pillow on single 8-bit images, as AugMix's released code has them.

The oracle below restates the released definitions; levels are already drawn.
"""

import numpy as np
import pytest
import torch
from given import rng
from PIL import Image, ImageOps
from torch import Tensor

from adautomix.mixing.image_chains import OPERATIONS, apply_chain, apply_operation

SIZE = 24


def pictures(count: int) -> Tensor:
    """Smooth 8-bit images, float32 `[count, 3, SIZE, SIZE]`."""
    coarse = torch.rand(count, 3, 5, 5, generator=rng(1))
    smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1)
    return (40 + 180 * smooth).round()


def with_pillow(image: Image.Image, name: str, level: float) -> Image.Image:
    """Apply one operation; the sign of the level is the direction."""
    sign, strength = (1 if level > 0 else -1), abs(level)
    shear, shift = sign * strength * 0.3 / 10, sign * int(strength * (SIZE / 3) / 10)
    maps = {
        "shear_x": (1, shear, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, shear, 1, 0),
        "translate_x": (1, 0, shift, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, shift),
    }
    if name in maps:
        affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
        return image.transform((SIZE, SIZE), affine, maps[name], resample=bilinear)
    if name == "rotate":
        degrees = sign * int(strength * 30 / 10)
        return image.rotate(degrees, resample=Image.Resampling.BILINEAR)
    if name == "posterize":
        return ImageOps.posterize(image, 4 - int(strength * 4 / 10))
    if name == "solarize":
        return ImageOps.solarize(image, 256 - int(strength * 256 / 10))
    return ImageOps.autocontrast(image) if name == "autocontrast" else ImageOps.equalize(image)


def pillow_pixels(pixels: Tensor, name: str, level: float) -> Tensor:
    image = Image.fromarray(pixels.permute(1, 2, 0).byte().numpy())
    changed = np.asarray(with_pillow(image, name, level))
    return torch.from_numpy(changed.copy()).permute(2, 0, 1).float()


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_pillows(name: str) -> None:
    levels = torch.tensor([0.4, -1.3, 2.9, -2.6, 7.7, -9.5])
    images, count = pictures(6), 6
    operation = torch.full((count,), OPERATIONS.index(name))
    ours = apply_operation(images, operation, levels)
    # Pixels whose source lies well inside; at the border Pillow does not blend with black.
    white = apply_operation(torch.full_like(images, 200.0), operation, levels) == 200
    geometric = name.partition("_")[0] in ("rotate", "shear", "translate")
    inside = white if geometric else torch.ones_like(white)
    assert inside.float().mean() > 0.6
    theirs = torch.stack([pillow_pixels(images[m], name, float(levels[m])) for m in range(count)])
    exact = name in ("posterize", "solarize", "equalize", "translate_x", "translate_y")
    assert ((ours - theirs).abs() * inside).max() <= (0 if exact else 1)
    assert not torch.equal(ours, images)
    assert torch.equal(ours, ours.round())


def test_each_image_has_its_own_operation_and_depth() -> None:
    images = pictures(4)
    operations = torch.tensor([[0, 3], [8, 2], [4, 1], [5, 7]])
    levels = torch.tensor([[1.0, 2.0], [-2.5, 1.0], [2.0, 3.0], [3.0, -3.0]])
    depth = torch.tensor([1, 2, 2, 1])
    chained = apply_chain(images, operations, levels, depth)
    for m in range(4):
        expected = images[m : m + 1]
        for number in range(int(depth[m])):
            one = operations[m : m + 1, number], levels[m : m + 1, number]
            expected = apply_operation(expected, *one)
        torch.testing.assert_close(chained[m], expected[0], atol=0, rtol=0)
