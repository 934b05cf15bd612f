"""PuzzleMix, Co-Mixup, Saliency Grafting, AlignMix, and the solvers that they rest on."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods import comixup
from adautomix.methods.alignmix import (
    AlignMix,
    AlignMixDraw,
    AlignMixSettings,
    mix_aligned,
    transport_plan,
)
from adautomix.methods.base import (
    Method,
    Mixed,
    Sources,
    cells_to_pixels,
    draw_partners,
    soft_targets,
)
from adautomix.methods.comixup import CoMixup, CoMixupSettings, Problem
from adautomix.methods.puzzlemix import (
    PuzzleMix,
    PuzzleMixDraw,
    PuzzleMixSettings,
    cell_sums,
    distances,
    mask_energy,
    seam_costs,
    transport,
)
from adautomix.methods.saliencygrafting import (
    SaliencyGrafting,
    SaliencyGraftingDraw,
    SaliencyGraftingSettings,
    calibrated_lam,
    draw_saliencygrafting,
    feature_saliency,
    salient_cells,
)
from adautomix.methods.solvers import (
    Chessboard,
    anneal_labels,
    chessboard,
    cut_levels,
    swap_places,
)
from adautomix.models import Classifier, build_model

CLASSES = 5
NOBODY: Any = None  # in the place of a teacher


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 6, height: int = 16, width: int = 16) -> tuple[Tensor, Tensor]:
    """Random images, and a label that no other image has."""
    return torch.rand(count, 3, height, width, generator=rng(1)), torch.eye(count)


def blobs(count: int, side: int = 32, seed: int = 0) -> Tensor:
    """Saliency in a few peaks, as that of a trained network is; sums to 1."""
    generator = rng(seed)
    smooth = F.interpolate(torch.randn(count, 1, 6, 6, generator=generator), side, mode="bicubic")
    rough = torch.randn(count, side, side, generator=generator)
    maps = (1.5 * smooth[:, 0] + 0.4 * rough).exp()
    return maps / maps.sum(dim=(1, 2), keepdim=True)


def flat(count: int, side: int = 32, seed: int = 0) -> Tensor:
    """Saliency that is noise, as that of a network at its start is; sums to 1."""
    maps = torch.rand(count, side, side, generator=rng(seed))
    return maps / maps.sum(dim=(1, 2), keepdim=True)


def network(name: str = "resnet18", **options: Any) -> Classifier:
    return build_model(
        name,
        CLASSES,
        stem="standard" if name.startswith("vit") else "cifar",
        width=0.125 if name == "resnet18" else 0.25,
        image_size=16,
        options=options,
        generator_seed=0,
    )


def rows_of(mixed: Mixed, rows: slice) -> list[Tensor]:
    assert mixed.masks is not None
    return [mixed.images[rows], mixed.targets[rows], mixed.lam[rows], mixed.masks[rows]]


# ---------------------------------------------------------------------- minimum cuts


def level_energy(levels: Tensor, slopes: Tensor, weights: Tensor) -> Tensor:
    """The energy that `cut_levels` minimises, term by term in float64, `[M]`."""
    count = slopes.shape[1]
    paid = (torch.arange(count)[:, None, None] < levels[:, None]) * slopes.double()
    down = (levels[:, 1:] - levels[:, :-1]).double() / count
    right = (levels[:, :, 1:] - levels[:, :, :-1]).double() / count
    seams = (weights[:, 0, :-1] * down**2).sum((1, 2)) + (weights[:, 1, :, :-1] * right**2).sum(
        (1, 2)
    )
    return paid.sum((1, 2, 3)) + seams


def exact_levels(slopes: Tensor, weights: Tensor) -> Tensor:
    """Minimum cuts of Ishikawa's graph: a node for each step of each cell, on the source's side
    where the cell is above it."""
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


def random_cut(
    count: int, levels: int, side: int, seed: int = 0, coupling: float = 1.0
) -> tuple[Tensor, Tensor]:
    generator = rng(seed)
    slopes = torch.randn(count, levels, side, side, generator=generator).sort(dim=1).values
    weights = coupling * torch.rand(count, 2, side, side, generator=generator)
    weights[:, 0, -1], weights[:, 1, :, -1] = 0, 0
    return slopes, weights


def test_the_exact_cut_is_exact() -> None:
    """Against all 3⁹ labellings."""
    slopes, weights = random_cut(4, levels=2, side=3)
    every = torch.tensor(list(itertools.product(range(3), repeat=9))).view(-1, 3, 3)
    for s, w in zip(slopes, weights, strict=True):
        least = level_energy(every, s[None], w[None]).min()
        found = exact_levels(s[None], w[None])
        assert level_energy(found, s[None], w[None]).item() == pytest.approx(least.item(), abs=1e-6)


@pytest.mark.parametrize(("levels", "side"), [(1, 16), (1, 3), (2, 8), (3, 5)])
@pytest.mark.parametrize("coupling", [0.3, 2.0])
def test_cuts_converge_to_the_minimum(levels: int, side: int, coupling: float) -> None:
    slopes, weights = random_cut(4, levels, side, coupling=coupling)
    found = level_energy(cut_levels(slopes, weights, 800), slopes, weights)
    exact = level_energy(exact_levels(slopes, weights), slopes, weights)
    assert (found - exact).max() < 1e-4 * side**2
    assert (found - exact).min() > -1e-5


def test_cuts_of_a_wide_grid() -> None:
    slopes, weights = random_cut(2, levels=2, side=6)
    slopes, weights = slopes[:, :, :3], weights[:, :, :3].clone()
    weights[:, 0, -1] = 0
    found = level_energy(cut_levels(slopes, weights, 400), slopes, weights)
    exact = level_energy(exact_levels(slopes, weights), slopes, weights)
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=0)


def puzzle_energy(
    saliency: Tensor, blocks: int, method: PuzzleMix
) -> tuple[Tensor, Tensor, PuzzleMixDraw]:
    """Slopes and weights as PuzzleMix has them, on smooth images."""
    count = len(saliency)
    images = F.interpolate(torch.rand(count, 3, 8, 8, generator=rng(9)), 32, mode="bilinear")
    share = torch.rand(count, generator=rng(8))
    draw = PuzzleMixDraw(
        draw_partners(count, rng(7)), torch.stack([share, 1 - share], dim=1), blocks
    )
    s = method.settings
    beta = s.beta / (16 * blocks)
    seams = seam_costs(images, draw.perm, blocks, s.seam) * (beta * s.gamma)
    lost = cell_sums(saliency, blocks)[draw.perm]
    energy = mask_energy(lost, seams, share, beta, s.eta, s.labels - 1)
    return *energy, draw


@pytest.mark.parametrize(
    ("maps", "blocks", "mean", "worst"),
    [
        (blobs, 2, 0.001, 0.01),
        (blobs, 4, 0.001, 0.02),
        (blobs, 8, 0.001, 0.02),
        (blobs, 16, 0.002, 0.02),
        (flat, 2, 0.001, 0.02),
        (flat, 4, 0.001, 0.02),
        (flat, 8, 0.002, 0.04),
        (flat, 16, 0.003, 0.06),
    ],
)
def test_gap_of_the_masks(
    maps: Callable[..., Tensor], blocks: int, mean: float, worst: float
) -> None:
    """The bounds of the card: how much costlier masks are than the costliest need be."""
    method = PuzzleMix(PuzzleMixSettings(), num_classes=CLASSES)
    slopes, weights, _ = puzzle_energy(maps(16 if blocks == 16 else 32), blocks, method)
    found = cut_levels(slopes, weights, method.settings.iterations * max(blocks, 4))
    exact = exact_levels(slopes, weights)
    gap = level_energy(found, slopes, weights) - level_energy(exact, slopes, weights)
    assert gap.mean() < mean
    assert gap.max() < worst
    assert gap.min() > -1e-5
    nothing = level_energy(torch.zeros_like(exact), slopes, weights)
    assert (nothing - level_energy(exact, slopes, weights)).mean() > 0.2, "there was much to gain"


# ---------------------------------------------------------------------- labels


def label_energy(labels: Tensor, unary: Tensor, distance: Tensor, weight: float) -> Tensor:
    """`Σ_i unary + weight Σ_{i ~ j} distance` on a square grid, `[P]`."""
    side = math.isqrt(unary.shape[2])
    grid = labels.view(-1, side, side)
    rows = torch.arange(len(grid))[:, None, None]
    seams = distance[rows, grid[:, 1:], grid[:, :-1]].sum((1, 2))
    seams = seams + distance[rows, grid[:, :, 1:], grid[:, :, :-1]].sum((1, 2))
    return unary.gather(1, labels[:, None])[:, 0].sum(dim=1) + weight * seams


def exact_label(unary: Tensor, distance: Tensor, weight: float) -> Tensor:
    """The cheapest labels of one grid, cell by cell over all labellings of the last row of them."""
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
    """`exact_label` of each grid, in the place of `anneal_labels`."""
    pairs = zip(unary, distance, strict=True)
    return torch.stack([exact_label(u, d, weight) for u, d in pairs])


def test_the_exact_labels_are_exact() -> None:
    generator = rng(3)
    unary = torch.rand(3, 3, 9, generator=generator)
    distance = torch.rand(3, 3, 3, generator=generator)
    distance = distance + distance.mT
    every = torch.tensor(list(itertools.product(range(3), repeat=9)))
    found = exact_labels(unary, distance, chessboard(3, torch.device("cpu")), 0.2, 0)
    for part in range(3):
        grids = len(every)
        energies = label_energy(
            every,
            unary[part].expand(grids, 3, 9),
            distance[part].expand(grids, 3, 3),
            0.2,
        )
        mine = label_energy(found[part : part + 1], unary[part : part + 1], distance[part:], 0.2)
        assert mine[0].item() == pytest.approx(energies.min().item(), abs=1e-5)


@pytest.mark.parametrize("maps", [blobs, flat])
def test_gap_of_the_labels(maps: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of the card, on the very problems that sweeps of Co-Mixup come upon."""
    gaps: list[Tensor] = []

    def watched(unary: Tensor, distance: Tensor, grid: Any, weight: float, steps: int) -> Tensor:
        found = anneal_labels(unary, distance, grid, weight, steps)
        exact = exact_labels(unary, distance, grid, weight, steps)
        energies = [label_energy(some, unary, distance, weight) for some in (found, exact)]
        gaps.append(energies[0] - energies[1])
        return found

    monkeypatch.setattr(comixup, "anneal_labels", watched)
    label_small_parts(maps, images=5, parts=6)
    gap = torch.cat(gaps)
    assert len(gap) == 4 * 5 * 6
    assert gap.mean() < 0.002
    assert gap.max() < 0.05
    assert gap.min() > -1e-5
    assert (gap < 1e-5).float().mean() > 0.7


