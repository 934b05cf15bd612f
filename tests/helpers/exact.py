"""Exact solutions of small labeling problems, and the energy of labelings."""

import itertools
import math
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor

from adautomix.mixing.solvers import Chessboard


def level_energy(levels: Tensor, slopes: Tensor, weights: Tensor) -> Tensor:
    """The energy that `cut_levels` minimizes, term by term in float64, `[M]`."""
    count = slopes.shape[1]
    paid = (torch.arange(count)[:, None, None] < levels[:, None]) * slopes.double()
    down = (levels[:, 1:] - levels[:, :-1]).double() / count
    right = (levels[:, :, 1:] - levels[:, :, :-1]).double() / count
    seams = (weights[:, 0, :-1] * down**2).sum((1, 2)) + (weights[:, 1, :, :-1] * right**2).sum(
        (1, 2)
    )
    return paid.sum((1, 2, 3)) + seams


def exact_levels(slopes: Tensor, weights: Tensor) -> Tensor:
    """Minimum cuts of Ishikawa's graph, which has one node per level of each cell.

    A node is on the source's side if the cell is above that level.
    """
    return torch.stack([exact_level(s, w) for s, w in zip(slopes, weights, strict=True)])


def exact_level(slopes: Tensor, weights: Tensor, scale: float = 1e8) -> Tensor:
    count, height, width = slopes.shape
    cost, weight = slopes.double().numpy().copy(), weights.double().numpy() / count**2
    source, sink = cost.size, cost.size + 1
    node = np.arange(cost.size).reshape(cost.shape)
    arcs: list[Any] = []
    steps = 2 * np.arange(count) + 1 - 2 * count
    for y, x in itertools.product(range(height), range(width)):
        for towards, (v, u) in enumerate([(y + 1, x), (y, x + 1)]):
            if v == height or u == width:
                continue
            w = weight[towards, y, x]
            # (a - b)² = a² + b² - 2 Σ x_k x'_l, and x x' = x - x (1 - x').
            cost[:, y, x] += w * steps
            cost[:, v, u] += w * (steps + 2 * count)
            for k, m in itertools.product(range(count), repeat=2):
                arcs.append((node[k, y, x], node[m, v, u], 2 * w))
    for (k, y, x), value in np.ndenumerate(cost):
        arcs.append((node[k, y, x], sink, value) if value > 0 else (source, node[k, y, x], -value))
        if k:  # above step k only if above step k - 1
            arcs.append((node[k, y, x], node[k - 1, y, x], 10.0))
    tails, heads, values = zip(*arcs, strict=True)
    capacities = np.minimum(np.round(np.array(values) * scale), 2**31 - 1).astype(np.int32)
    graph = csr_matrix((capacities, (tails, heads)), shape=(sink + 1, sink + 1))
    rest = graph - maximum_flow(graph, source, sink).flow
    rest.data[rest.data < 0] = 0
    rest.eliminate_zeros()
    above = np.zeros(sink + 1, dtype=bool)
    above[breadth_first_order(rest, source, return_predecessors=False)] = True
    return torch.from_numpy(above[: cost.size].reshape(cost.shape).sum(axis=0))


def label_energy(labels: Tensor, unary: Tensor, distance: Tensor, weight: float) -> Tensor:
    """`Σ_i unary + weight Σ_{i ~ j} distance` on a square grid, `[P]`."""
    side = math.isqrt(unary.shape[2])
    grid = labels.view(-1, side, side)
    rows = torch.arange(len(grid))[:, None, None]
    seams = distance[rows, grid[:, 1:], grid[:, :-1]].sum((1, 2))
    seams = seams + distance[rows, grid[:, :, 1:], grid[:, :, :-1]].sum((1, 2))
    return unary.gather(1, labels[:, None])[:, 0].sum(dim=1) + weight * seams


def exact_label(unary: Tensor, distance: Tensor, weight: float) -> Tensor:
    """The optimal labels of one grid, by dynamic programming over labelings of a row of cells."""
    count, cells = unary.shape
    side = math.isqrt(cells)
    best, choices = torch.zeros([count] * side), []
    for cell in range(cells):
        y, x = divmod(cell, side)
        above = best.movedim(x, -1)[..., None] + (weight if y else 0) * distance
        value, choice = above.min(dim=-2)
        if x:
            shape = [count if axis in (x - 1, side - 1) else 1 for axis in range(side)]
            value = value + weight * distance.view(shape)
        best = (value + unary[:, cell]).movedim(-1, x)
        choices.append(choice)
    row = [int(label) for label in torch.unravel_index(best.argmin(), best.shape)]
    labels = [0] * cells
    for cell in reversed(range(cells)):
        x = cell % side
        labels[cell] = row.pop(x)
        row.insert(x, int(choices[cell][(*row, labels[cell])]))
    return torch.tensor(labels)


def exact_labels(
    unary: Tensor, distance: Tensor, grid: Chessboard, weight: float, iterations: int
) -> Tensor:
    """`exact_label` of each grid, with the signature of `anneal_labels`."""
    pairs = zip(unary, distance, strict=True)
    return torch.stack([exact_label(u, d, weight) for u, d in pairs])
