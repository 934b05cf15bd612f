"""Co-Mixup compared with the published sweeps, and its labels with the optimum."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from exact import exact_label, exact_labels, label_energy
from given import batch, blobs, flat, network, rng, rows_of
from tiny import CLASSES
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods import comixup
from adautomix.methods.comixup import CoMixup, CoMixupSettings, Problem
from adautomix.methods.puzzlemix import cell_sums
from adautomix.mixing.ops import soft_targets
from adautomix.mixing.solvers import anneal_labels


@pytest.mark.slow
@pytest.mark.parametrize("maps", [blobs, flat])
@pytest.mark.parametrize(("images", "parts", "every"), [(5, 6, 1), (20, 1, 16)])
def test_gap_of_the_labels(
    maps: Callable[..., Tensor],
    images: int,
    parts: int,
    every: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bounds of the module docstring, on the problems that sweeps of Co-Mixup pose.

    With 20 images, the default, the exact labels of one problem in `every` are found.
    """
    gaps: list[Tensor] = []
    calls = itertools.count()

    def watched(unary: Tensor, distance: Tensor, grid: Any, weight: float, steps: int) -> Tensor:
        found = anneal_labels(unary, distance, grid, weight, steps)
        if next(calls) % every == every - 1:
            exact = exact_labels(unary, distance, grid, weight, steps)
            energies = [label_energy(some, unary, distance, weight) for some in (found, exact)]
            gaps.append(energies[0] - energies[1])
        return found

    monkeypatch.setattr(comixup, "anneal_labels", watched)
    label_small_parts(maps, images, parts)
    gap = torch.cat(gaps)
    assert len(gap) == 4 * images * parts // every
    assert gap.mean() < 0.002
    assert gap.max() < 0.05
    assert gap.min() > -1e-5
    assert (gap < 1e-5).float().mean() > 0.5


def label_small_parts(maps: Callable[..., Tensor], images: int, parts: int) -> Tensor:
    method = CoMixup(CoMixupSettings(part=images), num_classes=CLASSES)
    saliency = maps(images * parts)
    params = method.make_params((images * parts, 3, 32, 32), rng(4), 0)
    peak = torch.randint(24, (images * parts, 2), generator=rng(5))
    return method.solve(params, saliency=cell_sums(saliency, 4), peak=peak)


def random_features(count: int) -> dict[str, Tensor]:
    """Random features of that many images of 16 pixels."""
    peak = torch.randint(9, (count, 2), generator=rng(1))
    return {"saliency": cell_sums(blobs(count, 16), 4), "peak": peak}


def co_settings(**settings: Any) -> CoMixupSettings:
    return CoMixupSettings(**settings)


def published_sweeps(unary: Tensor, likeness: Tensor, start: Tensor, s: CoMixupSettings) -> Tensor:
    """The joint labeling of one part, as published, one mix and one label at a time.

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
    """With exact labels instead of annealed ones the result is the published one."""
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


def test_repetitions_do_not_affect_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of 3 images, filled up to 5, is labeled like a part of 3."""
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
    images, targets = batch(7, 16, 16)
    method = CoMixup(co_settings(part=4), num_classes=CLASSES)
    params = method.make_params(images.shape, rng(), 0)
    features = random_features(7)
    mixed = method.mix(images, targets, params, **features)
    shown = method.solve(params, **features)
    assert mixed.masks is not None
    for b, cell in itertools.product(range(7), range(16)):
        y, x = divmod(cell, 4)
        here = slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4)
        expected = torch.zeros(3, 4, 4)
        for n, source in enumerate(params.perm[b].tolist()):
            expected += float(shown[b, cell, n]) * images[source, :, *here]
            assert (mixed.masks[b, n, *here] == shown[b, cell, n]).all()
        torch.testing.assert_close(mixed.images[b, :, *here], expected)
    torch.testing.assert_close(mixed.lam, mixed.masks.mean(dim=(2, 3)))
    for b in range(7):
        label = [0.0] * 7
        for source, lam in zip(params.perm[b].tolist(), mixed.lam[b].tolist(), strict=True):
            label[source] += lam
        assert mixed.targets[b].tolist() == pytest.approx(label, abs=1e-6)
        assert sum(label) == pytest.approx(1)


def test_mixes_of_a_part_are_salient_and_diverse() -> None:
    shown = label_small_parts(blobs, images=10, parts=3).view(3, 10, 16, 10)
    counts = shown.sum(dim=2)
    kept = counts.sum(dim=1)
    assert (kept - 16).abs().max() < 11, "all images are shown about equally"
    for part in counts > 0:
        assert len(part.unique(dim=0)) >= 9
    assert 1.5 < (counts > 0).sum(dim=2).float().mean() < 4


def test_without_diversity_all_mixes_are_the_same() -> None:
    method = CoMixup(co_settings(part=6, gamma=0, resolve=False, sweeps=1), num_classes=CLASSES)
    params = method.make_params((6, 3, 16, 16), rng(), 0)
    peak = torch.zeros(6, 2, dtype=torch.long)
    shown = method.solve(params, saliency=cell_sums(blobs(6, 16), 4), peak=peak)
    assert (shown == shown[:1]).all()


@pytest.mark.parametrize(("count", "part"), [(12, 5), (12, 20), (1, 20), (2, 20), (9, 1), (7, 3)])
def test_parts_of_a_batch(count: int, part: int) -> None:
    params = comixup.draw_comixup(count, part, 4, 2.0, rng())
    size = min(count, part)
    assert params.perm.shape == (count, size)
    images = []
    for begin in range(0, count, size):
        rows = slice(begin, min(begin + size, count))
        there = params.prior[begin] > 0
        assert (params.perm[rows] == params.perm[begin]).all()
        assert (params.prior[rows] == params.prior[begin]).all()
        assert there.sum() == rows.stop - rows.start
        assert params.prior[begin].sum().item() == pytest.approx(1)
        assert params.start[begin].max() < there.sum()
        images += params.perm[begin][there].tolist()
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
    """A part is labeled as a whole, however few of its mixes are computed."""
    images, targets = batch(11, 16, 16)
    method = CoMixup(co_settings(part=4), num_classes=CLASSES)
    params = method.make_params(images.shape, rng(), 0)
    features = random_features(11)
    whole = method.mix(images, targets, params, **features)
    part = method.mix(images, targets, params.rows(some), **features)
    again = method.mix(images, targets, params.rows(slice(2, 11)).rows(slice(1, 4)), **features)
    for mine, theirs in zip(rows_of(whole, some), rows_of(part, slice(None)), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(again.images, whole.images[3:6])


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_loss_of_comixup(weight: float) -> None:
    student = network().eval()
    method = CoMixup(co_settings(part=4, clean_weight=weight), num_classes=CLASSES)
    images, labels = batch(6, 16, 16)[0], torch.arange(6) % CLASSES
    losses = method.losses(images, labels, student, student, 0)
    targets = soft_targets(labels, CLASSES)
    mixed = method.mix_batch(
        images, targets, student, None, method.params_for_step(images.shape, 0)
    )
    expected = F.cross_entropy(student(mixed.images), mixed.targets)
    clean = F.cross_entropy(student(images), targets)
    assert losses["mixed"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx((expected + weight * clean).item(), rel=1e-5)
    assert ("clean" in losses) == bool(weight)


def test_images_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(UsageError, match=r"comixup\.blocks = 4: 16 x 18 pixels"):
        CoMixup(co_settings(), num_classes=CLASSES).make_params((4, 3, 16, 18), rng(), 0)