def label_small_parts(maps: Callable[..., Tensor], images: int, parts: int) -> Tensor:
    method = CoMixup(CoMixupSettings(part=images), num_classes=CLASSES)
    saliency = maps(images * parts)
    draw = method.draw((images * parts, 3, 32, 32), rng(4), 0)
    peak = torch.randint(24, (images * parts, 2), generator=rng(5))
    return method.shown(draw, saliency=cell_sums(saliency, 4), peak=peak)


def test_one_label_everywhere_where_it_is_cheapest() -> None:
    """Whatever each cell would rather have, neighbours cost more."""
    unary = torch.rand(8, 6, 16, generator=rng()) / 16
    distance = 1 - torch.eye(6).expand(8, 6, 6)
    labels = anneal_labels(unary, distance, chessboard(4, torch.device("cpu")), 10.0, 6)
    assert torch.equal(labels, unary.sum(dim=2).argmin(dim=1)[:, None].expand(8, 16))


# ---------------------------------------------------------------------- places


def place_cost(cost: Tensor, places: Tensor) -> Tensor:
    return cost.gather(2, places[:, :, None]).sum(dim=(1, 2))


def cheapest_places(cost: Tensor) -> Tensor:
    return torch.stack([torch.from_numpy(linear_sum_assignment(c.numpy())[1]) for c in cost])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rounds", [1, 3, 8, 40])
def test_places_are_a_permutation_and_never_cost_more(rounds: int, ties: bool) -> None:
    cost = torch.rand(30, 12, 12, generator=rng())
    if ties:  # up to rounding: what one side of a pair gains, the other must gain too
        cost = (3 * cost).floor() / 10 + torch.rand(30, 12, 1, generator=rng(1))
    places, before = swap_places(cost, rounds), swap_places(cost, rounds - 1)
    assert torch.equal(places.sort(dim=1).values, torch.arange(12).expand(30, 12))
    assert (place_cost(cost, places) <= place_cost(cost, before) + 1e-5).all()
    still = cost.diagonal(dim1=1, dim2=2).sum(dim=1)
    assert (still - place_cost(cost, places)).mean() > 0.5


@pytest.mark.parametrize(
    ("cells", "noise", "mean", "worst"),
    [
        (8, False, 0.0005, 0.01),
        (16, False, 0.0005, 0.01),
        (8, True, 0.01, 0.03),
        (16, True, 0.01, 0.03),
    ],
)
def test_gap_of_the_transport(cells: int, noise: bool, mean: float, worst: float) -> None:
    """The bounds of the card: on masks as PuzzleMix finds them, and on any."""
    method = PuzzleMix(PuzzleMixSettings(), num_classes=CLASSES)
    slopes, weights, draw = puzzle_energy(blobs(24), 8, method)
    mask = cut_levels(slopes, weights, 32) > 0
    if noise:
        mask = torch.rand(mask.shape, generator=rng(2)) < 0.5
    seen = cells_to_pixels(mask, cells, cells).flatten(1)[:, None]
    saliency = cell_sums(blobs(24), cells)[draw.perm[:, 0]].flatten(1)
    costs = seen * (0.8 * distances(cells, torch.device("cpu")) - saliency[:, :, None])
    exact = place_cost(costs, cheapest_places(costs))
    gap = place_cost(costs, swap_places(costs, 8)) - exact
    gain = costs.diagonal(dim1=1, dim2=2).sum(dim=1) - exact
    assert gap.min() > -1e-5
    assert gap.mean() < mean
    assert gap.max() < worst
    assert gap.mean() < 0.1 * gain.mean()


