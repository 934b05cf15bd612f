"""The distribution function and the quantile of Beta(a, a) compared with SciPy's."""

import pytest
import scipy.special
import torch

from adautomix.mixing.symmetric_beta import symmetric_beta_cdf, symmetric_beta_quantile

PARAMETERS = [1e-4, 0.01, 0.3, 1.0, 1.9, 2.1, 7.0, 150.0, 3e4]


@pytest.mark.parametrize("a", PARAMETERS)
def test_both_equal_scipys(a: float) -> None:
    x = torch.linspace(0, 1, 41)
    given = torch.full_like(x, a)
    cdf = torch.from_numpy(scipy.special.betainc(a, a, x.double().numpy()))
    torch.testing.assert_close(symmetric_beta_cdf(x, given).double(), cdf, atol=1e-4, rtol=0)
    quantile = torch.from_numpy(scipy.special.betaincinv(a, a, x.double().numpy()))
    ours = symmetric_beta_quantile(x, given).double()
    # At p = 1/2 the quantile of a tiny parameter jumps from 0 to 1.
    middle = x.sub(0.5).abs() < 1e-3
    torch.testing.assert_close(ours[~middle], quantile[~middle], atol=1e-4, rtol=0)


def test_each_row_has_its_own_parameter() -> None:
    x, a = torch.tensor([0.2, 0.2, 0.9]), torch.tensor([0.5, 5.0, 1.0])
    both = symmetric_beta_cdf(x, a)
    single = [symmetric_beta_cdf(x[i : i + 1], a[i : i + 1]).item() for i in range(3)]
    assert both.tolist() == pytest.approx(single)
    assert both[2].item() == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize("a", [0.0, 1e-30, float("inf")])
def test_extreme_parameters_stay_in_range(a: float) -> None:
    x = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0])
    for function in (symmetric_beta_cdf, symmetric_beta_quantile):
        values = function(x, torch.full_like(x, a))
        assert ((values >= 0) & (values <= 1)).all()
