"""AugMix: chains of image operations mixed with the image, and equal predictions for all of them.

Paper: Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan, "AugMix: A Simple Data Processing
Method to Improve Robustness and Uncertainty", ICLR 2020, arXiv 1912.02781.
Computes: for each image x `[B, C, H, W]` two views, each with its own draws:

    x_aug = (1 - m) x + m Σ_i w_i chain_i(x),   m ~ Beta(a, a),  w ~ Dirichlet(a, …, a)
    loss  = CE(p, y) + `jsd_weight` · (KL(p ‖ M) + KL(p₁ ‖ M) + KL(p₂ ‖ M)) / 3,
            M = (p + p₁ + p₂) / 3

where p, p₁ and p₂ `[B, K]` are the predictions for x and its views, and a chain is 1 to 3
operations out of autocontrast, equalize, posterize, rotate, solarize, shear and translate. All
three batches pass through the network as one batch of 3B images. The gradient flows through all
three predictions.
Requires: only images and labels.
Cost: 9F per step, three times that of plain training, and nine resamplings of 2B images.
Settings:
- severity: 3, as in the authors' code.
- width: 3, as in the authors' code.
- depth: 3, as in the authors' code: each chain has 1 to 3 operations.
- alpha: 1, as in the authors' code.
- jsd_weight: 12, as in the authors' code.
Deviations:
- The authors augment 8-bit images before they are cropped, flipped and normalized. A method sees
  normalized images, which are taken back to 8 bits by the range of all pixels seen so far, per
  channel. It equals the true one once a channel was seen black and white.
- Operations are torchvision's or follow Pillow's definitions; resampled pixels may differ by
  rounding.
Evidence: none published for ResNet-18 on CIFAR-100 in the openmixup benchmark. The authors report
robustness to corruptions, with other networks.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.methods.base import Method, MethodSettings, MixInputs
from adautomix.methods.facts import LabelRule, Paper
from adautomix.methods.meada import Bounds, PixelRange
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.image_chains import OPERATIONS, apply_chain
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import MixParams, Shape, draw_beta, draw_log_gamma

VIEWS = 2
SMALLEST = 1e-7  # the authors clamp the mean prediction to it before the logarithm


@dataclass(frozen=True)
class AugMixParams(MixParams):
    """Parameters of the two views of each image.

    Attributes:
        perm: row of each image, int64 `[B, 1]`.
        operations: operations of each chain, int64 `[B, 2, width, depth]`.
        levels: their strengths, with a random sign, float32 `[B, 2, width, depth]`.
        depths: number of operations that are used, int64 `[B, 2, width]`.
        weights: w, float32 `[B, 2, width]`.
        blend: m, float32 `[B, 2]`.
    """

    perm: Tensor
    operations: Tensor
    levels: Tensor
    depths: Tensor
    weights: Tensor
    blend: Tensor


class AugMixSettings(MethodSettings):
    """Settings of AugMix."""

    severity: float = Field(
        3.0,
        gt=0.1,
        le=10,
        description="largest strength of an operation; levels ~ U(0.1, severity)",
    )
    width: int = Field(3, ge=1, description="chains per view")
    depth: int = Field(3, ge=1, description="most operations per chain")
    alpha: float = Field(1.0, gt=0, description="a of Beta(a, a) and Dirichlet(a, …, a)")
    jsd_weight: float = Field(
        12.0, ge=0, description="weight of the Jensen-Shannon divergence of the predictions"
    )


def jensen_shannon(logits: Tensor, views: int) -> Tensor:
    """Mean over the images of the divergence between the predictions for each and its views.

    Args:
        logits: of the images, then of each set of views, `[views · M, K]`.
        views: number of predictions per image, counting the image itself.
    """
    log_p = logits.float().log_softmax(dim=1).unflatten(0, (views, -1))
    mean = log_p.exp().mean(dim=0).clamp(SMALLEST, 1).log()
    divergences = [F.kl_div(mean, p, reduction="batchmean", log_target=True) for p in log_p]
    return torch.stack(divergences).mean()


def augmented_views(images: Tensor, params: AugMixParams, bounds: Bounds) -> Tensor:
    """Compute the views of M images, all first ones first.

    Args:
        images: the images of these views, float32 `[M, C, H, W]`.
        params: parameters of M images.
        bounds: values of black and white, both `[1, C, 1, 1]`.

    Returns:
        Float32 `[views · M, C, H, W]`.
    """
    low, high = bounds
    scale = 255 / (high - low).clamp_min(1e-6)
    views = params.blend.shape[1]
    pixels = ((images - low) * scale).round().clamp(0, 255).repeat(views, 1, 1, 1)
    # Views come first, so that each is one block of rows.
    operations, levels, depths, weights = (
        value.transpose(0, 1).flatten(0, 1)
        for value in (params.operations, params.levels, params.depths, params.weights)
    )
    mix = torch.zeros_like(pixels)
    for chain in range(weights.shape[1]):
        changed = apply_chain(pixels, operations[:, chain], levels[:, chain], depths[:, chain])
        mix += weights[:, chain, None, None, None] * changed
    blend = params.blend.T.flatten()[:, None, None, None]
    return images.repeat(views, 1, 1, 1).lerp(mix / scale + low, blend)


class AugMix(Method[AugMixSettings, AugMixParams]):
    """AugMix (Hendrycks et al., ICLR 2020)."""

    name = "augmix"
    summary = "image operations mixed with the image, and equal predictions for all"
    paper = Paper(
        authors="Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan",
        title="AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty",
        venue="ICLR",
        year=2020,
        arxiv="1912.02781",
    )
    cost = 9.0
    label_rule = LabelRule.SYNTHETIC
    label_note = "an image is mixed with changed copies of itself"
    Settings = AugMixSettings

    def build(self, model: nn.Module | None) -> None:
        """Create the running range of the pixels."""
        self.pixel_range = PixelRange()

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> AugMixParams:
        """Draw the chains of both views of each image."""
        s, batch = self.settings, shape[0]
        chains = (batch, VIEWS, s.width)
        signs = 2 * torch.randint(2, (*chains, s.depth), generator=generator) - 1
        levels = 0.1 + (s.severity - 0.1) * torch.rand(*chains, s.depth, generator=generator)
        return AugMixParams(
            perm=torch.arange(batch)[:, None],
            operations=torch.randint(len(OPERATIONS), (*chains, s.depth), generator=generator),
            levels=signs * levels,
            depths=torch.randint(1, s.depth + 1, chains, generator=generator),
            weights=draw_log_gamma(chains, s.alpha, generator).softmax(dim=2).float(),
            blend=draw_beta(batch, VIEWS, s.alpha, generator),
        )

    def mix(
        self, images: Tensor, targets: Tensor, params: AugMixParams, **features: Tensor
    ) -> Mixed:
        """Return the first view of each image, with its label."""
        rows = params.perm[:, 0]
        views = self.views(images[rows], params, self.pixel_range(images))
        lam = torch.ones_like(params.perm, dtype=torch.float32)
        return Mixed(views[: len(rows)], targets[rows], lam, params.perm)

    def views(self, images: Tensor, params: AugMixParams, bounds: Bounds) -> Tensor:
        """Return the views of M images in their dtype, `[2M, C, H, W]`."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            low, high = (bound.float() for bound in bounds)
            return augmented_views(images.float(), params, (low, high)).to(images.dtype)

    def compute_loss(
        self, sources: MixInputs, student: nn.Module, teacher: Any, params: AugMixParams
    ) -> dict[str, Tensor]:
        """Compute the clean cross-entropy plus the divergence of the three predictions."""
        bounds = self.pixel_range.update(sources.images)
        images, targets = sources.images[sources.own], sources.targets[sources.own]
        # One forward pass of images and views, so that batch norm sees them together.
        logits = student(torch.cat([images, self.views(images, params, bounds)]))
        clean_logits = logits[: len(images)]
        clean = self.cross_entropy(clean_logits, targets)
        divergence = jensen_shannon(logits, 1 + VIEWS)
        return {
            "loss": clean + self.settings.jsd_weight * divergence,
            "mixture_accuracy": mixture_accuracy(clean_logits, targets),
            "clean": clean.detach(),
            "divergence": divergence.detach(),
        }