# ---------------------------------------------------------------------- PuzzleMix


def puzzlemix(**settings: Any) -> PuzzleMix:
    return PuzzleMix(PuzzleMixSettings(**settings), num_classes=CLASSES)


def puzzle_draw(count: int, blocks: int, share: float = 0.5) -> PuzzleMixDraw:
    """Each image with the one before it."""
    rows = torch.arange(count)
    lam = torch.tensor([share, 1 - share]).expand(count, 2)
    return PuzzleMixDraw(torch.stack([rows, rows.roll(1)], dim=1), lam, blocks)


def puzzle(
    method: PuzzleMix, images: Tensor, targets: Tensor, draw: PuzzleMixDraw, maps: Tensor
) -> Mixed:
    """The mix under saliency that is given pixel by pixel."""
    cells = draw.blocks * method.pieces(images, draw)
    return method.mix(images, targets, draw, saliency=cell_sums(maps, cells))


def energy_by_hand(
    z: list[list[float]], images: list[Any], maps: list[Any], blocks: int, share: float, s: Any
) -> float:
    """The energy of one mask in plain floats: images `[2, C, H, W]`, saliency `[2, H, W]`."""
    size, levels = len(maps[0]) // blocks, s.labels - 1
    beta = s.beta / (16 * blocks)

    def lost(source: int, y: int, x: int) -> float:
        rows = maps[source][y * size : (y + 1) * size]
        return float(sum(sum(row[x * size : (x + 1) * size]) for row in rows))

    def seam(a: int, b: int, y: int, x: int, down: bool) -> float:
        """Mean absolute step between the pooled pixels on both sides of a seam."""
        pool = math.gcd(s.seam, size)
        steps = []
        for channel in range(3):
            for along in range(0, size, pool):
                sides = []
                for source, first in ((a, size - pool), (b, size)):
                    values = []
                    for i, j in itertools.product(range(pool), repeat=2):
                        across, beside = first + i, along + j
                        v = y * size + (across if down else beside)
                        u = x * size + (beside if down else across)
                        values.append(images[source][channel][v][u])
                    sides.append(sum(values) / len(values))
                steps.append(abs(sides[0] - sides[1]))
        return float(s.pixel_std * sum(steps) / len(steps))

    total = 0.0
    for y, x in itertools.product(range(blocks), repeat=2):
        total += z[y][x] * lost(1, y, x) + (1 - z[y][x]) * lost(0, y, x)
        prior = scipy.stats.binom.logpmf(round(z[y][x] * levels), levels, share)
        total -= s.eta / blocks**2 * prior
        for v, u, down in ((y + 1, x, True), (y, x + 1, False)):
            if v == blocks or u == blocks:
                continue
            here, there = z[y][x], z[v][u]
            total += beta * (here - there) ** 2
            # Exact where the mask is 0 or 1; in between, sides are mixed and steps are squared.
            costs = {
                (a, b): beta * s.gamma * seam(1 - a, 1 - b, y, x, down)
                for a, b in itertools.product(range(2), repeat=2)
            }
            if {here, there} <= {0, 1}:
                total += costs[int(here), int(there)]
            else:
                apart = (costs[1, 0] + costs[0, 1] - costs[0, 0] - costs[1, 1]) / 2
                for own, first in ((here, True), (there, False)):
                    for side in range(2):
                        part = own if side else 1 - own
                        ends = [costs[(side, e) if first else (e, side)] for e in range(2)]
                        total += part * sum(ends) / 2
                total += apart * (here - there) ** 2 - (costs[0, 1] + costs[1, 0]) / 2
    return total


