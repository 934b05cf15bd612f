"""No mixing: plain cross-entropy, the baseline of every comparison.

Cost: 3F a step (one forward, one backward through weights and activations).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adautomix.methods.base import Draw, InputMixing, Mixed, Shape


@dataclass(frozen=True)
class VanillaDraw(Draw):
    """`perm` `[B, 1]`: every image is its own only source."""

    perm: Tensor


class Vanilla(InputMixing):
    """Train on the images as they come."""

    name = "vanilla"
    summary = "no mixing, the baseline"

    def draw(self, shape: Shape, generator: torch.Generator, step: int) -> VanillaDraw:
        """Nothing is random."""
        return VanillaDraw(torch.arange(shape[0])[:, None])

    def mix(self, images: Tensor, targets: Tensor, draw: VanillaDraw, **seen: Tensor) -> Mixed:
        """Each image is a mix of itself alone."""
        rows = draw.perm[:, 0]
        lam = torch.ones_like(draw.perm, dtype=torch.float32)
        return Mixed(images[rows], targets[rows], lam, draw.perm)
