"""Plain training: cross-entropy on the images as they are, the baseline of every comparison.

Paper: none.
Computes: the images `[B, C, H, W]` and labels `[B, K]` unchanged.
Requires: only images and labels.
Cost: 3F per step: one forward pass (F), and a backward pass through weights and activations (2F).
Settings: none.
Deviations: none.
Evidence: 76.42 / 77.73 / 78.04 % top-1 accuracy with ResNet-18 on CIFAR-100 after 200 / 400 / 800
epochs (openmixup benchmark; median of the last 10 epochs).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adautomix.methods.base import InputMixing, MethodSettings
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import MixParams, Shape


@dataclass(frozen=True)
class VanillaParams(MixParams):
    """Parameters of training without mixing.

    Attributes:
        perm: row of each image, int64 `[B, 1]`.
    """

    perm: Tensor


class Vanilla(InputMixing[MethodSettings, VanillaParams]):
    """Train on the images as they are."""

    name = "vanilla"
    summary = "no mixing, the baseline"
    paper = None

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> VanillaParams:
        """Return the rows of the batch; nothing is random."""
        return VanillaParams(torch.arange(shape[0])[:, None])

    def mix(
        self, images: Tensor, targets: Tensor, params: VanillaParams, **features: Tensor
    ) -> Mixed:
        """Return each image unchanged, as a mix with a single source."""
        rows = params.perm[:, 0]
        lam = torch.ones_like(params.perm, dtype=torch.float32)
        return Mixed(images[rows], targets[rows], lam, params.perm)