@pytest.mark.parametrize(("blocks", "labels"), [(2, 3), (4, 2), (4, 3), (2, 4)])
def test_energy_of_a_mask_by_hand(blocks: int, labels: int) -> None:
    """Differences between masks, as a constant is nobody's."""
    method = puzzlemix(labels=labels)
    images, maps = batch(2)[0], blobs(2, 16)
    seams = seam_costs(images, torch.tensor([[0, 1]]), blocks, method.settings.seam)
    s, beta = method.settings, method.settings.beta / (16 * blocks)
    slopes, weights = mask_energy(
        cell_sums(maps, blocks)[None],
        seams * (beta * s.gamma * s.pixel_std),
        torch.tensor([0.3]),
        beta,
        s.eta,
        labels - 1,
    )
    levels = torch.randint(labels, (12, blocks, blocks), generator=rng(3))
    levels[:4] = (levels[:4] > 0) * (labels - 1)
    energies = level_energy(levels, slopes, weights)
    by_hand = [
        energy_by_hand(
            (level / (labels - 1)).tolist(), images.tolist(), maps.tolist(), blocks, 0.3, s
        )
        for level in levels
    ]
    differences = torch.tensor(by_hand, dtype=torch.float64)
    torch.testing.assert_close(
        energies - energies[0], differences - differences[0], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("blocks", [2, 4, 8, 16])
@pytest.mark.parametrize("moving", [False, True])
def test_puzzlemix_block_by_block(blocks: int, moving: bool) -> None:
    images, targets = batch()
    method, maps = puzzlemix(transport=moving, transport_cost=0.1), blobs(6, 16)
    draw = puzzle_draw(6, blocks, 0.6)
    mixed = puzzle(method, images, targets, draw, maps)
    cells = blocks * method.pieces(images, draw)
    saliency = cell_sums(maps, cells)[draw.perm]
    mask = cells_to_pixels(method.mask(images, saliency, draw), cells, cells)
    shares = torch.stack([mask, 1 - mask], dim=1)
    shown = transport(saliency, shares, 0.1)
    if not moving:
        shown = torch.arange(cells**2).expand_as(shown)
    size, moved = 16 // cells, 0
    for b, place in itertools.product(range(6), range(cells**2)):
        y, x = divmod(place, cells)
        here = slice(y * size, (y + 1) * size), slice(x * size, (x + 1) * size)
        expected = torch.zeros(3, size, size)
        for n, source in enumerate((b, b - 1)):
            v, u = divmod(int(shown[b, n, place]), cells)
            moved += (v, u) != (y, x)
            block = images[source, :, v * size : (v + 1) * size, u * size : (u + 1) * size]
            expected += float(shares[b, n, y, x]) * block
        torch.testing.assert_close(mixed.images[b, :, *here], expected)
        assert mixed.masks is not None
        assert (mixed.masks[b, 0, *here] == mask[b, y, x]).all()
    assert (moved > 0) == moving
    torch.testing.assert_close(mixed.lam[:, 0], mask.mean(dim=(1, 2)))
    for b in range(6):
        label = [0.0] * 6
        label[b], label[b - 1] = mixed.lam[b].tolist()
        assert mixed.targets[b].tolist() == pytest.approx(label, abs=1e-6)


def test_share_of_puzzlemix_is_that_of_its_pixels() -> None:
    """White and black images: transport moves blocks, not shares."""
    images = torch.zeros(8, 1, 16, 16)
    images[::2] = 1
    mixed = puzzle(puzzlemix(), images, torch.eye(8), puzzle_draw(8, 4), blobs(8, 16))
    white = images[mixed.perm].mean(dim=(2, 3, 4))
    torch.testing.assert_close(mixed.images.mean(dim=(1, 2, 3)), (mixed.lam * white).sum(dim=1))
    assert len(mixed.lam[:, 0].unique()) > 2, "each mix has its own"


def test_the_mask_takes_what_is_salient() -> None:
    images = torch.rand(1, 3, 16, 16, generator=rng()).expand(2, -1, -1, -1)
    maps = torch.full((2, 16, 16), 1e-6)
    maps[0, :, :8], maps[1, :, 8:] = 1 / 128, 1 / 128
    draw = puzzle_draw(2, 4)
    mask = puzzlemix().mask(images, cell_sums(maps, 4)[draw.perm], draw)
    left = torch.tensor([1.0, 1, 0, 0]).expand(4, 4)
    assert torch.equal(mask, torch.stack([left, 1 - left]))


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_puzzlemix_of_all_or_nothing_is_an_image(share: float) -> None:
    """A prior that is certain outweighs what is salient."""
    images, targets = batch()
    method = puzzlemix(transport=False, eta=5.0)
    mixed = puzzle(method, images, targets, puzzle_draw(6, 4, share), blobs(6, 16))
    expected = torch.arange(6) if share else torch.arange(6).roll(1)
    assert torch.equal(mixed.images, images[expected])
    assert torch.equal(mixed.targets, targets[expected])


def test_lam_pulls_at_the_mask() -> None:
    images, _ = batch(12)
    means = []
    for share in (0.1, 0.35, 0.65, 0.9):
        draw = puzzle_draw(12, 4, share)
        saliency = cell_sums(blobs(12, 16), 4)[draw.perm]
        means.append(puzzlemix(eta=2.0).mask(images, saliency, draw).mean().item())
    assert means == pytest.approx([0.1, 0.35, 0.65, 0.9], abs=0.15)


def test_smoothness_makes_masks_constant() -> None:
    images, _ = batch(12)
    draw = puzzle_draw(12, 4)
    saliency = cell_sums(blobs(12, 16), 4)[draw.perm]
    rough = puzzlemix(beta=0.0).mask(images, saliency, draw).flatten(1)
    smooth = puzzlemix(beta=100.0, iterations=100).mask(images, saliency, draw).flatten(1)
    assert (rough.std(dim=1) > 0.2).all()
    assert (smooth == smooth[:, :1]).all()


def test_transport_brings_what_is_salient_into_sight() -> None:
    """The one salient block is unseen: it takes the nearest place that is seen, and only that."""
    saliency = torch.full((1, 2, 4, 4), 1e-3)
    saliency[0, 0, 1, 0] = 1
    shares = torch.zeros(1, 2, 4, 4)
    shares[0, 0, :, 2:] = 1
    shown = transport(saliency, shares, 0.8)[0]
    assert shown[0, 6] == 4, "row 1: from column 0 to column 2"
    assert shown[0, 4] == 6
    rest = torch.ones(16, dtype=torch.bool)
    rest[[4, 6]] = False
    assert torch.equal(shown[0, rest], torch.arange(16)[rest])
    assert torch.equal(shown[1], torch.arange(16)), "nothing of the second is seen"


def test_finer_blocks_to_move() -> None:
    """As the authors' 4 pixels of 32; at most 16 a side for larger images."""
    method = puzzlemix()
    found = {
        size: [
            n * method.pieces(torch.empty(1, 3, size, size), puzzle_draw(2, n))
            for n in (2, 4, 8, 16)
        ]
        for size in (32, 64, 224)
    }
    assert found == {32: [8, 8, 8, 16], 64: [16, 16, 16, 16], 224: [16, 16, 16, 16]}


def test_draws_of_puzzlemix() -> None:
    method = puzzlemix(alpha=0.7)
    draws = [method.draw((4, 3, 32, 32), rng(seed), 0) for seed in range(400)]
    counts = [sum(draw.blocks == n for draw in draws) for n in (2, 4, 8, 16)]
    assert sum(counts) == 400
    assert scipy.stats.chisquare(counts).pvalue > 0.001
    lam = torch.stack([draw.lam[0, 0] for draw in draws])
    assert all((draw.lam == draw.lam[0]).all() for draw in draws)
    assert scipy.stats.kstest(lam.numpy(), scipy.stats.beta(0.7, 0.7).cdf).pvalue > 0.001
    assert {method.draw((2, 3, 12, 20), rng(seed), 0).blocks for seed in range(40)} == {2, 4}
    own = puzzlemix(per_sample=True).draw((9, 3, 32, 32), rng(), 0)
    assert len(own.lam[:, 0].unique()) == 9


def test_puzzlemix_of_an_odd_image() -> None:
    with pytest.raises(UsageError, match="15 x 16 pixels"):
        puzzlemix().draw((4, 3, 15, 16), rng(), 0)


@pytest.mark.parametrize("moving", [False, True])
def test_some_of_the_puzzles(moving: bool) -> None:
    images, targets = batch(7, 24, 16)
    method, maps = puzzlemix(transport=moving), torch.rand(7, 24, 16, generator=rng(4))
    draw = puzzle_draw(7, 4)
    whole = puzzle(method, images, targets, draw, maps)
    part = puzzle(method, images, targets, draw.rows(slice(1, 4)), maps)
    for mine, theirs in zip(rows_of(whole, slice(1, 4)), rows_of(part, slice(None)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_puzzlemix_of_an_image_with_itself() -> None:
    images, targets = batch(1)
    draw = puzzlemix().draw(images.shape, rng(), 0)
    mixed = puzzle(puzzlemix(transport=False), images, targets, draw, blobs(1, 16))
    torch.testing.assert_close(mixed.images, images)
    torch.testing.assert_close(mixed.targets, targets)


# ---------------------------------------------------------------------- Co-Mixup


def co_settings(**settings: Any) -> CoMixupSettings:
    return CoMixupSettings(**settings)


def published_sweeps(unary: Tensor, likeness: Tensor, start: Tensor, s: CoMixupSettings) -> Tensor:
    """The joint labelling of one part, as published, one mix and one label at a time.

    Args:
        unary: `[m, N]`.
        likeness: `[m, m]`.
        start: `[m, N]`.
        s: coefficients.
    """
    images, cells = unary.shape
    side = math.isqrt(cells)
    shown = F.one_hot(start.long(), images).float()
    twins: dict[tuple[int, int], float] = {}
    for sweep in range(s.sweeps):
        if sweep == s.sweeps - 1 and sweep > 0 and s.resolve:
            sets = [tuple(torch.nonzero(row).flatten().tolist()) for row in shown.sum(dim=1)]
            for a, b in itertools.combinations(range(images), 2):
                if sets[a] == sets[b] and len(sets[a]) > 1:
                    twins[a, sets[a][0]] = 1
                    twins[b, sets[b][1]] = 1
        for mix in range(images):
            others = shown.sum(dim=(0, 1)) - shown[mix].sum(dim=0)
            met = likeness @ others
            labels = [F.one_hot(torch.tensor(k), images).float() for k in range(images)]
            costs = []
            for k in range(images):
                crowd = float(met[k]) if met[k] > s.threshold * cells else 0.0
                twin = twins.get((mix, k), 0.0)
                costs.append(unary[k] + (2 * s.gamma * crowd + s.gamma * twin) / cells)
            counts = shown[mix].sum(dim=0)
            used = counts.topk(min(3, images)).indices[: int((counts > 0).sum())].tolist()
            pairs = list(itertools.combinations(used, 2)) if sweep else []
            for a, b in pairs:
                labels.append((labels[a] + labels[b]) / 2)
                costs.append((costs[a] + costs[b]) / 2 - 5e-4)
            distance = torch.ones(len(labels), len(labels)).fill_diagonal_(0)
            for at, pair in enumerate(pairs, start=images):
                for k in pair:
                    distance[at, k] = distance[k, at] = 0.25
            chosen = exact_label(torch.stack(costs), distance, s.beta / cells)
            shown[mix] = torch.stack([labels[k] for k in chosen.tolist()])
    assert side**2 == cells
    return shown


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gamma": 0.3, "threshold": 0.5},
        {"resolve": False, "omega": 0.3},
        {"sweeps": 2, "beta": 0.1},
    ],
)
def test_comixup_as_published(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With exact labels in the place of annealed ones, all else is the same."""
    monkeypatch.setattr(comixup, "anneal_labels", exact_labels)
    s = co_settings(**settings)
    saliency = cell_sums(blobs(15), 4).flatten(1).view(3, 5, 16)
    peak = torch.randint(24, (3, 5, 2), generator=rng(1))
    likeness = comixup.compatibility(peak, torch.ones(3, 5, dtype=torch.bool), s.omega)
    start = torch.randint(5, (3, 5, 16), generator=rng(2)).to(torch.uint8)
    problem = Problem(-saliency, likeness, torch.ones(3, 5, dtype=torch.bool))
    mine = comixup.label_parts(problem, start, s)
    for part in range(3):
        theirs = published_sweeps(-saliency[part], likeness[part], start[part], s)
        torch.testing.assert_close(mine[part], theirs)
    assert (mine == 0.5).any() == (s.sweeps > 1)


def test_missing_images_leave_the_rest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of 3, filled up to 5, is labelled as a part of 3 is."""
    monkeypatch.setattr(comixup, "anneal_labels", exact_labels)
    s = co_settings(omega=0.2)
    unary = -cell_sums(blobs(3), 4).flatten(1)[None]
    peak = torch.randint(24, (1, 3, 2), generator=rng(1))
    start = torch.randint(3, (1, 3, 16), generator=rng(2))
    there = torch.ones(1, 3, dtype=torch.bool)
    small = Problem(unary, comixup.compatibility(peak, there, s.omega), there)
    more = torch.tensor([[True, True, True, False, False]])
    filled = torch.cat([peak, peak[:, :1], peak[:, :1]], dim=1)
    large = Problem(
        torch.cat([unary, unary[:, :2]], dim=1), comixup.compatibility(filled, more, s.omega), more
    )
    start_large = F.pad(start, (0, 0, 0, 2))
    labels = comixup.label_parts(large, start_large, s)
    torch.testing.assert_close(labels[:, :3, :, :3], comixup.label_parts(small, start, s))
    assert labels[:, :3, :, 3:].abs().max() == 0
    assert labels[:, 3:].abs().max() == 0


def test_compatibility_by_hand() -> None:
    peak = torch.tensor([[[0, 0], [3, 4], [10, 2]]])
    found = comixup.compatibility(peak, torch.ones(1, 3, dtype=torch.bool), 0.1)[0]
    far = np.array([[0, 7, 12], [7, 0, 9], [12, 9, 0]])
    expected = 0.9 * np.eye(3) + 0.1 * far / far.sum() * 3
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_comixup_block_by_block() -> None:
    images, targets = batch(7)
    method = CoMixup(co_settings(part=4), num_classes=CLASSES)
    draw = method.draw(images.shape, rng(), 0)
    seen = {
        "saliency": cell_sums(blobs(7, 16), 4),
        "peak": torch.randint(9, (7, 2), generator=rng(1)),
    }
    mixed = method.mix(images, targets, draw, **seen)
    shown = method.shown(draw, **seen)
    assert mixed.masks is not None
    for b, cell in itertools.product(range(7), range(16)):
        y, x = divmod(cell, 4)
        here = slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4)
        expected = torch.zeros(3, 4, 4)
        for n, source in enumerate(draw.perm[b].tolist()):
            expected += float(shown[b, cell, n]) * images[source, :, *here]
            assert (mixed.masks[b, n, *here] == shown[b, cell, n]).all()
        torch.testing.assert_close(mixed.images[b, :, *here], expected)
    torch.testing.assert_close(mixed.lam, mixed.masks.mean(dim=(2, 3)))
    for b in range(7):
        label = [0.0] * 7
        for source, lam in zip(draw.perm[b].tolist(), mixed.lam[b].tolist(), strict=True):
            label[source] += lam
        assert mixed.targets[b].tolist() == pytest.approx(label, abs=1e-6)
        assert sum(label) == pytest.approx(1)


def test_mixes_of_a_part_are_salient_and_diverse() -> None:
    shown = label_small_parts(blobs, images=10, parts=3).view(3, 10, 16, 10)
    counts = shown.sum(dim=2)
    kept = counts.sum(dim=1)
    assert (kept - 16).abs().max() < 11, "all images are shown about as much"
    for part in counts > 0:
        assert len(part.unique(dim=0)) >= 9
    assert 1.5 < (counts > 0).sum(dim=2).float().mean() < 4


def test_without_diversity_all_mixes_are_the_same() -> None:
    method = CoMixup(co_settings(part=6, gamma=0, resolve=False, sweeps=1), num_classes=CLASSES)
    draw = method.draw((6, 3, 16, 16), rng(), 0)
    peak = torch.zeros(6, 2, dtype=torch.long)
    shown = method.shown(draw, saliency=cell_sums(blobs(6, 16), 4), peak=peak)
    assert (shown == shown[:1]).all()


@pytest.mark.parametrize(("count", "part"), [(12, 5), (12, 20), (1, 20), (2, 20), (9, 1), (7, 3)])
def test_parts_of_a_batch(count: int, part: int) -> None:
    draw = comixup.draw_comixup(count, part, 4, 2.0, rng())
    size = min(count, part)
    assert draw.perm.shape == (count, size)
    images = []
    for begin in range(0, count, size):
        rows = slice(begin, min(begin + size, count))
        there = draw.prior[begin] > 0
        assert (draw.perm[rows] == draw.perm[begin]).all()
        assert (draw.prior[rows] == draw.prior[begin]).all()
        assert there.sum() == rows.stop - rows.start
        assert draw.prior[begin].sum().item() == pytest.approx(1)
        assert draw.start[begin].max() < there.sum()
        images += draw.perm[begin][there].tolist()
    assert sorted(images) == list(range(count))


def test_priors_are_dirichlet() -> None:
    prior = comixup.draw_comixup(8000, 4, 1, 2.0, rng()).prior[::4]
    first = scipy.stats.beta(2, 6)
    assert scipy.stats.kstest(prior[:, 0].numpy(), first.cdf).pvalue > 0.001
    assert torch.corrcoef(prior.T)[0, 1].item() == pytest.approx(-1 / 3, abs=0.05)


@pytest.mark.parametrize(
    "some", [slice(0, 3), slice(3, 9), slice(4, 5), slice(6, 11), slice(9, 11)]
)
def test_some_of_the_mixes_of_parts(some: slice) -> None:
    """A part is labelled whole, however few of its mixes are asked for."""
    images, targets = batch(11)
    method = CoMixup(co_settings(part=4), num_classes=CLASSES)
    draw = method.draw(images.shape, rng(), 0)
    seen = {
        "saliency": cell_sums(blobs(11, 16), 4),
        "peak": torch.randint(9, (11, 2), generator=rng(1)),
    }
    whole = method.mix(images, targets, draw, **seen)
    part = method.mix(images, targets, draw.rows(some), **seen)
    again = method.mix(images, targets, draw.rows(slice(2, 11)).rows(slice(1, 4)), **seen)
    for mine, theirs in zip(rows_of(whole, some), rows_of(part, slice(None)), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(again.images, whole.images[3:6])


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_loss_of_comixup(weight: float) -> None:
    student = network().eval()
    method = CoMixup(co_settings(part=4, clean_weight=weight), num_classes=CLASSES)
    images, labels = batch(6)[0], torch.arange(6) % CLASSES
    losses = method.losses(images, labels, student, NOBODY, 0)
    targets = soft_targets(labels, CLASSES)
    mixed = method.sample(images, targets, student, NOBODY, method.draw_at(images.shape, 0))
    expected = F.cross_entropy(student(mixed.images), mixed.targets)
    clean = F.cross_entropy(student(images), targets)
    assert losses["mixed"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx((expected + weight * clean).item(), rel=1e-5)
    assert ("clean" in losses) == bool(weight)


def test_comixup_of_an_image_that_cannot_be_cut() -> None:
    with pytest.raises(UsageError, match=r"comixup\.blocks = 4: 16 x 18 pixels"):
        CoMixup(co_settings(), num_classes=CLASSES).draw((4, 3, 16, 18), rng(), 0)


# ---------------------------------------------------------------------- Saliency Grafting


def grafting(**settings: Any) -> SaliencyGrafting:
    return SaliencyGrafting(
        SaliencyGraftingSettings(**settings), num_classes=CLASSES, model=network()
    )


def test_feature_saliency_by_hand() -> None:
    """`|Σ_c f ∂CE/∂f|` of each image alone, from a forward that keeps the map's gradient."""
    student = network().eval()
    images, targets = batch(3)[0], torch.rand(3, CLASSES, generator=rng(2)).softmax(dim=1)
    maps = feature_saliency(student, images, targets, 3)
    assert maps.shape == (3, 4, 4)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(3))
    kept: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    hook = student.get_submodule(student.stages[2]).register_forward_hook(keep)
    for b in range(3):
        F.cross_entropy(student(images[b : b + 1]), targets[b : b + 1]).backward()
        feature = kept.pop()
        assert feature.grad is not None
        raw = (feature * feature.grad).sum(dim=1).abs()[0].detach()
        torch.testing.assert_close(maps[b], raw / raw.sum(), atol=1e-5, rtol=1e-3)
    hook.remove()


def test_looking_leaves_no_trace() -> None:
    student = network().train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    images, labels = batch(4)[0], torch.arange(4) % CLASSES
    methods: list[Method] = [
        grafting(),
        puzzlemix(),
        CoMixup(co_settings(), num_classes=CLASSES),
    ]
    for method in methods:
        draw = method.draw_at(images.shape, 0)
        with torch.no_grad():
            seen = method.look(images, soft_targets(labels, CLASSES), student, NOBODY, draw)
        assert seen
        assert all(len(value) == 4 and not value.requires_grad for value in seen.values())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(weight.grad is None for weight in student.parameters())
    assert all(module.training for module in student.modules())


def test_grafting_cell_by_cell() -> None:
    images, targets = batch(5)
    method = grafting(cells=4)
    rows = torch.arange(5)
    picked = torch.rand(5, 4, 4, generator=rng(3)) < 0.6
    draw = SaliencyGraftingDraw(torch.stack([rows, rows.roll(1)], dim=1), picked)
    saliency = cell_sums(blobs(5, 16), 4)
    mixed = method.mix(images, targets, draw, saliency=saliency)
    assert mixed.masks is not None
    grafts = 0
    for b in range(5):
        partner = saliency[b - 1].double()
        weights = np.exp((partner / partner.max() / 0.2).numpy())
        weights = weights / weights.sum()
        kept = added = 0.0
        for y, x in itertools.product(range(4), repeat=2):
            here = slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4)
            graft = bool(picked[b, y, x]) and weights[y, x] > weights.mean()
            grafts += graft
            source = images[b - 1 if graft else b]
            assert torch.equal(mixed.images[b, :, *here], source[:, *here])
            kept += 0.0 if graft else float(saliency[b, y, x]) ** 2
            added += float(partner[y, x]) ** 2 if graft else 0.0
        kept = math.sqrt(kept) / float(saliency[b].norm())
        added = math.sqrt(added) / float(partner.norm())
        label = [0.0] * 5
        label[b], label[b - 1] = kept / (kept + added), added / (kept + added)
        assert mixed.targets[b].tolist() == pytest.approx(label, abs=1e-5)
    assert 5 < grafts < 40


def test_equal_saliency_counts_by_the_root_of_the_area() -> None:
    grafted = torch.zeros(1, 8, 8, dtype=torch.bool)
    grafted[0, :2, :8] = True
    lam = calibrated_lam(torch.full((1, 2, 8, 8), 1 / 64), grafted)[0]
    assert (lam[1] / lam[0]).item() == pytest.approx(math.sqrt(16 / 48))
    nothing = calibrated_lam(torch.full((1, 2, 8, 8), 1 / 64), torch.zeros_like(grafted))
    assert nothing.tolist() == [[1, 0]]


def test_temperature_says_how_much_is_salient() -> None:
    maps = cell_sums(blobs(20), 8)
    shares = [
        salient_cells(maps, temperature).float().mean().item() for temperature in (0.01, 0.2, 100.0)
    ]
    assert shares[0] == pytest.approx(1 / 64, abs=0.01)
    assert shares[0] < shares[1] < shares[2]
    mean = maps.mean(dim=(1, 2), keepdim=True)
    assert ((maps > mean) == salient_cells(maps, 100.0)).float().mean() > 0.98
    peak = maps.flatten(1).argmax(dim=1)
    assert salient_cells(maps, 0.01).flatten(1).gather(1, peak[:, None]).all()


def test_without_saliency_nothing_is_grafted() -> None:
    images, targets = batch(3)
    mixed = grafting().mix(
        images,
        targets,
        grafting().draw(images.shape, rng(), 0),
        saliency=torch.full((3, 8, 8), 1 / 64),
    )
    assert torch.equal(mixed.images, images)
    assert torch.equal(mixed.targets, targets)


def test_chances_of_a_graft_are_beta() -> None:
    """The number of cells is beta-binomial."""
    counts = draw_saliencygrafting(4000, 8, 2.0, rng()).picked.sum(dim=(1, 2)).double()
    expected = scipy.stats.betabinom(64, 2, 2)
    assert counts.mean().item() == pytest.approx(expected.mean(), rel=0.03)
    assert counts.var().item() == pytest.approx(expected.var(), rel=0.06)


# ---------------------------------------------------------------------- AlignMix


def alignmix(student: Classifier | None = None, **settings: Any) -> AlignMix:
    return AlignMix(AlignMixSettings(**settings), num_classes=CLASSES, model=student or network())


def align_draw(count: int, *, move_first: bool) -> AlignMixDraw:
    rows = torch.arange(count)
    share = torch.rand(count, generator=rng(6))
    lam = torch.stack([share, 1 - share], dim=1)
    perm = torch.stack([rows, rows.roll(1)], dim=1)
    return AlignMixDraw(perm, lam, features=True, move_first=move_first)


def sinkhorn_by_hand(first: Any, second: Any, epsilon: float, iterations: int) -> Any:
    """R = r P in float64, from potentials u and v."""
    cost = ((first[:, None] - second[None]) ** 2).sum(axis=2)
    r = len(first)
    u = v = np.zeros(r)
    for _ in range(iterations):
        u = epsilon * (-math.log(r) - scipy.special.logsumexp((v[None] - cost) / epsilon, axis=1))
        v = epsilon * (
            -math.log(r) - scipy.special.logsumexp((u[:, None] - cost) / epsilon, axis=0)
        )
    return r * np.exp((u[:, None] + v[None] - cost) / epsilon)


@pytest.mark.parametrize("iterations", [1, 5, 60])
def test_plan_by_hand(iterations: int) -> None:
    first, second = torch.rand(2, 3, 9, 6, generator=rng())
    plan = transport_plan(first, second, 0.1, iterations)
    for b in range(3):
        expected = sinkhorn_by_hand(
            first[b].double().numpy(), second[b].double().numpy(), 0.1, iterations
        )
        torch.testing.assert_close(plan[b].double(), torch.from_numpy(expected), atol=1e-4, rtol=0)
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(3, 9), atol=1e-5, rtol=0)


