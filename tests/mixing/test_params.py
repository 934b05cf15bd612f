"""Distributions of the random parameters, compared with scipy."""

import numpy as np
import pytest
import scipy.stats
import torch
from given import rng
from torch import Tensor

from adautomix.methods.comixup import draw_dirichlet
from adautomix.mixing import params
from adautomix.mixing.params import (
    draw_beta,
    draw_derangement,
    draw_lam,
    draw_log_gamma,
    draw_partners,
    draw_permutations,
    draw_simplex,
)

SMALL = pytest.mark.parametrize("alpha", [0.001, 0.01, 0.05])
COUNT = 40_000  # draws


# ---------------------------------------------------------------------- Beta and Gamma


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 4.0])
def test_beta_has_scipys_moments_and_cdf(alpha: float) -> None:
    draws = draw_beta(10_000, 2, alpha, rng())
    beta = scipy.stats.beta(alpha, alpha)
    assert draws.shape == (10_000, 2)
    assert draws.mean().item() == pytest.approx(beta.mean(), abs=0.01)
    assert draws.var().item() == pytest.approx(beta.var(), rel=0.04)
    for x in (0.01, 0.1, 0.4, 0.7, 0.95):
        below = (draws < x).double().mean().item()
        assert below == pytest.approx(beta.cdf(x), abs=0.015)
    assert abs(torch.corrcoef(draws.T)[0, 1]) < 0.05


def uniform_under_beta(draws: Tensor, alpha: float) -> np.ndarray:
    """The probability integral transform of float32 draws, uniform if they are Beta(alpha, alpha).

    A float32 number stands for the interval of real numbers that round to it, which holds much
    of the mass near 0 and 1, so each draw is spread at random over the cdf of its interval.
    """
    values = draws.numpy().astype(np.float32)
    below = np.nextafter(values, np.float32(0)).astype(np.float64)
    above = np.nextafter(values, np.float32(2)).astype(np.float64)
    low, high = (values.astype(np.float64) + below) / 2, (values.astype(np.float64) + above) / 2
    smallest = values == np.finfo(np.float32).tiny
    low[smallest] = 0
    high[smallest] = np.finfo(np.float32).tiny
    high[values == 1] = 1
    beta = scipy.stats.beta(alpha, alpha)
    u = torch.rand(len(values), generator=rng(1), dtype=torch.float64).numpy()
    uniform: np.ndarray = beta.cdf(low) + u * (beta.cdf(high) - beta.cdf(low))
    return uniform


@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.05, 0.0999, 0.1, 1.0])
def test_beta_passes_the_kolmogorov_smirnov_test(alpha: float) -> None:
    draws = draw_beta(COUNT, 1, alpha, rng())[:, 0]
    assert scipy.stats.kstest(uniform_under_beta(draws, alpha), "uniform").pvalue > 0.01


@SMALL
def test_small_alpha_has_the_exact_mass_near_0_and_1_and_a_half(alpha: float) -> None:
    draws = draw_beta(COUNT, 1, alpha, rng(2))[:, 0].double()
    beta = scipy.stats.beta(alpha, alpha)
    middle = beta.cdf(0.75) - beta.cdf(0.25)
    expected = {"near 0": beta.cdf(1e-6), "middle": middle, "near 1": beta.sf(1 - 1e-6)}
    found = {
        "near 0": (draws < 1e-6).double().mean().item(),
        "middle": ((draws > 0.25) & (draws < 0.75)).double().mean().item(),
        "near 1": (draws > 1 - 1e-6).double().mean().item(),
    }
    for name, mass in expected.items():
        deviation = (mass * (1 - mass) / COUNT) ** 0.5
        assert found[name] == pytest.approx(mass, abs=4 * deviation), name
    assert (draws == 0.5).sum() == 0, "two gamma draws that underflow would give exactly 1/2"


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 8.0])
def test_from_a_tenth_on_draws_are_those_of_earlier_versions(alpha: float) -> None:
    """Bit by bit, and so is what the generator draws next: old runs resume exactly."""
    ours, theirs = rng(5), rng(5)
    draws = draw_beta(50, 3, alpha, ours)
    concentration = torch.full((50, 3, 2), alpha, dtype=torch.float64)
    gamma = torch._standard_gamma(concentration, generator=theirs)
    expected = (gamma[..., 0] / gamma.sum(dim=-1)).float()
    assert torch.equal(draws, expected.clamp_min(torch.finfo(torch.float32).tiny))
    assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-20, 1e-3])
def test_any_alpha_above_0_gives_numbers(alpha: float) -> None:
    draws = draw_beta(1000, 3, alpha, rng())
    assert ((draws > 0) & (draws <= 1)).all()
    assert (draws < 1e-6).double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (draws > 1 - 1e-6).double().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.5, 3.0])
def test_log_gamma_is_distributed_as_scipys(alpha: float) -> None:
    draws = draw_log_gamma((20_000,), alpha, rng())
    assert draws.dtype == torch.float64
    assert scipy.stats.kstest(draws.numpy(), scipy.stats.loggamma(alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.001, 0.05, 2.0])
