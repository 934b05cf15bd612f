"""Fractal images from random iterated function systems, for a whole batch on any device.

An iterated function system is K contractions x ↦ A_k x + b_k of the plane. Its attractor, the one
compact set that is the union of its own K images, is self-similar (Barnsley, "Fractals Everywhere",
1988). Starting from the fixed point of one of the maps, all K^d compositions of d maps give K^d
points that lie on the attractor exactly; how many of them fall on a pixel is its brightness.
"""

import math

import torch
from torch import Tensor

MAPS = 4  # K
SCALES = (0.3, 0.7)  # range of the singular values of A_k


def draw_systems(count: int, generator: torch.Generator) -> Tensor:
    """Draw random contractions: rotations, scales of both axes, possibly mirrored, and shifts.

    Args:
        count: number of systems.
        generator: a CPU generator.

    Returns:
        A and b side by side, float32 `[count, 4, 2, 3]`.
    """
    angles = 2 * math.pi * torch.rand(2, count, MAPS, generator=generator)
    low, high = SCALES
    scales = low + (high - low) * torch.rand(count, MAPS, 2, generator=generator)
    mirrored = torch.rand(count, MAPS, generator=generator) < 0.5
    scales[..., 1] = torch.where(mirrored, -scales[..., 1], scales[..., 1])
    shift = 2 * torch.rand(count, MAPS, 2, 1, generator=generator) - 1
    first, second = (_rotations(angle) for angle in angles)
    return torch.cat([first @ (scales[..., None] * second), shift], dim=3)


def _rotations(angles: Tensor) -> Tensor:
    """Rotation matrices `[..., 2, 2]` of angles `[...]` in radians."""
    cos, sin = angles.cos(), angles.sin()
    matrices: Tensor = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
    return matrices


def attractor_points(systems: Tensor, depth: int) -> Tensor:
    """Compute all compositions of `depth` maps at the fixed point of the first map.

    Args:
        systems: A and b side by side, `[M, K, 2, 3]`.
        depth: number of maps that are composed.

    Returns:
        Points of the attractors, `[M, K^depth, 2]`.
    """
    matrix, shift = systems[..., :2], systems[..., 2]
    points = _fixed_point(matrix[:, 0], shift[:, 0])[:, None]
    for _ in range(depth):
        moved = points[:, None] @ matrix.mT + shift[:, :, None]
        points = moved.flatten(1, 2)
    return points


def _fixed_point(matrix: Tensor, shift: Tensor) -> Tensor:
    """Solve x = A x + b for `[M, 2, 2]` and `[M, 2]` by Cramer's rule: `[M, 2]`."""
    (a, b), (c, d) = ((row[:, 0], row[:, 1]) for row in matrix.unbind(dim=1))
    x, y = shift.unbind(dim=1)
    determinant = (1 - a) * (1 - d) - b * c
    return torch.stack([(1 - d) * x + b * y, c * x + (1 - a) * y], dim=1) / determinant[:, None]


def render_fractals(systems: Tensor, height: int, width: int) -> Tensor:
    """Render attractors, each scaled to fill the image.

    Brightness is log(1 + number of points), relative to the brightest pixel. There are at least
    as many points as pixels.

    Args:
        systems: A and b side by side, `[M, K, 2, 3]`.
        height: H.
        width: W.

    Returns:
        Float32 `[M, H, W]`, 0 to 1.
    """
    depth = max(1, math.ceil(math.log(height * width, systems.shape[1])))
    points = attractor_points(systems.float(), depth)
    low, high = points.aminmax(dim=1, keepdim=True)
    sides = points.new_tensor([width - 1, height - 1])
    places = ((points - low) / (high - low).clamp_min(1e-6) * sides).round().long()
    pixels = places[..., 1] * width + places[..., 0]
    counts = points.new_zeros(len(points), height * width)
    counts.scatter_add_(1, pixels, torch.ones_like(points[..., 0]))  # exact: small integers
    bright = counts.log1p()
    pictures: Tensor = (bright / bright.amax(dim=1, keepdim=True)).unflatten(1, (height, width))
    return pictures