def test_plan_has_uniform_margins() -> None:
    first, second = torch.rand(2, 4, 16, 5, generator=rng())
    plan = transport_plan(first, second, 0.1, 100)
    for axis in (1, 2):
        torch.testing.assert_close(plan.sum(dim=axis), torch.ones(4, 16), atol=1e-3, rtol=0)


def test_alignment_undoes_a_permutation() -> None:
    first = torch.randn(2, 16, 8, generator=rng())
    order = torch.randperm(16, generator=rng(1))
    second = first[:, order]
    plan = transport_plan(first, second, 0.05, 100)
    lam = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    mixed = mix_aligned(first, second, lam, plan, move_first=False)
    torch.testing.assert_close(mixed, first, atol=1e-3, rtol=0)
    mixed = mix_aligned(first, second, lam, plan, move_first=True)
    torch.testing.assert_close(mixed, second, atol=1e-3, rtol=0)


@pytest.mark.parametrize("move_first", [False, True])
@pytest.mark.parametrize("layout", ["channels first", "channels last", "tokens"])
def test_alignmix_map_by_map(move_first: bool, layout: str) -> None:
    student = network()
    method = alignmix(student, iterations=20)
    method.channels = 6
    maps = torch.rand(5, 6, 3, 4, generator=rng(2))
    if layout == "channels last":
        maps = maps.permute(0, 2, 3, 1)
    elif layout == "tokens":
        maps = maps.flatten(2).mT
    draw = align_draw(5, move_first=move_first)
    mixed = method.mix_maps(maps, draw.perm, draw)
    assert mixed.shape == maps.shape
    rows = maps.flatten(2).mT if layout == "channels first" else maps.flatten(1, -2)
    result = mixed.flatten(2).mT if layout == "channels first" else mixed.flatten(1, -2)
    for b in range(5):
        first, second = (rows[i].double().numpy() for i in (b, b - 1))
        plan = sinkhorn_by_hand(first, second, 0.1, 20)
        lam = float(draw.lam[b, 0])
        moved = (plan.T @ first, second) if move_first else (first, plan @ second)
        expected = lam * moved[0] + (1 - lam) * moved[1]
        torch.testing.assert_close(
            result[b].double(), torch.from_numpy(expected), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("move_first", [False, True])
def test_loss_of_alignmix(move_first: bool) -> None:
    """Of a ResNet: mix the last maps, average over positions, classify."""
    student = network().eval()
    method = alignmix(student)
    images, labels = batch(6)[0], torch.arange(6) % CLASSES
    targets = soft_targets(labels, CLASSES)
    draw = align_draw(6, move_first=move_first)
    loss = method.terms(Sources(images, targets, {}), student, NOBODY, draw)["loss"]
    maps = student.feature_map(images, 4)
    mixed = method.mix_maps(maps, draw.perm, draw)
    labels_mixed = (draw.lam[:, :, None] * targets[draw.perm]).sum(dim=1)
    expected = F.cross_entropy(student.logits(mixed.mean(dim=(2, 3))), labels_mixed)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_mean_over_positions_does_not_see_the_second_move() -> None:
    """The card's remark: columns sum to 1, so the mean of A' Rᵀ is that of A'."""
    student = network().eval()
    method = alignmix(student)
    maps = student.feature_map(batch(6)[0], 4)
    means = maps.mean(dim=(2, 3))
    for move_first in (False, True):
        draw = align_draw(6, move_first=move_first)
        mixed = method.mix_maps(maps, draw.perm, draw).mean(dim=(2, 3))
        plain = (draw.lam[:, :, None] * means[draw.perm]).sum(dim=1)
        assert torch.allclose(mixed, plain, atol=1e-4) == (not move_first)


def test_gradients_flow_through_both_maps_and_not_through_the_plan() -> None:
    maps = torch.rand(2, 6, 2, 2, generator=rng(), requires_grad=True)
    method = alignmix()
    method.channels = 6
    draw = AlignMixDraw(
        torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.75]]), features=True, move_first=False
    )
    method.mix_maps(maps, draw.perm, draw).sum().backward()
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad[0], torch.full((6, 2, 2), 0.25))
    torch.testing.assert_close(maps.grad[1], torch.full((6, 2, 2), 0.75), atol=1e-4, rtol=0)


