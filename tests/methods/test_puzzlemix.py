"""PuzzleMix: energies by hand, solutions compared with the optimum, mixes block by block."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from exact import exact_levels, level_energy
from given import batch, blobs, flat, rng, rows_of, telling_network, toys
from scipy.optimize import linear_sum_assignment
from tiny import CLASSES
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods.puzzlemix import (
    PuzzleMix,
    PuzzleMixParams,
    PuzzleMixSettings,
    cell_sums,
    mask_energy,
    seam_costs,
    squared_distances,
    transport,
)
from adautomix.mixing.ops import Mixed, cells_to_pixels
from adautomix.mixing.params import draw_partners
from adautomix.mixing.saliency import gradient_saliency
from adautomix.mixing.solvers import cut_levels, swap_places


def puzzle_energy(
    saliency: Tensor, blocks: int, method: PuzzleMix
) -> tuple[Tensor, Tensor, PuzzleMixParams]:
    """Slopes and weights of PuzzleMix's energy on smooth images."""
    count = len(saliency)
    images = F.interpolate(torch.rand(count, 3, 8, 8, generator=rng(9)), 32, mode="bilinear")
    share = torch.rand(count, generator=rng(8))
    params = PuzzleMixParams(
        draw_partners(count, rng(7)), torch.stack([share, 1 - share], dim=1), blocks
    )
    s = method.settings
    beta = s.beta / (16 * blocks)
    seams = seam_costs(images, params.perm, blocks, s.seam) * (beta * s.gamma)
    lost = cell_sums(saliency, blocks)[params.perm]
    energy = mask_energy(lost, seams, share, beta, s.eta, s.labels - 1)
    return *energy, params


@pytest.mark.parametrize(
    ("maps", "blocks", "mean", "worst"),
    [
        (blobs, 2, 0.001, 0.01),
        (blobs, 4, 0.001, 0.02),
        (blobs, 8, 0.001, 0.02),
        (blobs, 16, 0.002, 0.02),
        (flat, 2, 0.001, 0.02),
        (flat, 4, 0.001, 0.02),
        (flat, 8, 0.001, 0.02),
        (flat, 16, 0.003, 0.06),
    ],
)
def test_gap_of_the_masks(
    maps: Callable[..., Tensor], blocks: int, mean: float, worst: float
) -> None:
    """The bounds of the module docstring on the energy of masks above the minimum."""
    method = PuzzleMix(PuzzleMixSettings(), num_classes=CLASSES)
    slopes, weights, _ = puzzle_energy(maps(16 if blocks == 16 else 32), blocks, method)
    found = cut_levels(slopes, weights, method.settings.iterations * max(blocks, 4))
    exact = exact_levels(slopes, weights)
    gap = level_energy(found, slopes, weights) - level_energy(exact, slopes, weights)
    assert gap.mean() < mean
    assert gap.max() < worst
    assert gap.min() > -1e-5
    nothing = level_energy(torch.zeros_like(exact), slopes, weights)
    assert (nothing - level_energy(exact, slopes, weights)).mean() > 0.2, "the optimum gains a lot"


def place_cost(cost: Tensor, places: Tensor) -> Tensor:
    return cost.gather(2, places[:, :, None]).sum(dim=(1, 2))


def cheapest_places(cost: Tensor) -> Tensor:
    return torch.stack([torch.from_numpy(linear_sum_assignment(c.numpy())[1]) for c in cost])


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
    """The bounds of the module docstring, for PuzzleMix's masks and for random ones."""
    method = PuzzleMix(PuzzleMixSettings(), num_classes=CLASSES)
    slopes, weights, params = puzzle_energy(blobs(24), 8, method)
    mask = cut_levels(slopes, weights, 32) > 0
    if noise:
        mask = torch.rand(mask.shape, generator=rng(2)) < 0.5
    visible = cells_to_pixels(mask, cells, cells).flatten(1)[:, None]
    saliency = cell_sums(blobs(24), cells)[params.perm[:, 0]].flatten(1)
    costs = visible * (0.8 * squared_distances(cells, torch.device("cpu")) - saliency[:, :, None])
    exact = place_cost(costs, cheapest_places(costs))
    gap = place_cost(costs, swap_places(costs, 8)) - exact
    gain = costs.diagonal(dim1=1, dim2=2).sum(dim=1) - exact
    assert gap.min() > -1e-5
    assert gap.mean() < mean
    assert gap.max() < worst
    assert gap.mean() < 0.1 * gain.mean()


