"""Mixup: a convex combination of two images and of their labels.

Paper: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412.
What it computes: λ ~ Beta(a, a); x̃ = λ x + (1 - λ) x[π]; ỹ = λ y + (1 - λ) y[π].
Requires: only images and labels. Cost: 3F per step, as plain training.
Defaults: a = 1 (CIFAR); the paper uses 0.1 to 0.4 on ImageNet.
Deviations: none. Drawing λ per sample is an option.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from adautomix.methods.base import InputMixing, MethodSettings
from adautomix.methods.facts import Paper
from adautomix.mixing.ops import Mixed, mix_by_lam
from adautomix.mixing.params import PairParams, Shape, draw_lam, draw_partners


@dataclass(frozen=True)
class MixupParams(PairParams):
    """Parameters of Mixup."""


class MixupSettings(MethodSettings):
    """Settings of Mixup."""

    alpha: float = Field(1.0, gt=0, description="λ ~ Beta(alpha, alpha)")
    per_sample: bool = Field(False, description="draw one λ per mix instead of one per batch")


def draw_mixup(
    batch: int, alpha: float, generator: torch.Generator, *, per_sample: bool = False
) -> MixupParams:
    """Draw a partner for each image and the weights of both."""
    perm = draw_partners(batch, generator)
    return MixupParams(perm, draw_lam(batch, alpha, generator, per_sample=per_sample))


class Mixup(InputMixing[MixupSettings, MixupParams]):
    """Mixup (Zhang et al., ICLR 2018)."""

    name = "mixup"
    summary = "a convex combination of two images"
    paper = Paper(
        authors="Zhang, Cisse, Dauphin, Lopez-Paz",
        title="mixup: Beyond Empirical Risk Minimization",
        venue="ICLR",
        year=2018,
        arxiv="1710.09412",
    )
    Settings = MixupSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> MixupParams:
        """Draw a partner for each image and the weights of both."""
        s = self.settings
        return draw_mixup(shape[0], s.alpha, generator, per_sample=s.per_sample)

    def mix(
        self, images: Tensor, targets: Tensor, params: MixupParams, **features: Tensor
    ) -> Mixed:
        """Return `λ x + (1 - λ) x[π]`."""
        return mix_by_lam(images, targets, params.perm, params.lam)
