"""TransMix: CutMix whose labels are weighed by what the network attends to.

Paper: Chen, Sun, He, Torr, Yuille, Bai, "TransMix: Attend to Mix for Vision Transformers",
CVPR 2022, arXiv 2111.09833.
Computes: a CutMix x̃ `[B, C, H, W]` with box mask m `[H, W]`, 1 where the partner shows. The
forward pass of the loss also gives a `[P]`, the attention of the class token to the patches in the
last block, averaged over heads. The fraction of it on the partner is s = Σ a ↓(m) / Σ a, with ↓
nearest-neighbor interpolation to the patches. The partner's weight in the label `[B, K]` is
(1 - r) area + r s, for each mix separately.
Requires: attention over patches (timm's ViT and DeiT).
Cost: 3F per step, as plain training, and one key projection: the weights come from the forward pass
of the loss.
Settings:
- switch: 0.8 in the authors' configurations. That of DeiT-S spells the key with dashes, so that
  their code ignores it and uses its default of 0.5; that of DeiT-B does not.
- mixup_alpha: 0.8 in the authors' configurations.
- alpha: 1 in the authors' configurations.
- attention_weight: 0.5, as in the authors' code. The paper's equation has 1.
- per_sample: off, as in the authors' code.
Deviations:
- Partners are a random permutation. The authors' code pairs a batch with itself reversed.
- In a network that is not pooled by its class token, the attention is the mean over all patches'.
- PVT, CaiT and XCiT, which the paper also trains, are not supported.
Evidence: none published for ResNet-18, which has no attention. On CIFAR-100 the openmixup benchmark
has 76.17 % with DeiT-S and 81.33 % with Swin-T after 200 epochs.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from adautomix.methods.base_attention import (
    AlternatingParams,
    AlternatingSettings,
    RelabelingMethod,
    draw_alternating,
    fraction_inside,
    pixels_to_patches,
    with_lam,
)
from adautomix.methods.facts import LabelRule, Paper
from adautomix.mixing.boxes import draw_box, outside_mask, paste
from adautomix.mixing.ops import Mixed, mix_by_lam
from adautomix.mixing.params import Shape, draw_beta


@dataclass(frozen=True)
class TransMixParams(AlternatingParams):
    """Parameters of TransMix.

    Attributes:
        box: CutMix boxes (top, bottom, left, right; ends exclusive), int64 `[B, 4]`.
        shared: whether all boxes are the same, so that one mask serves the batch.
    """

    box: Tensor
    shared: bool


class TransMixSettings(AlternatingSettings):
    """Settings of TransMix."""

    switch: float = Field(
        0.8, ge=0, le=1, description="fraction of steps that use this method; the rest use Mixup"
    )
    alpha: float = Field(1.0, gt=0, description="boxes: λ₀ ~ Beta(alpha, alpha)")
    attention_weight: float = Field(
        0.5, ge=0, le=1, description="weight of attention against area in the label"
    )


def draw_transmix(
    batch: int, height: int, width: int, settings: TransMixSettings, generator: torch.Generator
) -> TransMixParams:
    """Draw partners, the kind of step, Mixup's weights and CutMix's boxes."""
    alternating = draw_alternating(batch, settings, generator)
    lam = draw_beta(batch if settings.per_sample else 1, 1, settings.alpha, generator)[:, 0]
    box = draw_box(lam, height, width, generator).expand(batch, 4).contiguous()
    return TransMixParams(*alternating, box, shared=not settings.per_sample)


class TransMix(RelabelingMethod[TransMixSettings, TransMixParams]):
    """TransMix (Chen et al., CVPR 2022)."""

    name = "transmix"
    summary = "CutMix with labels weighed by attention to the mix"
    paper = Paper(
        authors="Chen, Sun, He, Torr, Yuille, Bai",
        title="TransMix: Attend to Mix for Vision Transformers",
        venue="CVPR",
        year=2022,
        arxiv="2111.09833",
    )
    label_rule = LabelRule.ATTENTION
    label_note = "labels follow attention and area"
    Settings = TransMixSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> TransMixParams:
        """Draw partners, the kind of step, Mixup's weights and CutMix's boxes.

        Raises:
            UsageError: the images do not consist of whole patches.
        """
        self.patch_grid(shape)
        batch, _, height, width = shape
        return draw_transmix(batch, height, width, self.settings, generator)

    def mix(
        self, images: Tensor, targets: Tensor, params: TransMixParams, **features: Tensor
    ) -> Mixed:
        """Return CutMix, or Mixup at its steps, with labels by area."""
        if params.plain:
            return mix_by_lam(images, targets, params.perm, params.lam)
        boxes = params.box[:1] if params.shared else params.box
        return paste(images, targets, params.perm, outside_mask(boxes, *images.shape[2:]))

    def relabel(self, mixed: Mixed, targets: Tensor, attention: Tensor, logits: Tensor) -> Mixed:
        """Weigh the partner by the mean of its area and of the attention it receives."""
        masks = mixed.masks
        assert masks is not None
        attended = fraction_inside(attention, pixels_to_patches(masks[:, 1], self.patch))
        second = torch.lerp(mixed.lam[:, 1], attended, self.settings.attention_weight)
        return with_lam(mixed, targets, torch.stack([1 - second, second], dim=1))
