"""RegMixup: the loss of the clean images plus that of Mixup images, which regularizes it.

Paper: Pinto, Yang, Lim, Torr, Dokania, "Using Mixup as a Regularizer Can Surprisingly Improve
Accuracy & Out-of-Distribution Robustness", NeurIPS 2022, arXiv 2206.14502.
Computes: λ ~ Beta(a, a) for the batch, with a so large that λ is close to 1/2, and a permutation π;

    x̃ = λ x + (1 - λ) x[π]   [B, C, H, W]
    ỹ = λ y + (1 - λ) y[π]   [B, K]
    loss = (CE(student(x), y) + η CE(student(x̃), ỹ)) / (1 + η)

Both batches pass through the network as one batch of 2B images.
Requires: only images and labels.
Cost: 6F per step, twice that of plain training.
Settings:
- alpha: 10 in the authors' CIFAR-100 command; their CIFAR-10 command has 20.
- eta: 1, as in the authors' code.
- per_sample: off, as in the authors' code.
Deviations: the paper's objective is CE + η CE. It is divided by 1 + η here, so that at η = 1 it is
the loss of the authors' code, which takes one mean over both batches, and their learning rates
apply.
Evidence: none published for ResNet-18 on CIFAR-100 in the openmixup benchmark, which leaves this
method out. The authors train ResNet-50 and WideResNet-28-10.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from adautomix.methods.base import Method, MethodSettings, MixInputs
from adautomix.methods.facts import Paper
from adautomix.methods.mixup import MixupParams, draw_mixup
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.ops import Mixed, mix_by_lam
from adautomix.mixing.params import Shape


class RegMixupSettings(MethodSettings):
    """Settings of RegMixup."""

    alpha: float = Field(10.0, gt=0, description="λ ~ Beta(alpha, alpha); larger is nearer to 1/2")
    eta: float = Field(1.0, ge=0, description="η, weight of the loss of the mixed images")
    per_sample: bool = Field(False, description="draw one λ per mix instead of one per batch")


class RegMixup(Method[RegMixupSettings, MixupParams]):
    """RegMixup (Pinto et al., NeurIPS 2022)."""

    name = "regmixup"
    summary = "the clean loss plus that of Mixup near λ = 1/2"
    paper = Paper(
        authors="Pinto, Yang, Lim, Torr, Dokania",
        title="Using Mixup as a Regularizer Can Surprisingly Improve Accuracy & "
        "Out-of-Distribution Robustness",
        venue="NeurIPS",
        year=2022,
        arxiv="2206.14502",
    )
    cost = 6.0
    Settings = RegMixupSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> MixupParams:
        """Draw a partner for each image and the weights of both."""
        s = self.settings
        return draw_mixup(shape[0], s.alpha, generator, per_sample=s.per_sample)

    def mix(
        self, images: Tensor, targets: Tensor, params: MixupParams, **features: Tensor
    ) -> Mixed:
        """Return `λ x + (1 - λ) x[π]`."""
        return mix_by_lam(images, targets, params.perm, params.lam)

    def compute_loss(
        self, sources: MixInputs, student: nn.Module, teacher: Any, params: MixupParams
    ) -> dict[str, Tensor]:
        """Compute the mean of the clean and the mixed cross-entropy, weighed 1 and η."""
        mixed = self.mix(sources.images, sources.targets, params)
        images, targets = sources.images[sources.own], sources.targets[sources.own]
        # One forward pass of both, so that batch norm sees them together.
        logits = student(torch.cat([images, mixed.images]))
        clean_logits, mixed_logits = logits.split([len(images), len(mixed.images)])
        clean = self.cross_entropy(clean_logits, targets)
        regularizer = self.cross_entropy(mixed_logits, mixed.targets)
        eta = self.settings.eta
        return {
            "loss": (clean + eta * regularizer) / (1 + eta),
            "mixture_accuracy": mixture_accuracy(mixed_logits, mixed.targets),
            "clean": clean.detach(),
            "mixed": regularizer.detach(),
        }
