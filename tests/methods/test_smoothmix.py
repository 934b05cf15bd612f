"""SmoothMix: its masks, pixel by pixel."""

import math

import pytest
import scipy.stats
import torch
from given import HEIGHT, WIDTH, make, rng

from adautomix.methods.smoothmix import SmoothMix, SmoothMixParams, draw_smoothmix, smooth_mask


def test_soft_masks_pixel_by_pixel() -> None:
    center, scale = torch.tensor([[0, 9], [5, 4], [11, 0]]), torch.tensor([[0.25], [0.5], [0.9]])
    circle = smooth_mask(center, scale, HEIGHT, WIDTH, "circle", 0.2)
    square = smooth_mask(center, scale, HEIGHT, WIDTH, "square", 0.2)
    for b, ((cy, cx), s) in enumerate(zip(center.tolist(), scale[:, 0].tolist(), strict=True)):
        for y in range(HEIGHT):
            for x in range(WIDTH):
                dy, dx = abs(y - cy) / (s * HEIGHT), abs(x - cx) / (s * WIDTH)
                gauss = math.exp(-(dy**2 + dx**2) / 2)
                assert circle[b, y, x].item() == pytest.approx(gauss, abs=1e-6)
                ramp = min(max((0.5 - max(dy, dx)) / 0.1, 0), 1)
                assert square[b, y, x].item() == pytest.approx(ramp, abs=1e-5)
        assert circle[b, cy, cx] == square[b, cy, cx] == 1


def test_soft_masks_are_the_weight_of_the_image_itself() -> None:
    """With black and white images, a white one stays white at its mask's center."""
    images = torch.zeros(2, 1, HEIGHT, WIDTH)
    images[0] = 1
    perm = torch.tensor([[0, 1], [1, 0]])
    params = SmoothMixParams(perm, torch.tensor([[3, 3], [6, 5]]), torch.full((2, 1), 0.3))
    mixed = make(SmoothMix).mix(images, torch.eye(2), params)
    assert mixed.images[0, 0, 3, 3] == 1
    assert mixed.images[1, 0, 6, 5] == 0
    assert mixed.targets[0, 0].item() == pytest.approx(mixed.images[0].mean().item())
    assert mixed.targets[1, 0].item() == pytest.approx(mixed.images[1].mean().item())


def test_smoothmix_scales_and_centers() -> None:
    for pattern, low, high in (("circle", 0.25, 0.5), ("square", 0.0, 1.0)):
        params = draw_smoothmix(4000, 16, 8, pattern, rng(), per_sample=True)  # type: ignore[arg-type]
        assert (
            scipy.stats.kstest(params.scale[:, 0].numpy(), "uniform", (low, high - low)).pvalue
            > 0.001
        )
        for column, size in enumerate((16, 8)):
            counts = torch.bincount(params.center[:, column], minlength=size)
            assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.001
    vanishing = smooth_mask(torch.tensor([[3, 3]]), torch.zeros(1, 1), 8, 8, "square", 0.2)
    assert vanishing.sum() == 1
