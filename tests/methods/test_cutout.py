"""Cutout, pixel by pixel."""

import pytest
import torch
from given import HEIGHT, WIDTH, batch, make, rng

from adautomix.methods.cutout import Cutout, CutoutParams, draw_cutout


def test_cutout_pixel_by_pixel() -> None:
    images, targets = batch(4)
    boxes = torch.tensor(
        [
            [[0, 4, 0, 4], [2, 6, 3, 7]],
            [[8, 12, 6, 10], [8, 12, 6, 10]],
            [[3, 3, 0, 10], [5, 6, 5, 5]],
            [[0, 12, 0, 10], [1, 2, 1, 2]],
        ]
    )
    mixed = make(Cutout).mix(images, targets, CutoutParams(torch.arange(4)[:, None], boxes))
    for b in range(4):
        for y in range(HEIGHT):
            for x in range(WIDTH):
                hole = any(t <= y < e and left <= x < r for t, e, left, r in boxes[b].tolist())
                expected = torch.zeros(3) if hole else images[b, :, y, x]
                assert torch.equal(mixed.images[b, :, y, x], expected)
    assert torch.equal(mixed.targets, targets)
    assert mixed.lam.tolist() == [[1.0]] * 4


def test_holes_are_even_squares_clipped_to_the_image() -> None:
    """Compares with the exact mean side of 8-pixel holes in 32 × 20 pixels over all centers."""
    boxes = draw_cutout(20_000, 32, 20, 8, 1, rng()).boxes[:, 0]
    sides = boxes[:, 1::2] - boxes[:, ::2]
    assert sides.max() == 8
    assert (boxes >= 0).all()
    for side, end, size in zip(sides.T, boxes[:, 1::2].T, (32, 20), strict=True):
        lengths = [min(c + 4, size) - max(c - 4, 0) for c in range(size)]
        assert side.double().mean().item() == pytest.approx(sum(lengths) / size, rel=0.01)
        assert end.max() == size
    assert abs(torch.corrcoef(sides.T.double())[0, 1]) < 0.05


def test_cutout_of_size_zero_is_the_identity() -> None:
    images, targets = batch()
    method = make(Cutout, size=0)
    assert torch.equal(
        method.mix(images, targets, method.make_params(images.shape, rng(), 0)).images, images
    )
