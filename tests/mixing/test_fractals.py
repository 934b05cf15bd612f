"""Fractals compared with recursion over single points."""

import itertools
import math

import pytest
import torch
from given import rng

from adautomix.mixing.fractals import attractor_points, draw_systems, render_fractals

# The Sierpinski triangle: three maps that halve distances, to three corners.
CORNERS = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
SIERPINSKI = torch.tensor([[[[0.5, 0.0, x / 2], [0.0, 0.5, y / 2]] for x, y in CORNERS]])


def sierpinski_by_hand(depth: int) -> list[tuple[float, float]]:
    """Addresses in base 3 give points whose binary digits are those of the corners."""
    points = []
    for word in itertools.product(CORNERS, repeat=depth):
        x = sum(corner[0] / 2 ** (i + 1) for i, corner in enumerate(word))
        y = sum(corner[1] / 2 ** (i + 1) for i, corner in enumerate(word))
        points.append((x, y))
    return sorted(points)


@pytest.mark.parametrize("depth", [1, 3])
def test_points_of_the_sierpinski_triangle(depth: int) -> None:
    points = attractor_points(SIERPINSKI, depth)[0].tolist()
    assert sorted(map(tuple, points)) == sierpinski_by_hand(depth)


def test_brightness_counts_the_points_of_each_pixel() -> None:
    picture = render_fractals(SIERPINSKI, 8, 6)[0]
    points = sierpinski_by_hand(4)  # 81 points for 48 pixels
    largest = max(x for x, _ in points)
    counts = [[0] * 6 for _ in range(8)]
    for x, y in points:
        counts[round(y / largest * 7)][round(x / largest * 5)] += 1
    brightest = math.log1p(max(map(max, counts)))
    expected = [[math.log1p(count) / brightest for count in row] for row in counts]
    torch.testing.assert_close(picture, torch.tensor(expected))


def test_random_systems_are_contractions_with_the_stated_scales() -> None:
    systems = draw_systems(200, rng())
    scales = torch.linalg.svdvals(systems[..., :2])
    assert scales.min() >= 0.3 - 1e-5
    assert scales.max() <= 0.7 + 1e-5
    determinants = torch.linalg.det(systems[..., :2])
    assert 0.4 < (determinants < 0).float().mean() < 0.6
    assert systems[..., 2].abs().max() <= 1


def test_points_lie_on_the_attractor() -> None:
    """The attractor is the union of its images: points of depth 3 are among those of depth 4."""
    systems = draw_systems(3, rng(2))
    few, many = attractor_points(systems, 3), attractor_points(systems, 4)
    nearest = (few[:, :, None] - many[:, None]).abs().amax(dim=3).amin(dim=2)
    assert nearest.max() < 1e-5


def test_pictures_fill_the_image_and_differ() -> None:
    pictures = render_fractals(draw_systems(8, rng(3)), 32, 32)
    assert pictures.shape == (8, 32, 32)
    assert pictures.amin() == 0
    assert pictures.amax(dim=(1, 2)).eq(1).all()
    for side in (0, 31):
        assert pictures[:, side].amax(dim=1).gt(0).all()
        assert pictures[:, :, side].amax(dim=1).gt(0).all()
    assert len(pictures.flatten(1).unique(dim=0)) == 8
