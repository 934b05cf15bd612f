"""Manifold Mixup: Mixup of the hidden states of two images, at a random depth of the network.

Paper: Verma, Lamb, Beckham, Najafi, Mitliagkas, Lopez-Paz, Bengio, "Manifold Mixup: Better
Representations by Interpolating Hidden States", ICML 2019, arXiv 1806.05236.
Computes: λ ~ Beta(a, a) and a stage k ~ U{0, …, deepest} for the batch. The network runs up to the
output h `[B, C, h, w]` of stage k (k = 0: the images themselves), continues with
λ h + (1 - λ) h[π], and is trained on λ y + (1 - λ) y[π] `[B, K]`. The gradient flows through both
sources.
Requires: a network with stages.
Cost: 3F per step. Where a batch is split over processes or accumulation steps, each part computes
the hidden states of its partners in a pass of its own, so the stages below k run twice.
Settings:
- alpha: 2 in the authors' CIFAR commands and in the openmixup benchmark on CIFAR-100. The authors'
  README uses 0.2 on Tiny-ImageNet; openmixup uses 0.2 on Tiny-ImageNet and ImageNet.
- deepest: 2, as in the authors' code, which mixes the images or the output of stage 1 or 2 of a
  pre-activation ResNet, and in openmixup. In a plain transformer a stage is a block.
- per_sample: off, as in the authors' code.
Deviations:
- The loss is cross-entropy, as in openmixup. The authors' code uses the binary cross-entropy of
  the softmax, whose scale, and so the learning rate, differs.
- Where processes share a batch, batch norm below stage k sees every image of it twice, which
  gives the same mean and variance.
- `mix_batch` returns the mix of the images whatever k is, because hidden states cannot be shown.
Evidence: 79.18 / 80.18 / 80.35 % top-1 accuracy with ResNet-18 on CIFAR-100 after 200 / 400 / 800
epochs, with a = 2 (openmixup benchmark; median of the last 10 epochs).
"""

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods.base import MethodSettings, MixInputs
from adautomix.methods.base_feature import FeatureMixing
from adautomix.methods.facts import Paper
from adautomix.mixing.ops import weighted_sum
from adautomix.mixing.params import PairParams, Shape, draw_lam, draw_partners
from adautomix.models import Classifier


@dataclass(frozen=True)
class ManifoldMixParams(PairParams):
    """Parameters of Manifold Mixup.

    Attributes:
        stage: the stage whose output is mixed, counted from 1; 0 mixes the images.
    """

    stage: int


class ManifoldMixSettings(MethodSettings):
    """Settings of Manifold Mixup."""

    alpha: float = Field(2.0, gt=0, description="λ ~ Beta(alpha, alpha)")
    deepest: int = Field(
        2, ge=0, description="last stage whose output may be mixed; 0 mixes images only"
    )
    per_sample: bool = Field(False, description="draw one λ per mix instead of one per batch")


class ManifoldMix(FeatureMixing[ManifoldMixSettings, ManifoldMixParams]):
    """Manifold Mixup (Verma et al., ICML 2019)."""

    name = "manifoldmix"
    summary = "Mixup of hidden states, at a random depth"
    paper = Paper(
        authors="Verma, Lamb, Beckham, Najafi, Mitliagkas, Lopez-Paz, Bengio",
        title="Manifold Mixup: Better Representations by Interpolating Hidden States",
        venue="ICML",
        year=2019,
        arxiv="1806.05236",
    )
    label_note = "hidden states are mixed, not pixels"
    Settings = ManifoldMixSettings

    def build(self, model: nn.Module | None) -> None:
        """Check that the network is deep enough.

        Raises:
            UsageError: it has fewer stages than `deepest`.
        """
        super().build(model)
        deepest, network = self.settings.deepest, self.network_with(model, "stages")
        if deepest > self.depth:
            raise UsageError(
                f"manifoldmix.deepest = {deepest}: {network.spec.name} has "
                f"{self.depth} stages to mix after"
            )

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> ManifoldMixParams:
        """Draw a partner for each image, λ, and the stage after which they are mixed."""
        s = self.settings
        perm = draw_partners(shape[0], generator)
        lam = draw_lam(shape[0], s.alpha, generator, per_sample=s.per_sample)
        stage = int(torch.randint(s.deepest + 1, (), generator=generator))
        return ManifoldMixParams(perm, lam, stage)

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Any, params: ManifoldMixParams
    ) -> dict[str, Tensor]:
        """Mix the images or the output of a stage, and take the soft cross-entropy."""
        if params.stage == 0:
            return super().compute_loss(sources, student, teacher, params)

        def mix(hidden: Tensor, perm: Tensor) -> Tensor:
            weights = params.lam.to(hidden.dtype).view(*params.lam.shape, *[1] * (hidden.ndim - 1))
            return weighted_sum(hidden, perm, weights)

        return self.loss_mixed_after(params.stage, mix, sources, student, params)