def test_alignmix_of_images_is_mixup() -> None:
    student = network().eval()
    method = alignmix(student, features=0.0)
    images, labels = batch(6)[0], torch.arange(6) % CLASSES
    draw: Any = method.draw_at(images.shape, 0)
    assert not draw.features
    losses = method.losses(images, labels, student, NOBODY, 0)
    mixed = torch.stack(
        [
            draw.lam[b, 0] * images[b] + draw.lam[b, 1] * images[int(draw.perm[b, 1])]
            for b in range(6)
        ]
    )
    targets = (draw.lam[:, :, None] * soft_targets(labels, CLASSES)[draw.perm]).sum(dim=1)
    expected = F.cross_entropy(student(mixed), targets)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("move_first", [False, True])
def test_alignmix_in_parts(move_first: bool) -> None:
    """Without batch statistics the mean of the parts is the whole."""
    student = network().eval()
    method = alignmix(student)
    images, targets = batch(6)[0], torch.eye(6)[:, :CLASSES]
    draw = align_draw(6, move_first=move_first)
    whole = method.terms(Sources(images, targets, {}), student, NOBODY, draw)["loss"]
    parts = [
        method.terms(Sources(images, targets, {}, own), student, NOBODY, draw.rows(own))["loss"]
        for own in (slice(0, 3), slice(3, 6))
    ]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [("convnext_atto", {}), ("vit_tiny_patch16_224", {"patch_size": 4, "depth": 2})],
)
def test_alignmix_of_other_networks(name: str, options: dict[str, Any]) -> None:
    student = network(name, **options)
    method = alignmix(student, features=1.0)
    losses = method.losses(batch(3)[0], torch.arange(3), student, NOBODY, 0)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])


