"""No mixing: plain cross-entropy, the baseline of every comparison.

Cost: 3F a step (one forward, one backward through weights and activations).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adautomix.methods.base import InputMixing, MethodSettings
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import MixParams, Shape


@dataclass(frozen=True)
class VanillaParams(MixParams):
    """`perm` `[B, 1]`: every image is its own only source."""

    perm: Tensor


class Vanilla(InputMixing[MethodSettings, VanillaParams]):
    """Train on the images as they come."""

    name = "vanilla"
    summary = "no mixing, the baseline"
    paper = None

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> VanillaParams:
        """Nothing is random."""
        return VanillaParams(torch.arange(shape[0])[:, None])

    def mix(
        self, images: Tensor, targets: Tensor, params: VanillaParams, **features: Tensor
    ) -> Mixed:
        """Each image is a mix of itself alone."""
        rows = params.perm[:, 0]
        lam = torch.ones_like(params.perm, dtype=torch.float32)
        return Mixed(images[rows], targets[rows], lam, params.perm)