def published_rounds(saliency: Tensor, visible: Tensor, cost: float) -> Tensor:
    """Block that comes to each position as published, `[M, t²]`.

    Every block claims its cheapest place, the cheapest of a place's claimants gets it, and for
    the others the place costs 1 more in the next of t rounds.

    Args:
        saliency: `[M, t, t]`.
        visible: `[M, t, t]`.
        cost: cost of a move across a whole side.
    """
    side = saliency.shape[1]
    gain = saliency.flatten(1)[:, :, None] * visible.flatten(1)[:, None]
    costs = cost * squared_distances(side, torch.device("cpu")) - gain
    for _ in range(side):
        claims = F.one_hot(costs.argmin(dim=2), side**2)
        winners = F.one_hot((claims * costs).argmin(dim=1), side**2).mT * claims
        costs = costs + (claims - winners)
    return winners.argmax(dim=1)


@pytest.mark.parametrize(("blocks", "cells"), [(2, 8), (4, 8), (8, 8), (16, 16)])
def test_visible_transport_is_the_published_one(blocks: int, cells: int) -> None:
    """Nearly all visible blocks are the same, and they gain as much, as the docstring says."""
    maps = blobs(24).square()
    maps = maps / maps.sum(dim=(1, 2), keepdim=True)
    slopes, weights, params = puzzle_energy(maps, blocks, puzzlemix())
    mask = cells_to_pixels(cut_levels(slopes, weights, 4 * max(blocks, 4)) / 2, cells, cells)
    shares = torch.stack([mask, 1 - mask], dim=1)
    saliency = cell_sums(maps, cells)[params.perm]
    ours = transport(saliency, shares, 0.8).flatten(0, 1)
    saliency, visible = saliency.flatten(0, 1), (shares > 0).flatten(0, 1)
    theirs = published_rounds(saliency, visible, 0.8)
    still = torch.arange(cells**2).expand_as(theirs)
    assert (ours == theirs)[visible.flatten(1)].double().mean() > 0.99
    moves = 0.8 * squared_distances(cells, torch.device("cpu"))
    costs = visible.flatten(1)[:, None] * (moves - saliency.flatten(1)[:, :, None])
    paid = [costs.gather(1, shown[:, None]).sum().item() / 48 for shown in (ours, theirs, still)]
    assert paid[1] < paid[2] - 0.002, "transport gains something"
    assert paid[0] < paid[1] + 1e-5


def puzzlemix(**settings: Any) -> PuzzleMix:
    return PuzzleMix(PuzzleMixSettings(**settings), num_classes=CLASSES)


def puzzle_params(count: int, blocks: int, share: float = 0.5) -> PuzzleMixParams:
    """Pairs each image with the one before it."""
    rows = torch.arange(count)
    lam = torch.tensor([share, 1 - share]).expand(count, 2)
    return PuzzleMixParams(torch.stack([rows, rows.roll(1)], dim=1), lam, blocks)


def puzzle(
    method: PuzzleMix, images: Tensor, targets: Tensor, params: PuzzleMixParams, maps: Tensor
) -> Mixed:
    """The mix for a given saliency map."""
    cells = params.blocks * method.pieces(images, params)
    return method.mix(images, targets, params, saliency=cell_sums(maps, cells))


def lost_by_hand(saliency: list[Any], y: int, x: int, size: int) -> float:
    """Saliency lost by an image whose block is not visible."""
    rows = saliency[y * size : (y + 1) * size]
    return float(sum(sum(row[x * size : (x + 1) * size]) for row in rows))


def seam_by_hand(
    own: list[Any], other: list[Any], y: int, x: int, down: bool, size: int, pool: int
) -> float:
    """Mean absolute difference between pooled pixels of two images across a seam."""
    steps: list[float] = []
    for channel, along in itertools.product(range(3), range(0, size, pool)):
        sides = []
        for image, first in ((own, size - pool), (other, size)):
            values = []
            for i, j in itertools.product(range(pool), repeat=2):
                across, beside = first + i, along + j
                v = y * size + (across if down else beside)
                u = x * size + (beside if down else across)
                values.append(image[channel][v][u])
            sides.append(sum(values) / len(values))
        steps.append(abs(sides[0] - sides[1]))
    return sum(steps) / len(steps)


