"""The solvers compared with exact ones: minimum cuts, dynamic programming, assignment."""

import itertools

import pytest
import torch
from exact import exact_labels, exact_levels, label_energy, level_energy
from given import rng
from torch import Tensor

from adautomix.mixing.solvers import anneal_labels, chessboard, cut_levels, swap_places


def random_cut(
    count: int, levels: int, side: int, seed: int = 0, coupling: float = 1.0
) -> tuple[Tensor, Tensor]:
    generator = rng(seed)
    slopes = torch.randn(count, levels, side, side, generator=generator).sort(dim=1).values
    weights = coupling * torch.rand(count, 2, side, side, generator=generator)
    weights[:, 0, -1], weights[:, 1, :, -1] = 0, 0
    return slopes, weights


def test_the_exact_cut_is_exact() -> None:
    """Against all 3⁹ labelings."""
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


def test_one_label_everywhere_where_it_is_cheapest() -> None:
    """The cost of differing neighbors outweighs what each cell prefers."""
    unary = torch.rand(8, 6, 16, generator=rng()) / 16
    distance = 1 - torch.eye(6).expand(8, 6, 6)
    labels = anneal_labels(unary, distance, chessboard(4, torch.device("cpu")), 10.0, 6)
    assert torch.equal(labels, unary.sum(dim=2).argmin(dim=1)[:, None].expand(8, 16))


def place_cost(cost: Tensor, places: Tensor) -> Tensor:
    return cost.gather(2, places[:, :, None]).sum(dim=(1, 2))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rounds", [1, 3, 8, 40])
def test_places_are_a_permutation_and_never_cost_more(rounds: int, ties: bool) -> None:
    cost = torch.rand(30, 12, 12, generator=rng())
    if ties:  # both sides of a pair must see exactly the same gain despite rounding
        cost = (3 * cost).floor() / 10 + torch.rand(30, 12, 1, generator=rng(1))
    places, before = swap_places(cost, rounds), swap_places(cost, rounds - 1)
    assert torch.equal(places.sort(dim=1).values, torch.arange(12).expand(30, 12))
    assert (place_cost(cost, places) <= place_cost(cost, before) + 1e-5).all()
    still = cost.diagonal(dim1=1, dim2=2).sum(dim=1)
    assert (still - place_cost(cost, places)).mean() > 0.5
