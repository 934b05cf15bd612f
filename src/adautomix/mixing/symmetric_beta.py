"""Distribution function of Beta(a, a) and its inverse, for tensors on any device.

PyTorch has neither. With w = |1 - 2x|, the distribution function at x ≤ 1/2 is

    I_x(a, a) = 1/2 · Q(w) / Q(0),   Q(w) = ∫_w^1 (1 - u²)^(a - 1) du

and 1 - I_(1-x)(a, a) above. Dividing by Q(0) instead of the beta function keeps float32 accurate.
"""

import numpy as np
import torch
from torch import Tensor

# The Gauss-Legendre rule on [0, 1].
_nodes, _weights = np.polynomial.legendre.leggauss(64)
NODES, WEIGHTS = ((_nodes + 1) / 2).tolist(), (_weights / 2).tolist()
BISECTIONS = 24  # halve [0, 1/2] down to the resolution of float32
# Parameters beyond these give λ of exactly 0, 1/2 or 1 for all practical purposes.
SMALLEST, LARGEST = 1e-6, 1e6


def _tail(w: Tensor, a: Tensor) -> Tensor:
    """Compute Q(w) up to a factor that depends on `a` alone, `[M]` from `[M]` and `[M]`."""
    nodes, weights = w.new_tensor(NODES), w.new_tensor(WEIGHTS)
    w, a = w[:, None], a[:, None]
    # Small a: u = 1 - (1 - w) v^(1/a) removes the singularity at u = 1.
    fraction = (1 - w) * (nodes.log() / a).exp()
    singular = (1 - w).pow(a) * (2 - fraction).pow(a - 1)
    # Large a: the integrand is negligible, below 1e-9 of its peak, beyond u = end.
    end = torch.maximum((-torch.expm1(-20 / (a - 1).clamp_min(0.1))).sqrt(), w)
    u = w + (end - w) * nodes
    smooth = (end - w) * (torch.log1p(-u.square().clamp_max(1 - 1e-7)) * (a - 1)).exp()
    return (torch.where(a > 2, smooth, singular) * weights).sum(dim=1)


def symmetric_beta_cdf(x: Tensor, a: Tensor) -> Tensor:
    """Compute the probability that a draw from Beta(a, a) is at most x.

    Args:
        x: float32 `[M]`, in [0, 1].
        a: float32 `[M]`, above 0; clamped to [1e-6, 1e6].

    Returns:
        Float32 `[M]`; within 1e-4 of the exact value.
    """
    a = a.clamp(SMALLEST, LARGEST)
    w = 1 - 2 * torch.minimum(x, 1 - x)
    lower = _tail(w, a) / (2 * _tail(torch.zeros_like(w), a))
    return torch.where(x <= 0.5, lower, 1 - lower)


def symmetric_beta_quantile(p: Tensor, a: Tensor) -> Tensor:
    """Compute the inverse of `symmetric_beta_cdf`, by bisection.

    Args:
        p: probabilities, float32 `[M]`, in [0, 1].
        a: float32 `[M]`, above 0; clamped to [1e-6, 1e6].

    Returns:
        Float32 `[M]`, in [0, 1].
    """
    a = a.clamp(SMALLEST, LARGEST)
    target = 2 * torch.minimum(p, 1 - p) * _tail(torch.zeros_like(p), a)
    low, high = torch.zeros_like(p), torch.full_like(p, 0.5)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = _tail(1 - 2 * middle, a) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    quantile = (low + high) / 2
    return torch.where(p <= 0.5, quantile, 1 - quantile)