def seam_energy(here: float, there: float, costs: dict[tuple[int, int], float]) -> float:
    """Cost of a seam between neighbors with these weights of the first image.

    Exact where the mask is 0 or 1; in between, sides are mixed and steps are squared.
    """
    if {here, there} <= {0, 1}:
        return costs[int(here), int(there)]
    apart = (costs[1, 0] + costs[0, 1] - costs[0, 0] - costs[1, 1]) / 2
    total = apart * (here - there) ** 2 - (costs[0, 1] + costs[1, 0]) / 2
    for side, other in itertools.product(range(2), repeat=2):
        total += (here if side else 1 - here) * costs[side, other] / 2
        total += (there if side else 1 - there) * costs[other, side] / 2
    return total


def energy_by_hand(
    z: list[list[float]], images: list[Any], maps: list[Any], blocks: int, share: float, s: Any
) -> float:
    """The energy of one mask in plain floats: images `[2, C, H, W]`, saliency `[2, H, W]`."""
    size, levels = len(maps[0]) // blocks, s.labels - 1
    beta, pool = s.beta / (16 * blocks), math.gcd(s.seam, size)
    total = 0.0
    for y, x in itertools.product(range(blocks), repeat=2):
        lost = [lost_by_hand(saliency, y, x, size) for saliency in maps]
        total += z[y][x] * lost[1] + (1 - z[y][x]) * lost[0]
        prior = scipy.stats.binom.logpmf(round(z[y][x] * levels), levels, share)
        total -= s.eta / blocks**2 * prior
        for v, u, down in ((y + 1, x, True), (y, x + 1, False)):
            if v == blocks or u == blocks:
                continue
            costs = {
                (a, b): s.pixel_std
                * seam_by_hand(images[1 - a], images[1 - b], y, x, down, size, pool)
                for a, b in itertools.product(range(2), repeat=2)
            }
            smooth = (z[y][x] - z[v][u]) ** 2
            total += beta * (smooth + s.gamma * seam_energy(z[y][x], z[v][u], costs))
    return total


@pytest.mark.parametrize(("blocks", "labels"), [(2, 3), (4, 2), (4, 3), (2, 4)])
def test_energy_of_a_mask_by_hand(blocks: int, labels: int) -> None:
    """Compares differences between masks, because energies are known up to a constant."""
    method = puzzlemix(labels=labels)
    images, maps = batch(2, 16, 16)[0], blobs(2, 16)
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
    images, targets = batch(6, 16, 16)
    method, maps = puzzlemix(transport=moving, transport_cost=0.1), blobs(6, 16)
    params = puzzle_params(6, blocks, 0.6)
    mixed = puzzle(method, images, targets, params, maps)
    cells = blocks * method.pieces(images, params)
    saliency = cell_sums(maps, cells)[params.perm]
    mask = cells_to_pixels(method.mask(images, saliency, params), cells, cells)
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


def test_lam_of_puzzlemix_is_the_fraction_of_pixels() -> None:
    """With black and white images: transport moves blocks but keeps the fraction of pixels."""
    images = torch.zeros(8, 1, 16, 16)
    images[::2] = 1
    mixed = puzzle(puzzlemix(), images, torch.eye(8), puzzle_params(8, 4), blobs(8, 16))
    white = images[mixed.perm].mean(dim=(2, 3, 4))
    torch.testing.assert_close(mixed.images.mean(dim=(1, 2, 3)), (mixed.lam * white).sum(dim=1))
    assert len(mixed.lam[:, 0].unique()) > 2, "λ differs between mixes"


def test_saliency_of_puzzlemix_is_that_in_evaluation_mode() -> None:
    student, (images, targets) = telling_network().train(), toys()
    params = puzzle_params(7, 4)
    found = puzzlemix(transport=False).extract_features(images, targets, student, None, params)[
        "saliency"
    ]
    in_training = cell_sums(gradient_saliency(student, images, targets), 4)
    assert (found - in_training).abs().max() > 1e-3
    expected = cell_sums(gradient_saliency(student.eval(), images, targets), 4)
    torch.testing.assert_close(found, expected)


