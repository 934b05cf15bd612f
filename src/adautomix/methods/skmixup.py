"""SK Mixup: Mixup with λ nearer to 1/2 the more similar the network finds the two images.

Paper: Bouniot, Mozharovskyi, d'Alché-Buc, "Tailoring Mixup to Data for Calibration", ICLR 2025,
arXiv 2311.01434.
Computes: z `[B, D]`, the student's pooled features of the clean images, without gradient and
without a change to any buffer; a permutation π; and for each pair, with u ~ Beta(a, a),

    d   = |z - z[π]|², divided by its mean over all pairs of two different images [B]
    τ   = tau_max · exp(-(d - 1) / (2 tau_std²))                                 [B]
    λ   = F⁻¹(u), the quantile of Beta(τ, τ);  or  F(u), the distribution function of
          Beta(1/τ, 1/τ)
    mix   λ x + (1 - λ) x[π]  [B, C, H, W],   label   λ y + (1 - λ) y[π]  [B, K]

With a = 1 and the quantile, λ ~ Beta(τ, τ): similar images mix evenly, dissimilar ones hardly.
Requires: the pooled feature.
Cost: 4F per step: plain training, and 1F for the features of the clean images.
Settings:
- alpha: 1, as in the authors' configurations.
- tau_max: 1 in the authors' configurations of CIFAR-100.
- tau_std: 0.25 in the authors' configurations of CIFAR-100.
- warping: `quantile`, as in the paper and in the authors' configurations (`inverse_beta_cdf`);
  `distribution` is the paper's first version, and the only one in torch-uncertainty.
- per_sample: on, as in the authors' configurations (`mixmode: elem`).
Deviations:
- The mean distance is that of all pairs of two different images of the batch, which has a closed
  form. The authors take the mean over the pairs of π, an estimate of it. So parts of a split batch
  mix as the whole would.
- The authors' pass for the features updates the running statistics of batch norm, so that each
  clean batch counts there besides its mix. Here it leaves them alone.
- torch-uncertainty divides d - 1 by the mean, where the authors' own code divides d by it first.
  This follows the authors' code.
Evidence: none published for ResNet-18 on CIFAR-100 in the openmixup benchmark, which leaves this
method out. The authors train ResNet-34, ResNet-50 and ResNet-101, for calibration.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adautomix.methods.base import FeatureDict, Method, MethodSettings
from adautomix.methods.facts import Paper, Requirement
from adautomix.mixing.ops import Mixed, mix_by_lam
from adautomix.mixing.params import MixParams, Shape, draw_beta, draw_partners
from adautomix.mixing.saliency import probing
from adautomix.mixing.symmetric_beta import symmetric_beta_cdf, symmetric_beta_quantile
from adautomix.models import Classifier

Warping = Literal["quantile", "distribution"]


@dataclass(frozen=True)
class SKMixupParams(MixParams):
    """Parameters of SK Mixup.

    Attributes:
        perm: rows of the image and its partner, int64 `[B, 2]`.
        base: u, from which λ is computed, float32 `[B]`.
    """

    perm: Tensor
    base: Tensor


class SKMixupSettings(MethodSettings):
    """Settings of SK Mixup."""

    alpha: float = Field(1.0, gt=0, description="u ~ Beta(alpha, alpha)")
    tau_max: float = Field(
        1.0, gt=0, description="τ of a pair at the mean distance; larger: mixed more evenly"
    )
    tau_std: float = Field(
        0.25, gt=0, description="width of the kernel; larger: τ depends less on the distance"
    )
    warping: Warping = Field(
        "quantile", description="how λ depends on u and τ: quantile or distribution"
    )
    per_sample: bool = Field(True, description="draw one u per mix instead of one per batch")


def kernel(features: Tensor, perm: Tensor, tau_max: float, tau_std: float) -> Tensor:
    """Compute τ of each pair, large for similar images.

    Args:
        features: z of all images of the batch, float32 `[B, D]`.
        perm: rows of both images, int64 `[M, 2]`.
        tau_max: τ at the mean distance.
        tau_std: width of the kernel.

    Returns:
        Float32 `[M]`.
    """
    # The mean squared distance of two different rows is twice the unbiased variance.
    deviations = (features - features.mean(dim=0)).square().sum(dim=1)
    mean = 2 * deviations.sum() / max(1, len(features) - 1)
    distance = (features[perm[:, 0]] - features[perm[:, 1]]).square().sum(dim=1)
    ratio = distance / mean.clamp_min(torch.finfo(mean.dtype).tiny)
    return tau_max * ((1 - ratio) / (2 * tau_std**2)).exp()


def warp(base: Tensor, tau: Tensor, warping: Warping) -> Tensor:
    """Compute λ from u and τ, all `[M]`."""
    if warping == "quantile":
        return symmetric_beta_quantile(base, tau)
    return symmetric_beta_cdf(base, 1 / tau)


class SKMixup(Method[SKMixupSettings, SKMixupParams]):
    """SK Mixup (Bouniot et al., ICLR 2025)."""

    name = "skmixup"
    summary = "Mixup with λ nearer to 1/2 for similar images"
    paper = Paper(
        authors="Bouniot, Mozharovskyi, d'Alché-Buc",
        title="Tailoring Mixup to Data for Calibration",
        venue="ICLR",
        year=2025,
        arxiv="2311.01434",
    )
    requires = frozenset({Requirement.POOLED_FEATURES})
    cost = 4.0
    Settings = SKMixupSettings

    def build(self, model: nn.Module | None) -> None:
        """Check that the network gives pooled features."""
        self.network_with(model, "features")

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> SKMixupParams:
        """Draw a partner for each image and u."""
        s, batch = self.settings, shape[0]
        perm = draw_partners(batch, generator)
        base = draw_beta(batch if s.per_sample else 1, 1, s.alpha, generator)[:, 0]
        return SKMixupParams(perm, base.expand(batch).contiguous())

    @torch.no_grad()
    def extract_features(
        self,
        images: Tensor,
        targets: Tensor,
        student: Classifier,
        teacher: Any,
        params: SKMixupParams,
    ) -> FeatureDict:
        """Return the pooled features of the clean images, float32 `[B, D]`."""
        with probing(student):
            return {"pooled": student.features(images).pooled.float()}

    def mix(
        self, images: Tensor, targets: Tensor, params: SKMixupParams, **features: Tensor
    ) -> Mixed:
        """Return `λ x + (1 - λ) x[π]` with λ from the similarity of the pair."""
        s = self.settings
        tau = kernel(features["pooled"], params.perm, s.tau_max, s.tau_std)
        lam = warp(params.base, tau, s.warping)
        return mix_by_lam(images, targets, params.perm, torch.stack([lam, 1 - lam], dim=1))
