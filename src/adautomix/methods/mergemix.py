"""MergeMix: each image keeps the patches that a pass with merged tokens marks; a partner fills in.

Paper: Jin, Li, Jian, Yu, Wang, "MergeMix: A Unified Augmentation Paradigm for Visual and
Multi-Modal Understanding", ICLR 2026, arXiv 2510.23479; and the code in openmixup.
Computes: a pass of the student on the clean images, in evaluation mode and without gradient, which
merges similar tokens after the attention of each block, a fraction `merged` of the P patches in
all. The score `[B, P]` of a patch is the attention that its merged token pays to the class token in
the last block, summed over heads. With λ ~ Beta(a, a) for the batch and a permutation π,

    mix    the ⌊λP⌋ patches with the largest scores from x, the others from x[π]  [B, C, H, W]
    label  λ' y + (1 - λ') y[π]  [B, K],   λ' = ⌊λP⌋ / P
    loss   CE(student(mix), label) + `mixup_weight` · CE of Mixup images with λ ~ Beta(0.8, 0.8)

With `label: redrawn`, λ' is instead drawn from N(`merged`, ⌊λP⌋ / P) for each image and rescaled so
that the batch spans 0 to 1.
Requires: attention over patches (timm's ViT and DeiT).
Cost: 6.7F per step: 3F for each of the two losses, and with DeiT-S and the defaults 0.73F for the
pass with merged tokens.
Settings:
- alpha: 1 in all of openmixup's configurations.
- merged: 0.5, 98 of 196 patches, in most of openmixup's configurations; 0.25 on ImageNet.
- label: `area` as in openmixup's configurations of ImageNet, Cars and Aircraft (`lam_scale=False`).
  Those of CIFAR-100 have `redrawn`, with which the label of a mix does not depend on its pixels.
- mixup_weight: 1, as in openmixup's code.
- mixup_alpha: 0.8, as in openmixup's code.
- per_sample: off, as in openmixup's code.
Deviations:
- openmixup merges tokens after the last block's attention too, and then reads the attention of the
  tokens before by positions after that merge. Here the last block, whose attention is read, merges
  nothing.
- openmixup's pass runs in training mode, with stochastic depth.
- The student classifies mixes without merging, as with openmixup's `tome_in_mix=True`. Its
  CIFAR-100 configurations of DeiT merge tokens there as well.
- Without a class token, the first patch takes its place.
- Networks that are smaller than openmixup's merge at most half of the patches of a block.
Evidence: none published for ResNet-18, which has no attention.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from adautomix.methods.base import FeatureDict, MethodSettings, MixInputs
from adautomix.methods.base_attention import AttentionMethod, patches_to_pixels
from adautomix.methods.facts import Paper
from adautomix.methods.mixup import MixupParams, draw_mixup
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.ops import Mixed, mix_by_lam, mix_by_masks
from adautomix.mixing.params import PairParams, Shape, draw_lam, draw_partners
from adautomix.mixing.token_merging import merge_tokens, merging_schedule
from adautomix.models import Classifier, evaluating


@dataclass(frozen=True)
class MergeMixParams(PairParams):
    """Parameters of MergeMix; `lam` is the fraction of patches, before rounding.

    Attributes:
        redrawn: weight of the first image in the label with `label: redrawn`, `[B]`.
        plain: parameters of the Mixup images.
    """

    redrawn: Tensor
    plain: MixupParams


class MergeMixSettings(MethodSettings):
    """Settings of MergeMix."""

    alpha: float = Field(1.0, gt=0, description="λ ~ Beta(alpha, alpha)")
    merged: float = Field(
        0.5, ge=0, lt=1, description="fraction of the patches that is merged away"
    )
    label: Literal["area", "redrawn"] = Field(
        "area", description="weight of each source in the label: its area, or a new draw"
    )
    mixup_weight: float = Field(1.0, ge=0, description="weight of the loss of Mixup images")
    mixup_alpha: float = Field(0.8, gt=0, description="Mixup images: λ ~ Beta(alpha, alpha)")
    per_sample: bool = Field(False, description="draw one λ per mix instead of one per batch")


def redraw(kept: Tensor, merged: float, generator: torch.Generator) -> Tensor:
    """Draw the weight of each first image around `merged`, rescaled to span 0 to 1, `[B]`.

    Args:
        kept: fraction of patches that each first image keeps, the standard deviation, `[B]`.
        merged: fraction of patches that is merged away, the mean.
        generator: a CPU generator.
    """
    drawn = merged + kept * torch.randn(len(kept), generator=generator)
    return (drawn - drawn.min()) / (drawn.max() - drawn.min() + 1e-5)


@torch.no_grad()
def merged_scores(network: Classifier, images: Tensor, merged: float) -> Tensor:
    """Compute the attention to the class token in the last block of a pass with merged tokens.

    Args:
        network: a plain vision transformer, run in evaluation mode.
        images: normalized, `[B, C, H, W]`.
        merged: fraction of the patches that is merged away before the last block.

    Returns:
        Float32 `[B, P]`; patches that were merged have the same score.
    """
    with evaluating(network):
        blocks = network.blocks()
        tokens = blocks.forward_to(images, 1)
        size = torch.ones_like(tokens[..., :1])
        place = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        patches = tokens.shape[1] - blocks.num_prefix_tokens
        schedule = merging_schedule(int(merged * patches), max(1, blocks.depth - 1))
        for block, count in enumerate(schedule[: blocks.depth - 1], start=1):
            keys = blocks.mean_keys(tokens, block)
            tokens = blocks.attend(tokens, block)
            count = min(count, (tokens.shape[1] - 1) // 2)
            tokens, size, moved = merge_tokens(tokens, size, keys, count)
            place = moved.gather(1, place)
            tokens = blocks.feed_forward(tokens, block)
        scores = blocks.attention_to_first(tokens, blocks.depth)
        return scores.gather(1, place[:, blocks.num_prefix_tokens :])


def kept_patches(scores: Tensor, lam: Tensor) -> Tensor:
    """Choose the ⌊λP⌋ patches with the largest scores, bool `[M, P]`.

    Args:
        scores: `[M, P]`.
        lam: λ of each mix, `[M]`.
    """
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < (lam * scores.shape[1]).floor()[:, None]


class MergeMix(AttentionMethod[MergeMixSettings, MergeMixParams]):
    """MergeMix (Jin et al., ICLR 2026)."""

    name = "mergemix"
    summary = "patches that a pass with merged tokens marks, over another image"
    paper = Paper(
        authors="Jin, Li, Jian, Yu, Wang",
        title="MergeMix: A Unified Augmentation Paradigm for Visual and Multi-Modal Understanding",
        venue="ICLR",
        year=2026,
        arxiv="2510.23479",
    )
    cost = 6.7
    Settings = MergeMixSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> MergeMixParams:
        """Draw partners, λ, the weights of `label: redrawn`, and the Mixup images."""
        s, batch = self.settings, shape[0]
        height, width = self.patch_grid(shape)
        lam = draw_lam(batch, s.alpha, generator, per_sample=s.per_sample)
        kept = (lam[:, 0] * height * width).floor() / (height * width)
        return MergeMixParams(
            perm=draw_partners(batch, generator, derange=True),
            lam=lam,
            redrawn=redraw(kept, s.merged, generator),
            plain=draw_mixup(batch, s.mixup_alpha, generator, per_sample=s.per_sample),
        )

    def extract_features(
        self,
        images: Tensor,
        targets: Tensor,
        student: Classifier,
        teacher: Any,
        params: MergeMixParams,
    ) -> FeatureDict:
        """Return the scores of the patches of the clean images, float32 `[B, P]`."""
        return {"scores": merged_scores(student, images, self.settings.merged)}

    def mix(
        self, images: Tensor, targets: Tensor, params: MergeMixParams, **features: Tensor
    ) -> Mixed:
        """Return the best patches of each image, over its partner."""
        perm = params.perm
        kept = kept_patches(features["scores"][perm[:, 0]], params.lam[:, 0]).float()
        first = patches_to_pixels(kept.unflatten(1, self.patch_grid(images.shape)), self.patch)
        lam = kept.mean(dim=1) if self.settings.label == "area" else params.redrawn
        lam, masks = (torch.stack([part, 1 - part], dim=1) for part in (lam, first))
        return mix_by_masks(images, targets, perm, lam, masks)

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Any, params: MergeMixParams
    ) -> dict[str, Tensor]:
        """Compute the soft cross-entropy of the mixes plus that of Mixup images."""
        mixed = self.mix(sources.images, sources.targets, params, **sources.features)
        plain = mix_by_lam(sources.images, sources.targets, params.plain.perm, params.plain.lam)
        logits = student(torch.cat([mixed.images, plain.images]))
        mixed_logits, plain_logits = logits.chunk(2)
        loss = self.cross_entropy(mixed_logits, mixed.targets)
        mixup = self.cross_entropy(plain_logits, plain.targets)
        return {
            "loss": loss + self.settings.mixup_weight * mixup,
            "mixture_accuracy": mixture_accuracy(mixed_logits, mixed.targets),
            "mixed": loss.detach(),
            "mixup": mixup.detach(),
        }
