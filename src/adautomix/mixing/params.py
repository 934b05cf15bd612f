"""Random parameters of a mix, drawn on the CPU and separate from applying them.

B is the batch size and N the number of images per mix. `perm[b, n]` is the row of the batch that
is source n of mix b, and `lam[b, n]` is the weight of that source.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from adautomix.device import to_device

Shape = Sequence[int]

# Gamma draws with a smaller shape parameter are computed in log space, as they may underflow.
LOG_SPACE_BELOW = 0.1
DERANGEMENT_TRIES = 10


@dataclasses.dataclass(frozen=True)
class MixParams:
    """Random parameters of the mixes of one batch.

    Subclasses add tensors (boxes, masks, mixing coefficients) with one row per mix, parameters of
    other mixes of the same batch, and Python values that apply to the whole batch.

    Attributes:
        coin: which mixes are used, bool `[B]`; the images of the others stay clean. None: all are.
    """

    coin: Tensor | None = dataclasses.field(default=None, kw_only=True)

    def to(self, device: torch.device) -> Self:
        """Return the same parameters with tensors on `device`, copied without a host sync."""
        return self.map(lambda value: to_device(value, device))

    def rows(self, index: slice) -> Self:
        """Return the parameters of some of the mixes, all of which one process computes."""
        return self.select(index)

    def select(self, index: slice | Tensor) -> Self:
        """Return the parameters of some of the mixes, in any order."""
        return self.map(lambda value: value[index])

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the parameters with a function applied to each tensor, also in nested ones."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(
            self, **{name: _map(value, function) for name, value in values.items()}
        )


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to a tensor, or to the tensors of parameters or of a tuple of them."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, MixParams):
        return value.map(function)
    if isinstance(value, tuple):
        return tuple(_map(part, function) for part in value)
    return value


@dataclasses.dataclass(frozen=True)
class CleanParams(MixParams):
    """Parameters of a step that trains on the clean batch."""


@dataclasses.dataclass(frozen=True)
class PairParams(MixParams):
    """Parameters of mixes of two images.

    Attributes:
        perm: rows of the batch of the first and the second image, int64 `[B, 2]`.
        lam: their weights, λ and 1 - λ, float32 `[B, 2]`.
    """

    perm: Tensor
    lam: Tensor


def draw_permutations(
    batch: int, n: int, generator: torch.Generator, *, derange: bool = False
) -> Tensor:
    """Draw N independent permutations of the batch, int64 `[B, N]`.

    Args:
        batch: B.
        n: N.
        generator: a CPU generator.
        derange: draw permutations again that leave an image in its place, see `draw_derangement`.
    """
    if derange:
        return torch.stack([draw_derangement(batch, generator) for _ in range(n)], dim=1)
    return torch.rand(n, batch, generator=generator).argsort(dim=1).T.contiguous()


def draw_derangement(batch: int, generator: torch.Generator) -> Tensor:
    """Draw a permutation that leaves no image in its place, int64 `[B]`.

    As in the authors' code it is drawn up to ten times; after that it shifts the batch by one.
    """
    places = torch.arange(batch)
    for _ in range(DERANGEMENT_TRIES):
        permutation = torch.randperm(batch, generator=generator)
        if not (permutation == places).any():
            return permutation
    return places.roll(-1)


def draw_partners(batch: int, generator: torch.Generator, *, derange: bool = False) -> Tensor:
    """Pair each image with a random partner, int64 `[B, 2]`; column 0 is the image itself.

    Args:
        batch: B.
        generator: a CPU generator.
        derange: let no image be its own partner, see `draw_derangement`.
    """
    if derange:
        partner = draw_derangement(batch, generator)
    else:
        partner = torch.randperm(batch, generator=generator)
    return torch.stack([torch.arange(batch), partner], dim=1)


def draw_beta(count: int, n: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Draw from Beta(alpha, alpha).

    Args:
        count: number of rows.
        n: independent draws per row.
        alpha: both parameters of the distribution, above 0.
        generator: a CPU generator.

    Returns:
        Float32 `[count, n]` in (0, 1].
    """
    if alpha < LOG_SPACE_BELOW:
        draws = _draw_log_beta((count, n), alpha, generator).exp().float()
    else:
        # Double precision, because gamma draws with a small shape underflow in float32.
        concentration = torch.full((count, n, 2), alpha, dtype=torch.float64)
        gamma: Tensor = torch._standard_gamma(concentration, generator=generator)
        draws = (gamma[..., 0] / gamma.sum(dim=-1)).float()
    return draws.clamp_min(torch.finfo(draws.dtype).tiny)  # u / Σu needs a sum above 0


def draw_lam(batch: int, alpha: float, generator: torch.Generator, *, per_sample: bool) -> Tensor:
    """Draw the weights (λ, 1 - λ) of two images with λ ~ Beta(alpha, alpha).

    Args:
        batch: B.
        alpha: both parameters of the distribution, above 0.
        generator: a CPU generator.
        per_sample: draw one λ per mix instead of one per batch.

    Returns:
        Float32 `[B, 2]`; rows sum to 1.
    """
    u = draw_beta(batch if per_sample else 1, 1, alpha, generator)
    return torch.cat([u, 1 - u], dim=1).expand(batch, 2).contiguous()


def draw_simplex(
    batch: int, n: int, alpha: float, generator: torch.Generator, *, per_sample: bool = False
) -> Tensor:
    """Draw the weights of N images: λ = u / Σu with i.i.d. u ~ Beta(alpha, alpha).

    For two images λ = (u, 1 - u).

    Args:
        batch: B.
        n: N, at least 2.
        alpha: both parameters of the distribution, above 0.
        generator: a CPU generator.
        per_sample: draw one λ per mix instead of one per batch.

    Returns:
        Float32 `[B, N]`; rows sum to 1.
    """
    count = batch if per_sample else 1
    if n > 2 and alpha < LOG_SPACE_BELOW:
        lam = _draw_log_beta((count, n), alpha, generator).softmax(dim=1).float()
        return lam.expand(batch, n).contiguous()
    u = draw_beta(count, n, alpha, generator)
    lam = torch.stack([u[:, 0], 1 - u[:, 0]], dim=1) if n == 2 else u / u.sum(dim=1, keepdim=True)
    return lam.expand(batch, n).contiguous()


def draw_log_gamma(shape: Shape, alpha: float, generator: torch.Generator) -> Tensor:
    """Draw logarithms of Gamma(alpha) variates, float64, for any alpha above 0.

    With U uniform on (0, 1], Gamma(alpha) is distributed as Gamma(alpha + 1) · U^(1 / alpha)
    (Marsaglia and Tsang, ACM TOMS 2000), whose logarithm does not underflow.
    """
    gamma = torch._standard_gamma(
        torch.full(tuple(shape), alpha + 1, dtype=torch.float64), generator=generator
    )
    uniform = torch.rand(tuple(shape), dtype=torch.float64, generator=generator)
    # A smaller alpha would overflow, and its draws could not be told apart anyway.
    log_gamma: Tensor = gamma.log() + (-uniform).log1p() / max(alpha, 1e-300)
    return log_gamma


def _draw_log_beta(shape: Shape, alpha: float, generator: torch.Generator) -> Tensor:
    """Draw logarithms of Beta(alpha, alpha) variates, float64."""
    log_gamma = draw_log_gamma((*shape, 2), alpha, generator)
    log_beta: Tensor = log_gamma.log_softmax(dim=-1)
    return log_beta[..., 0]