def test_dirichlet_has_weights_for_present_images_only(alpha: float) -> None:
    present = torch.ones(5000, 4, dtype=torch.bool)
    present[:100, 2:] = False
    prior = draw_dirichlet(present, alpha, rng())
    torch.testing.assert_close(prior.sum(dim=1), torch.ones(5000))
    assert torch.equal(prior > 0, present)
    # The marginal of one of four is Beta(α, 3α).
    beta = scipy.stats.beta(alpha, 3 * alpha)
    for x in (0.1, 0.5, 0.9):
        below = (prior[100:, 0] < x).double().mean().item()
        assert below == pytest.approx(beta.cdf(x), abs=0.03)


# ---------------------------------------------------------------------- weights of N images


@pytest.mark.parametrize("per_sample", [False, True])
def test_lam_is_one_per_batch_or_one_per_mix(per_sample: bool) -> None:
    lam = draw_lam(50, 1.0, rng(), per_sample=per_sample)
    torch.testing.assert_close(lam.sum(dim=1), torch.ones(50))
    assert len(lam[:, 0].unique()) == (50 if per_sample else 1)


def test_simplex_of_two_is_a_draw_and_the_rest() -> None:
    lam = draw_simplex(20_000, 2, 1.0, rng(), per_sample=True)
    torch.testing.assert_close(lam[:, 1], 1 - lam[:, 0])
    # A tenth of a uniform u lies below 0.1; of u_1 / (u_1 + u_2) only an eighteenth.
    assert (lam[:, 0] < 0.1).float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_simplex_of_small_alpha_compares_draws_that_underflow() -> None:
    """Each u is about 0 or about 1, so that λ is even if all are 1 and else decided by the largest.

    Equal weights of u that are all 0 would come from draws that underflow.
    """
    lam = draw_simplex(COUNT, 3, 1e-3, rng(), per_sample=True)
    torch.testing.assert_close(lam.sum(dim=1), torch.ones(COUNT))
    even = ((lam - 1 / 3).abs() < 0.01).all(dim=1).double().mean().item()
    single = (lam.amax(dim=1) > 0.99).double().mean().item()
    assert even == pytest.approx(1 / 8, abs=0.01)
    assert single == pytest.approx(1 / 2, abs=0.015)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("alpha", [0.01, 0.5])
def test_simplex_sums_to_one(n: int, per_sample: bool, alpha: float) -> None:
    lam = draw_simplex(40, n, alpha, rng(), per_sample=per_sample)
    torch.testing.assert_close(lam.sum(dim=1), torch.ones(40))
    assert len(lam.unique(dim=0)) == (40 if per_sample else 1) or alpha < 0.1


def test_largest_weight_of_three() -> None:
    lam = draw_simplex(100_000, 3, 1.0, rng(), per_sample=True)
    assert lam.amax(dim=1).mean().item() == pytest.approx(0.523, abs=0.002)


# ---------------------------------------------------------------------- permutations


def test_permutations_contain_every_row_once() -> None:
    perm = draw_permutations(40, 3, rng())
    assert perm.shape == (40, 3)
    for column in perm.T:
        assert sorted(column.tolist()) == list(range(40))
    assert not torch.equal(perm[:, 0], perm[:, 1])
    assert not torch.equal(perm[:, 0], torch.arange(40))


def test_all_permutations_are_equally_likely() -> None:
    first = torch.stack([draw_permutations(3, 1, rng(seed))[:, 0] for seed in range(1200)])
    _, counts = first.unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.001


def test_partners_are_a_permutation_next_to_the_images_themselves() -> None:
    partners = draw_partners(40, rng())
    assert partners[:, 0].tolist() == list(range(40))
    assert sorted(partners[:, 1].tolist()) == list(range(40))


def test_deranged_permutations_leave_no_image_in_its_place() -> None:
    for seed in range(50):
        perm = draw_permutations(6, 3, rng(seed), derange=True)
        partners = draw_partners(6, rng(seed), derange=True)
        for column in (*perm.T, partners[:, 1]):
            assert sorted(column.tolist()) == list(range(6))
            assert not (column == torch.arange(6)).any()
        assert partners[:, 0].tolist() == list(range(6))


def test_all_derangements_are_equally_likely() -> None:
    columns = torch.stack([draw_derangement(4, rng(seed)) for seed in range(1800)])
    found, counts = columns.unique(dim=0, return_counts=True)
    assert len(found) == 9
    # After ten draws with a fixed point it is the shift by one, in about one case of a hundred.
    shift = (found == torch.tensor([1, 2, 3, 0])).all(dim=1)
    expected = torch.full((9,), 1800 * (1 - (15 / 24) ** 10) / 9, dtype=torch.float64)
    expected[shift] += 1800 * (15 / 24) ** 10
    assert scipy.stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 0.001


def test_without_another_draw_the_batch_is_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "DERANGEMENT_TRIES", 0)
    assert draw_derangement(4, rng()).tolist() == [1, 2, 3, 0]
