"""GridMix: lattices hole by hole, cells one by one."""

import numpy as np
import pytest
import scipy.stats
import torch
from given import HEIGHT, WIDTH, batch, make, rng

from adautomix.methods.gridmix import (
    CellsParams,
    GridMix,
    GridMixSettings,
    LatticeParams,
    draw_cells,
    draw_lattice,
)
from adautomix.mixing.params import draw_beta, draw_partners


def test_lattice_hole_by_hole() -> None:
    images, targets = batch()
    crop = torch.tensor(
        [[0, 12, 0, 10], [2, 9, 1, 10], [5, 6, 5, 6], [1, 12, 3, 8], [0, 12, 0, 10], [3, 11, 0, 7]]
    )
    cell, hole = torch.tensor([5, 2, 2, 3, 6, 4]), torch.tensor([2, 1, 1, 2, 5, 3])
    perm = draw_partners(6, rng())
    mixed = make(GridMix).mix(images, targets, LatticeParams(perm, crop, cell, hole))
    for b, (top, bottom, left, right) in enumerate(crop.tolist()):
        side, wide = int(cell[b]), int(hole[b])
        partner = np.zeros((HEIGHT, WIDTH), dtype=bool)
        for y in range(top, bottom, side):
            for x in range(left, right, side):
                partner[y : min(y + wide, bottom), x : min(x + wide, right)] = True
        expected = torch.where(torch.from_numpy(partner), images[perm[b, 1]], images[b])
        assert torch.equal(mixed.images[b], expected)
        assert mixed.lam[b, 0].item() == pytest.approx(1 - partner.mean())


def test_lattices_are_drawn_as_gridmixup_draws_them() -> None:
    s = GridMixSettings(alpha=1.0, per_sample=True)
    params = draw_lattice(4000, 40, 32, s, rng())
    top, bottom, left, right = params.crop.unbind(dim=1)
    down, across = bottom - top, right - left
    assert (params.crop >= 0).all()
    assert (bottom <= 40).all()
    assert (right <= 32).all()
    inner = (down < 40) & (across < 32)  # the others were cut to the image
    share, aspect = (down * across / 1280)[inner], (down / across)[inner]
    assert 0.43 < share.min() < 0.52
    assert share.max() < 1
    assert aspect.min() < 0.9
    assert aspect.max() > 1.5
    counts = torch.stack([(across / params.cell).ceil() == n for n in range(2, 7)])
    assert counts.any(dim=0).all(), "two to six cells per row"
    expected = (across[:, None] / torch.arange(2, 7)).ceil()
    assert (expected == params.cell[:, None]).any(dim=1).all()
    hit = torch.stack([(expected[:, n] == params.cell).double().mean() for n in range(5)])
    assert hit.min() > 0.15, "equally often"
    ratio = params.hole / params.cell
    assert (params.hole >= 1).all()
    assert (params.hole <= params.cell - 1).all()
    wide = params.cell >= 10
    cut = (1 - ratio[wide].square()).mean().item()
    assert cut == pytest.approx(0.5, abs=0.06), "mean λ₀ of Beta(1, 1)"
    starts = (left[across < 24] == 0).double().mean().item()
    assert starts < 0.25, "anywhere, not only at the border"


def test_a_shared_lattice_is_the_same_for_all_mixes() -> None:
    params = draw_lattice(8, 32, 32, GridMixSettings(), rng())
    assert params.shared
    assert all(len(part.unique(dim=0)) == 1 for part in (params.crop, params.cell, params.hole))
    assert len(params.perm.unique(dim=0)) == 8


def test_each_cell_shows_one_image() -> None:
    images = torch.rand(5, 3, 16, 8, generator=rng(1))
    partner = torch.rand(5, 4, 4, generator=rng(2)) < 0.5
    perm = draw_partners(5, rng())
    mixed = make(GridMix, pattern="cells").mix(images, torch.eye(5), CellsParams(perm, partner))
    for b in range(5):
        for row in range(4):
            for column in range(4):
                cell = (slice(4 * row, 4 * row + 4), slice(2 * column, 2 * column + 2))
                source = images[perm[b, 1]] if partner[b, row, column] else images[b]
                assert torch.equal(mixed.images[b][:, *cell], source[:, *cell])
        assert mixed.lam[b, 0].item() == 1 - partner[b].double().mean().item()


def test_cells_are_drawn_independently_with_probability_lam() -> None:
    s = GridMixSettings(pattern="cells", alpha=1e6, per_sample=True)  # λ₀ = 1/2
    partner = draw_cells(2000, s, rng()).partner.flatten(1).double()
    assert partner.mean().item() == pytest.approx(0.5, abs=0.01)
    assert (torch.corrcoef(partner.T) - torch.eye(16)).abs().max() < 0.1
    s = GridMixSettings(pattern="cells", alpha=0.2, cells=12, per_sample=True)
    kept = 1 - draw_cells(50, s, rng(4)).partner.double().mean(dim=(1, 2))
    generator = rng(4)
    draw_partners(50, generator)
    lam = draw_beta(50, 1, 0.2, generator)[:, 0].double()
    assert (kept - lam).abs().max() < 0.2, "a cell shows the image with probability λ₀"
    s = GridMixSettings(pattern="cells", alpha=1.0, per_sample=True)
    kept = 1 - draw_cells(4000, s, rng()).partner.double().mean(dim=(1, 2))
    # A binomial of 16 with uniform probability is uniform on 0 to 16.
    counts = np.bincount((kept * 16).round().long().numpy(), minlength=17)
    assert scipy.stats.chisquare(counts).pvalue > 0.001