def test_coins_of_alignmix() -> None:
    method = alignmix()
    draws = [method.draw((3, 3, 16, 16), rng(seed), 0) for seed in range(400)]
    for features, move_first in itertools.product((False, True), repeat=2):
        count = sum((d.features, d.move_first) == (features, move_first) for d in draws)
        assert 70 < count < 130
    lam = torch.stack([draw.lam[0, 0] for draw in draws])
    assert scipy.stats.kstest(lam.numpy(), scipy.stats.beta(2, 2).cdf).pvalue > 0.001


def test_alignmix_needs_a_network() -> None:
    for cls in (AlignMix, SaliencyGrafting):
        with pytest.raises(UsageError, match=r"pass model=build_model"):
            cls(cls.Settings(), num_classes=CLASSES)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- all of them

METHODS: dict[str, Callable[[], Method]] = {
    "puzzlemix": puzzlemix,
    "comixup": lambda: CoMixup(co_settings(part=4), num_classes=CLASSES),
    "saliencygrafting": grafting,
    "alignmix": alignmix,
}
ALL = pytest.mark.parametrize("name", METHODS)


def sample(method: Method, images: Tensor, targets: Tensor, step: int = 0) -> Mixed:
    draw = method.draw_at(images.shape, step)
    return method.sample(images, targets, network(), NOBODY, draw)


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images(name: str, dtype: torch.dtype) -> None:
    images, targets = batch(5)[0], torch.eye(5)
    method = METHODS[name]()
    draw = method.draw_at(images.shape, 0)
    seen = method.look(images, targets, network(), NOBODY, draw)
    full = method.mix(images.to(dtype).float(), targets, draw, **seen)
    half = method.mix(images.to(dtype), targets, draw, **seen)
    assert half.images.dtype == dtype
    torch.testing.assert_close(half.images.float(), full.images, atol=0.01, rtol=0)
    torch.testing.assert_close(half.targets, full.targets)


