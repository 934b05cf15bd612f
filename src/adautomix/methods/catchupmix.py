"""Catch-up Mix: two images share the channels of a stage, each giving those it activates least.

Paper: Kang, Kang, Kim, "Catch-Up Mix: Catch-Up Class for Struggling Filters in CNN", AAAI 2024,
arXiv 2401.13193.
Computes: λ ~ Beta(a, a), a permutation π and a stage k ~ U{1, …, deepest} for the batch. With h
`[B, C, h, w]` the output of stage k, and d_c = |h_c|₂ - |h[π]_c|₂ for each channel c of a pair:

    M = 1 at the round(λ C) channels with the smallest d, else 0              [B, C]
    mix    M ⊙ h + (1 - M) ⊙ h[π],   label   λ y + (1 - λ) y[π]  [B, K]

which the rest of the network classifies. So a channel tends to come from the image in which it is
the weaker one, and its filter is trained there. The gradient flows through both maps, not M.
Requires: a network with stages.
Cost: 3F per step. Where a batch is split over processes or accumulation steps, each part computes
the hidden states of its partners in a pass of its own, so the stages below k run twice.
Settings:
- alpha: 1 is a choice of this implementation; the text of the paper that was at hand has no value.
- deepest: none, the last stage: the paper draws any layer. In a plain transformer a stage is a
  block.
- per_sample: off is a choice of this implementation: one λ per batch, as in Mixup.
Deviations:
- No code of the authors was found, so there is nothing to compare with but the paper.
- Channels are ranked by the difference of the norms of the pair, which is how "relative" influence
  of a filter is read here.
- In a transformer a channel is one component of the embedding of all tokens.
- `mix_batch` returns the Mixup of the images, because hidden states cannot be shown.
Evidence: none published for ResNet-18 on CIFAR-100 in the openmixup benchmark, which leaves this
method out. The authors train pre-activation ResNets.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods.base import MethodSettings, MixInputs
from adautomix.methods.base_feature import FeatureMixing
from adautomix.methods.facts import Paper
from adautomix.methods.manifoldmix import ManifoldMixParams
from adautomix.mixing.params import Shape, draw_lam, draw_partners
from adautomix.models import Classifier


class CatchUpMixSettings(MethodSettings):
    """Settings of Catch-up Mix."""

    alpha: float = Field(1.0, gt=0, description="λ ~ Beta(alpha, alpha)")
    deepest: int | None = Field(
        None, ge=1, description="last stage whose output may be mixed; none: the last one"
    )
    per_sample: bool = Field(False, description="draw one λ per mix instead of one per batch")


def weaker_channels(first: Tensor, second: Tensor, lam: Tensor) -> Tensor:
    """Choose the channels that each first map gives: those it activates least, relatively.

    Args:
        first: maps with channels second, `[M, C, ...]`.
        second: maps of the partners, `[M, C, ...]`.
        lam: fraction of channels that the first map gives, `[M]`.

    Returns:
        Bool `[M, C]`, true for the channels of the first map; round(λ C) in each row.
    """
    norms = (maps.detach().float().flatten(2).norm(dim=2) for maps in (first, second))
    difference = next(norms) - next(norms)
    rank = difference.argsort(dim=1, stable=True).argsort(dim=1)
    chosen: Tensor = rank < (lam * first.shape[1]).round()[:, None]
    return chosen


class CatchUpMix(FeatureMixing[CatchUpMixSettings, ManifoldMixParams]):
    """Catch-up Mix (Kang et al., AAAI 2024)."""

    name = "catchupmix"
    summary = "the weaker channels of each of two hidden states"
    paper = Paper(
        authors="Kang, Kang, Kim",
        title="Catch-Up Mix: Catch-Up Class for Struggling Filters in CNN",
        venue="AAAI",
        year=2024,
        arxiv="2401.13193",
    )
    label_note = "channels of hidden states are mixed, not pixels"
    Settings = CatchUpMixSettings

    def build(self, model: nn.Module | None) -> None:
        """Read the number of channels of each stage.

        Raises:
            UsageError: the network has fewer stages than `deepest`.
        """
        super().build(model)
        network = self.network_with(model, "tap_shape")
        deepest = self.settings.deepest or self.depth
        if deepest > self.depth:
            raise UsageError(
                f"catchupmix.deepest = {deepest}: {network.spec.name} has {self.depth} stages to "
                "mix after"
            )
        self.channels = [network.tap_shape(stage)[0] for stage in range(1, deepest + 1)]

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> ManifoldMixParams:
        """Draw a partner for each image, λ, and the stage after which they are mixed."""
        s = self.settings
        perm = draw_partners(shape[0], generator)
        lam = draw_lam(shape[0], s.alpha, generator, per_sample=s.per_sample)
        stage = 1 + int(torch.randint(len(self.channels), (), generator=generator))
        return ManifoldMixParams(perm, lam, stage)

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Any, params: ManifoldMixParams
    ) -> dict[str, Tensor]:
        """Mix the channels of the output of a stage, and take the soft cross-entropy."""

        def mix(hidden: Tensor, perm: Tensor) -> Tensor:
            return self.mix_channels(hidden, perm, params)

        return self.loss_mixed_after(params.stage, mix, sources, student, params)

    def mix_channels(self, hidden: Tensor, perm: Tensor, params: ManifoldMixParams) -> Tensor:
        """Take each channel from one of two outputs of a stage, in the layout of the stage.

        Args:
            hidden: output of the stage; channels are the second dimension in a convolutional
                network and the last in a transformer.
            perm: rows to mix, int64 `[M, 2]`.
            params: parameters of M mixes.
        """
        axis = 1 if hidden.shape[1] == self.channels[params.stage - 1] else -1
        maps = hidden.movedim(axis, 1)
        first, second = (maps.index_select(0, rows) for rows in perm.unbind(dim=1))
        keep = weaker_channels(first, second, params.lam[:, 0])
        keep = keep.view(*keep.shape, *[1] * (maps.ndim - 2))
        return torch.where(keep, first, second).movedim(1, axis)