def test_the_mask_shows_salient_blocks() -> None:
    images = torch.rand(1, 3, 16, 16, generator=rng()).expand(2, -1, -1, -1)
    maps = torch.full((2, 16, 16), 1e-6)
    maps[0, :, :8], maps[1, :, 8:] = 1 / 128, 1 / 128
    params = puzzle_params(2, 4)
    mask = puzzlemix().mask(images, cell_sums(maps, 4)[params.perm], params)
    left = torch.tensor([1.0, 1, 0, 0]).expand(4, 4)
    assert torch.equal(mask, torch.stack([left, 1 - left]))


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_puzzlemix_with_lam_0_or_1_is_an_image(share: float) -> None:
    """A certain prior outweighs saliency."""
    images, targets = batch(6, 16, 16)
    method = puzzlemix(transport=False, eta=5.0)
    mixed = puzzle(method, images, targets, puzzle_params(6, 4, share), blobs(6, 16))
    expected = torch.arange(6) if share else torch.arange(6).roll(1)
    assert torch.equal(mixed.images, images[expected])
    assert torch.equal(mixed.targets, targets[expected])


def test_masks_follow_lam() -> None:
    images, _ = batch(12, 16, 16)
    means = []
    for share in (0.1, 0.35, 0.65, 0.9):
        params = puzzle_params(12, 4, share)
        saliency = cell_sums(blobs(12, 16), 4)[params.perm]
        means.append(puzzlemix(eta=2.0).mask(images, saliency, params).mean().item())
    assert means == pytest.approx([0.1, 0.35, 0.65, 0.9], abs=0.15)


def test_smoothness_makes_masks_constant() -> None:
    images, _ = batch(12, 16, 16)
    params = puzzle_params(12, 4)
    saliency = cell_sums(blobs(12, 16), 4)[params.perm]
    rough = puzzlemix(beta=0.0).mask(images, saliency, params).flatten(1)
    smooth = puzzlemix(beta=100.0, iterations=100).mask(images, saliency, params).flatten(1)
    assert (rough.std(dim=1) > 0.2).all()
    assert (smooth == smooth[:, :1]).all()


def test_transport_makes_salient_blocks_visible() -> None:
    """The only salient block is hidden; it moves to the nearest visible position."""
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
    assert torch.equal(shown[1], torch.arange(16)), "the second image is not visible"


def test_number_of_pieces_per_block() -> None:
    """Pieces of 4 pixels for images of 32 as the authors have it, and at most 16 per side."""
    method = puzzlemix()
    found = {
        size: [
            n * method.pieces(torch.empty(1, 3, size, size), puzzle_params(2, n))
            for n in (2, 4, 8, 16)
        ]
        for size in (32, 64, 224)
    }
    assert found == {32: [8, 8, 8, 16], 64: [16, 16, 16, 16], 224: [16, 16, 16, 16]}


def test_parameters_of_puzzlemix() -> None:
    method = puzzlemix(alpha=0.7)
    draws = [method.make_params((4, 3, 32, 32), rng(seed), 0) for seed in range(400)]
    counts = [sum(params.blocks == n for params in draws) for n in (2, 4, 8, 16)]
    assert sum(counts) == 400
    assert scipy.stats.chisquare(counts).pvalue > 0.001
    lam = torch.stack([params.lam[0, 0] for params in draws])
    assert all((params.lam == params.lam[0]).all() for params in draws)
    assert scipy.stats.kstest(lam.numpy(), scipy.stats.beta(0.7, 0.7).cdf).pvalue > 0.001
    assert {method.make_params((2, 3, 12, 20), rng(seed), 0).blocks for seed in range(40)} == {2, 4}
    own = puzzlemix(per_sample=True).make_params((9, 3, 32, 32), rng(), 0)
    assert len(own.lam[:, 0].unique()) == 9


def test_puzzlemix_of_an_odd_image() -> None:
    with pytest.raises(UsageError, match="15 x 16 pixels"):
        puzzlemix().make_params((4, 3, 15, 16), rng(), 0)


@pytest.mark.parametrize("moving", [False, True])
def test_a_part_of_the_mixes(moving: bool) -> None:
    images, targets = batch(7, 24, 16)
    method, maps = puzzlemix(transport=moving), torch.rand(7, 24, 16, generator=rng(4))
    params = puzzle_params(7, 4)
    whole = puzzle(method, images, targets, params, maps)
    part = puzzle(method, images, targets, params.rows(slice(1, 4)), maps)
    for mine, theirs in zip(rows_of(whole, slice(1, 4)), rows_of(part, slice(None)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_puzzlemix_of_an_image_with_itself() -> None:
    images, targets = batch(1, 16, 16)
    params = puzzlemix().make_params(images.shape, rng(), 0)
    mixed = puzzle(puzzlemix(transport=False), images, targets, params, blobs(1, 16))
    torch.testing.assert_close(mixed.images, images)
    torch.testing.assert_close(mixed.targets, targets)
