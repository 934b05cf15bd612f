"""CutMix: a rectangle of one image is pasted into another; labels follow the area.

Paper: Yun, Han, Oh, Chun, Choe, Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers
with Localizable Features", ICCV 2019, arXiv 1905.04899.
Computes: λ₀ ~ Beta(a, a) and a box with sides ⌊W√(1-λ₀)⌋ and ⌊H√(1-λ₀)⌋ around a uniform pixel,
with half-widths rounded down, clipped to the image, for the batch. Inside the box the mix
`[B, C, H, W]` shows x[π], outside it shows x; ỹ = λ y + (1 - λ) y[π] `[B, K]`, where
λ = 1 - area / HW *after* clipping, so that the label is the fraction of pixels.
Requires: only images and labels.
Cost: 3F per step, as plain training.
Settings:
- alpha: 1 is the paper's value. The openmixup benchmark uses 0.2 on CIFAR-100, with which most
  boxes are nearly empty or nearly fill the image.
- per_sample: off, as in the authors' code.
Deviations: every batch is mixed by default, as in the authors' ImageNet command
(`--cutmix_prob 1.0`) and in the openmixup benchmark. The authors' CIFAR command mixes half of the
batches (`--cutmix_prob 0.5`): set `mix.prob: 0.5` for that. As in the authors' code, rounding makes
a box of side 1 empty and odd sides one pixel smaller.
Evidence: 79.45 / 79.58 / 78.17 % top-1 accuracy with ResNet-18 on CIFAR-100 after 200 / 400 / 800
epochs, with a = 0.2 (openmixup benchmark; median of the last 10 epochs).
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from adautomix.methods.base import InputMixing, MethodSettings
from adautomix.methods.facts import Paper
from adautomix.mixing.boxes import draw_box, outside_mask, paste
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import MixParams, Shape, draw_beta, draw_partners


@dataclass(frozen=True)
class CutMixParams(MixParams):
    """Parameters of CutMix.

    Attributes:
        perm: rows of the image and its partner, int64 `[B, 2]`.
        box: box (top, bottom, left, right; ends exclusive) that is pasted, int64 `[B, 4]`.
        shared: whether all boxes are the same, so that one mask serves the batch.
    """

    perm: Tensor
    box: Tensor
    shared: bool = False


class CutMixSettings(MethodSettings):
    """Settings of CutMix."""

    alpha: float = Field(1.0, gt=0, description="λ₀ ~ Beta(alpha, alpha)")
    per_sample: bool = Field(False, description="draw one box per mix instead of one per batch")


def draw_cutmix(
    batch: int,
    height: int,
    width: int,
    alpha: float,
    generator: torch.Generator,
    *,
    per_sample: bool = False,
) -> CutMixParams:
    """Draw a partner for each image and the box that is pasted."""
    perm = draw_partners(batch, generator)
    lam = draw_beta(batch if per_sample else 1, 1, alpha, generator)[:, 0]
    box = draw_box(lam, height, width, generator)
    return CutMixParams(perm, box.expand(batch, 4).contiguous(), shared=not per_sample)


class CutMix(InputMixing[CutMixSettings, CutMixParams]):
    """CutMix (Yun et al., ICCV 2019)."""

    name = "cutmix"
    summary = "a rectangle of one image pasted into another"
    paper = Paper(
        authors="Yun, Han, Oh, Chun, Choe, Yoo",
        title="CutMix: Regularization Strategy to Train Strong Classifiers with "
        "Localizable Features",
        venue="ICCV",
        year=2019,
        arxiv="1905.04899",
    )
    Settings = CutMixSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> CutMixParams:
        """Draw a partner for each image and the box that is pasted."""
        batch, _, height, width = shape
        s = self.settings
        return draw_cutmix(batch, height, width, s.alpha, generator, per_sample=s.per_sample)

    def mix(
        self, images: Tensor, targets: Tensor, params: CutMixParams, **features: Tensor
    ) -> Mixed:
        """Return the partner inside the box and the image outside."""
        boxes = params.box[:1] if params.shared else params.box
        return paste(images, targets, params.perm, outside_mask(boxes, *images.shape[2:]))
