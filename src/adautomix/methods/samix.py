"""SAMix: AutoMix with a block that sees both images at once, and masks rewarded for contrast.

Paper: Li, Liu, Wang, Wu, Liu, Li, "Boosting Discriminative Visual Representation Learning with
Scenario-Agnostic Mixup", arXiv 2021, arXiv 2111.15454; where it leaves something open, the authors'
released code (openmixup).
Computes: what AutoMix does (the mix `[B, C, H, W]`, its label `[B, K]`, the student's loss and the
teacher's), with another block and another loss of the masks. With g an S-curve through (0, 0),
(1/2, 1/2) and (1, 1), s = `lam_scale` and k = `lam_curve`,

    g(λ) = (4/3 λ³ - 2 λ² + (k + 1) λ) / (k + 1/3);  without a k, g(λ) = λ
    λ encoding  z'_a = (1 + s g(λ)) z_a,  z'_b = (1 + s (1 - g(λ))) z_b
    block       q = W_q [z'_a; z'_b],  k = W_k [z'_a; z'_b]   (2C -> C/2, 1×1, no activation)
                v = W_2 ELU(BN(W_1 z'_b))                     (C -> C/2 -> 1, 1×1, no biases)
    block loss  CE(teacher(x'_mix), y'_mix)
                + 0.1 · [max(|mean(M'_a) - λ'| - 0.1, 0) - 2 var(M'_a)]

With probability `mask_adjust` per step, the student's masks are scaled so that the mean of each is
λ.
Requires: the feature map of an inner stage, and a teacher (moving average of the student).
Cost: 9F per step, as AutoMix.
Settings:
- alpha: 2 in the authors' CIFAR recipes.
- per_sample: off, as in the authors' code.
- lam_margin: 0.08 in the authors' CIFAR recipes.
- derange: off in the authors' recipes but those of CUB-200 and Aircraft.
- mask_adjust: 0.25 in the authors' CIFAR recipes for 800 epochs; 0 in those for 200 and 400.
- mask_weight: 0.1 in the authors' CIFAR recipes.
- mask_margin: 0.1 in the authors' CIFAR recipes.
- variance_weight: 2, as in the authors' code.
- upsampling: `bilinear` in the authors' CIFAR recipes for CNNs; `nearest` for DeiT and Swin.
- tap: none (the third of four stages), as in the authors' recipes.
- merged_tap: off in the authors' recipes for CNNs; on for Swin.
- generator_every: 1, as in the authors' code.
- generator_lr: none (the student's) in the authors' CIFAR recipes for CNNs.
- generator_min_lr: none (the student's) in the authors' CIFAR recipes for CNNs.
- views: `full`, as in the authors' code; `split` and `alternate` are of this implementation.
- label: `lam`, as in the authors' code; `area` and `scaled` are of this implementation.
- generator_init: `released`, as in the authors' code; `scaled` is of this implementation.
- generator_optimizer: `same`, as in the authors' code; `adamw` is of this implementation.
- mask_warmup: 0, as in the authors' code.
- generator_warmup: on is a choice of this implementation. In the authors' code the generator has
  no warm-up; their CIFAR recipes for CNNs have none at all.
- lam_scale: 1 in the authors' recipes.
- lam_curve: 0.25 in the authors' CIFAR recipes; none for ViTs, ImageNet and Tiny-ImageNet with
  ResNet-18; 1 for fine-grained data.
- value_dropout: 0 in the authors' CIFAR and Tiny-ImageNet recipes for CNNs; 0.1 elsewhere.
Deviations:
- All of AutoMix's.
- The value is computed once per image of the whole batch, and then selected. With one λ per batch
  this is what the authors' code does for all pairs of the batch, and its batch norm has the same
  statistics however the batch is split. With one λ per mix (not in the authors' code) the value
  sees their mean.
- There is no η-balanced loss. The setting of the authors' code weighs classes whose soft label is
  0, which changes nothing.
Evidence: 81.21 / 81.97 / 82.30 % top-1 accuracy with ResNet-18 on CIFAR-100 after 200 / 400 / 800
epochs (openmixup benchmark; clean head of the teacher, median of the last 10 epochs).
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.methods.base_learned import MixBlockMethod, MixBlockSettings
from adautomix.methods.facts import Paper
from adautomix.mixing.generator import ATTENTION_GAIN, GeneratorInit, Upsampling, init_conv
from adautomix.mixing.mix_block import MixBlock, select_maps


class SAMixSettings(MixBlockSettings):
    """Settings of SAMix."""

    mask_adjust: float = Field(
        0.25,
        ge=0,
        le=1,
        description="probability that the student's masks are scaled to the mean λ",
    )
    variance_weight: float = Field(
        2.0, ge=0, description="weight of the mask variance, which the mask loss rewards"
    )
    upsampling: Upsampling = Field(
        "bilinear", description="upsampling of the masks: bilinear or nearest"
    )
    lam_scale: float = Field(1.0, ge=0, le=1, description="s, how strongly λ scales the maps")
    lam_curve: float | None = Field(
        0.25,
        ge=0,
        le=10,
        description="k of the S-curve of λ, straighter for a larger k; none: λ itself",
    )
    value_dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability of the value")


def s_curve(lam: Tensor, k: float | None) -> Tensor:
    """Compute g(λ): 0 at 0, 1/2 at 1/2, 1 at 1, and flattest in the middle; λ if k is None.

    `g(λ) = (4/3 λ³ - 2 λ² + (k + 1) λ) / (k + 1/3)`.
    """
    if k is None:
        return lam
    return (4 / 3 * lam**3 - 2 * lam**2 + (k + 1) * lam) / (k + 1 / 3)


class SAMixBlock(MixBlock):
    """A mix block whose query and key see both maps, scaled by λ; the value has a hidden layer.

    Args:
        channels: number of channels C of the feature map.
        scale: s, strength of the λ encoding.
        curve: k of its S-curve, or None.
        dropout: dropout probability of the value.
        upsampling: how h×w maps become H×W masks.
        init: initial weights, see `init_conv`.
    """

    def __init__(
        self,
        channels: int,
        *,
        scale: float = 1.0,
        curve: float | None = 0.25,
        dropout: float = 0.0,
        upsampling: Upsampling = "bilinear",
        init: GeneratorInit = "released",
    ) -> None:
        super().__init__(upsampling)
        self.scale, self.curve = scale, curve
        hidden = max(1, channels // 2)
        query = nn.Conv2d(2 * channels, hidden, kernel_size=1)
        self.query = init_conv(query, init, gain=ATTENTION_GAIN)
        key = nn.Conv2d(2 * channels, hidden, kernel_size=1)
        self.key = init_conv(key, init, gain=ATTENTION_GAIN)
        self.value = nn.Sequential(
            init_conv(nn.Conv2d(channels, hidden, kernel_size=1, bias=False), init),
            nn.BatchNorm2d(hidden, track_running_stats=False),
            nn.ELU(),
            init_conv(nn.Conv2d(hidden, 1, kernel_size=1, bias=False), init),
            nn.Dropout(dropout),
        )

    def project(self, features: Tensor, perm: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute query, key and value; see `MixBlock.project`."""
        factors = 1 + self.scale * s_curve(lam, self.curve)
        query, key = (
            self._project_both(conv, features, perm, factors) for conv in (self.query, self.key)
        )
        values = self.value(features * factors[:, 1].mean())
        return query, key, select_maps(values, perm[:, 1])

    def _project_both(
        self, conv: nn.Conv2d, features: Tensor, perm: Tensor, factors: Tensor
    ) -> Tensor:
        """Apply a convolution to both scaled maps, concatenated along channels, `[M, C', hw]`.

        It is linear, so each half of its weights is applied to the B unscaled maps.
        """
        total = conv.bias[:, None]  # type: ignore[index]
        for n, weight in enumerate(conv.weight.chunk(2, dim=1)):
            total = total + factors[:, n, None, None] * select_maps(
                F.conv2d(features, weight), perm[:, n]
            )
        return total


class SAMix(MixBlockMethod[SAMixSettings]):
    """SAMix (Li et al., 2021)."""

    name = "samix"
    summary = "AutoMix with a block that sees both images, and high-contrast masks"
    paper = Paper(
        authors="Li, Liu, Wang, Wu, Liu, Li",
        title="Boosting Discriminative Visual Representation Learning with Scenario-Agnostic Mixup",
        venue="arXiv",
        year=2021,
        arxiv="2111.15454",
    )
    Settings = SAMixSettings

    def make_generator(self, channels: int) -> SAMixBlock:
        """Create the block that the settings describe."""
        s = self.settings
        return SAMixBlock(
            channels,
            scale=s.lam_scale,
            curve=s.lam_curve,
            dropout=s.value_dropout,
            upsampling=s.upsampling,
            init=s.generator_init,
        )
