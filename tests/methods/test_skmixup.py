"""SK Mixup recomputed pair by pair with SciPy, as the authors' code and torch-uncertainty do."""

import itertools
import math

import pytest
import scipy.stats
import torch
from given import make, rng, telling_network, toys
from tiny import state_of
from torch import Tensor

from adautomix.methods.skmixup import SKMixup, SKMixupParams, kernel, warp
from adautomix.mixing.params import draw_partners


def features_of(count: int = 6) -> Tensor:
    return torch.randn(count, 4, generator=rng(5))


def taus_by_hand(features: Tensor, perm: Tensor, tau_max: float, tau_std: float) -> list[float]:
    rows = features.double().tolist()
    pairs = list(itertools.permutations(rows, 2))
    mean = sum(math.dist(*pair) ** 2 for pair in pairs) / len(pairs)
    distances = [math.dist(rows[i], rows[j]) ** 2 / mean for i, j in perm.tolist()]
    return [tau_max * math.exp(-(d - 1) / (2 * tau_std**2)) for d in distances]


@pytest.mark.parametrize("warping", ["quantile", "distribution"])
@pytest.mark.parametrize("tau_std", [0.5, 1.0])
def test_lam_of_each_pair_by_hand(warping: str, tau_std: float) -> None:
    features, perm = features_of(), draw_partners(6, rng(1))
    base = torch.linspace(0.1, 0.9, 6)
    method = make(SKMixup, telling_network(), warping=warping, tau_std=tau_std, tau_max=1.3)
    images, targets = torch.rand(6, 3, 8, 8, generator=rng(2)), torch.eye(6)
    mixed = method.mix(images, targets, SKMixupParams(perm, base), pooled=features)
    for b, tau in enumerate(taus_by_hand(features, perm, 1.3, tau_std)):
        u = float(base[b])
        beta = scipy.stats.beta
        lam = beta.ppf(u, tau, tau) if warping == "quantile" else beta.cdf(u, 1 / tau, 1 / tau)
        assert mixed.lam[b].tolist() == pytest.approx([lam, 1 - lam], abs=1e-4)
        partner = int(perm[b, 1])
        picture = lam * images[b].double() + (1 - lam) * images[partner].double()
        torch.testing.assert_close(mixed.images[b].double(), picture, atol=2e-4, rtol=0)
        label = lam * targets[b] + (1 - lam) * targets[partner]
        torch.testing.assert_close(mixed.targets[b], label.float(), atol=2e-4, rtol=0)


def test_tau_equals_the_released_kernel_where_the_means_agree() -> None:
    """Two of these three pairs differ, as do two of three of all pairs."""
    features = torch.eye(4)[torch.tensor([0, 1, 0, 1])]
    perm = torch.tensor([[0, 1], [1, 0], [0, 2]])
    distance = (features[perm[:, 0]] - features[perm[:, 1]]).square().sum(dim=1)
    theirs = 0.8 * torch.exp(-(distance / distance.mean() - 1) / (2 * 0.5 * 0.5))
    torch.testing.assert_close(kernel(features, perm, 0.8, 0.5), theirs)


def test_similar_pairs_mix_more_evenly() -> None:
    for warping in ("quantile", "distribution"):
        lam = warp(torch.full((3,), 0.2), torch.tensor([0.1, 1.0, 10.0]), warping)
        assert lam[0] < lam[1] < lam[2] < 0.5
        assert lam[1].item() == pytest.approx(0.2, abs=1e-5)


def test_equal_features_give_finite_lam() -> None:
    perm, base = draw_partners(3, rng()), torch.tensor([0.1, 0.5, 0.7])
    tau = kernel(torch.ones(3, 4), perm, 1.0, 0.25)
    assert torch.isfinite(warp(base, tau, "quantile")).all()


def test_features_are_those_of_the_batch_and_change_nothing() -> None:
    images, targets = toys()
    student = telling_network().train()
    method = make(SKMixup, student)
    params = method.make_params(images.shape, rng(), 0)
    before = state_of(student)
    pooled = method.extract_features(images, targets, student, None, params)["pooled"]
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    torch.testing.assert_close(pooled, student.features(images).pooled)
    assert not pooled.requires_grad