@ALL
def test_channels_last_is_kept(name: str) -> None:
    images, targets = batch(5)[0], torch.eye(5)
    method = METHODS[name]()
    draw = method.draw_at(images.shape, 0)
    seen = method.look(images, targets, network(), NOBODY, draw)
    plain = method.mix(images, targets, draw, **seen)
    last = method.mix(images.contiguous(memory_format=torch.channels_last), targets, draw, **seen)
    assert last.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain.images, last.images)


@ALL
def test_soft_labels_mix_linearly(name: str) -> None:
    """Also rows that sum to something else, as with several labels an image."""
    images = batch(5)[0]
    several = torch.rand(5, CLASSES, generator=rng(3)).round()
    method = METHODS[name]()
    mixed = sample(method, images, several)
    expected = (mixed.lam[:, :, None] * several[mixed.perm]).sum(dim=1)
    torch.testing.assert_close(mixed.targets, expected)


@ALL
@pytest.mark.parametrize("count", [1, 2, 7])
def test_batches_of_any_size(name: str, count: int) -> None:
    images, targets = batch(count)[0], torch.rand(count, CLASSES, generator=rng(1)).softmax(dim=1)
    method, student = METHODS[name](), network().eval()
    for step in range(2):
        losses = method.losses(images, targets, student, NOBODY, step)
        losses["loss"].backward()
        assert torch.isfinite(losses["loss"])
        mixed = method.sample(images, targets, student, NOBODY, method.draw_at(images.shape, step))
        assert mixed.images.shape == images.shape
        torch.testing.assert_close(mixed.targets.sum(dim=1), torch.ones(count))


@ALL
def test_each_mix_has_its_own_label_in_the_loss(name: str) -> None:
    images, targets = batch(7)[0], torch.eye(7)[:, :CLASSES]
    method, student = METHODS[name](), network().eval()
    mixed = method.sample(images, targets, student, NOBODY, method.draw_at(images.shape, 2))
    logits = 20 * student(mixed.images)
    own, others = (
        method.cross_entropy(logits, labels) for labels in (mixed.targets, mixed.targets.roll(1, 0))
    )
    assert not torch.allclose(own, others)


@pytest.mark.parametrize("name", ["puzzlemix", "comixup"])
def test_solvers_in_mixed_precision_are_the_same(name: str) -> None:
    images, targets = batch(5)[0], torch.eye(5)
    method = METHODS[name]()
    draw = method.draw_at(images.shape, 0)
    seen = method.look(images, targets, network(), NOBODY, draw)
    full = method.mix(images, targets, draw, **seen)
    with torch.autocast("cpu", torch.bfloat16):
        half = method.mix(images, targets, draw, **seen)
    assert torch.equal(half.lam, full.lam)
    assert torch.equal(half.images, full.images)
