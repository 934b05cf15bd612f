"""No mixing: plain cross-entropy, the baseline of every comparison.

Cost: 3F a step (one forward, one backward through weights and activations).
"""

import torch
from torch import Tensor

from adautomix.methods.base import Draw, InputMixing, Mixed


class Vanilla(InputMixing):
    """Train on the images as they come."""

    name = "vanilla"
    summary = "no mixing, the baseline"

    def draw(self, images: Tensor, generator: torch.Generator, step: int) -> Draw:
        """Nothing is random."""
        return Draw()

    def mix(self, images: Tensor, targets: Tensor, draw: Draw) -> Mixed:
        """Each image is a mix of itself alone."""
        rows = torch.arange(len(images), device=images.device)[:, None]
        return Mixed(images, targets, lam=torch.ones_like(rows, dtype=torch.float32), perm=rows)
