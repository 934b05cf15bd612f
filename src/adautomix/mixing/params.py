"""Random parameters of a mix, drawn on the CPU and apart from their use.

B is the batch size and N the number of images per mix. `perm[b, n]` is the row of the batch that
is image n of mix b, and `lam[b, n]` its mixing coefficient.
"""

import dataclasses
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

Shape = Sequence[int]


@dataclasses.dataclass(frozen=True)
class MixParams:
    """The random part of one mix, drawn on the CPU and apart from its use.

    Subclasses add tensors (boxes, masks, ratios), each with one row a mix, and Python values that
    hold for all.
    """

    def to(self, device: torch.device) -> Self:
        """The same draw with its tensors on `device`; the copy does not wait for the device."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def rows(self, some: slice) -> Self:
        """The draw of some of the mixes."""
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kept = {name: value[some] for name, value in tensors.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **kept)


@dataclasses.dataclass(frozen=True)
class PairParams(MixParams):
    """Parameters of mixes of two images.

    Attributes:
        perm: rows of the batch of the first and the second image, int64 `[B, 2]`.
        lam: their weights, λ and 1 - λ, float32 `[B, 2]`.
    """

    perm: Tensor
    lam: Tensor


def draw_permutations(batch: int, n: int, generator: torch.Generator) -> Tensor:
    """N independent permutations of the batch, `[B, N]`."""
    return torch.rand(n, batch, generator=generator).argsort(dim=1).T.contiguous()


def draw_partners(batch: int, generator: torch.Generator) -> Tensor:
    """Each image beside a random partner: `[B, 2]`, the first column is the image itself."""
    partner = torch.randperm(batch, generator=generator)
    return torch.stack([torch.arange(batch), partner], dim=1)


def draw_beta(count: int, n: int, a: float, generator: torch.Generator) -> Tensor:
    """`count` rows of N independent Beta(a, a) draws, `[count, N]`, float32 in (0, 1]."""
    # In double precision: gammas of a small shape underflow in float32, and two that have done
    # so would give 1/2 where Beta(a, a) has next to nothing.
    concentration = torch.full((count, n, 2), a, dtype=torch.float64)
    gamma: Tensor = torch._standard_gamma(concentration, generator=generator)
    draws = (gamma[..., 0] / gamma.sum(dim=-1)).float()
    return draws.clamp_min(torch.finfo(draws.dtype).tiny)  # shares u / Σu need a sum above 0


def draw_lam(batch: int, a: float, generator: torch.Generator, *, per_sample: bool) -> Tensor:
    """Shares (λ, 1 - λ) of two images with λ ~ Beta(a, a), `[B, 2]`.

    One λ serves the whole batch, as in the papers, or each mix has its own.
    """
    u = draw_beta(batch if per_sample else 1, 1, a, generator)
    return torch.cat([u, 1 - u], dim=1).expand(batch, 2).contiguous()


def draw_simplex(
    batch: int, n: int, a: float, generator: torch.Generator, *, per_sample: bool = False
) -> Tensor:
    """λ = u / Σu with N i.i.d. u ~ Beta(a, a); for two images λ = (u, 1 - u). `[B, N]`."""
    u = draw_beta(batch if per_sample else 1, n, a, generator)
    lam = torch.stack([u[:, 0], 1 - u[:, 0]], dim=1) if n == 2 else u / u.sum(dim=1, keepdim=True)
    return lam.expand(batch, n).contiguous()
