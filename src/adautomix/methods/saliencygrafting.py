"""Saliency Grafting: random salient cells of one image on another; labels by the saliency kept.

Paper: Park, Yang, Shin, Hwang, Yang, "Saliency Grafting: Innocuous Attribution-Guided Mixup with
Calibrated Label Mixing", AAAI 2022, arXiv 2112.08796.

Computes, on g × g cells, with p ~ Beta(a, a) for each pair:

    saliency   S = |Σ_c f_c ∂CE/∂f_c| of a feature map f, averaged over the cells     [B, g, g]
    candidates cells where softmax(S / max S / T) is above its mean
    graft      G ~ Bernoulli(p) on each cell, and a candidate of image B             [M, g, g]
    mix        (1 - G) ⊙ x_A + G ⊙ x_B
    label      λ_A : λ_B = I(S_A, 1 - G) : I(S_B, G),  I(S, G) = |S ⊙ G|₂ / |S|₂

so that the label follows what is left of each image's saliency, not areas: cells of equal
saliency count by the root of their number.
Needs: a feature map of an inner stage and the gradient of the loss with respect to it.
Cost: 4F a step and a little: one more forward, and a backward down to the feature map only.
Defaults: T = 0.2 and a = 2, the third of four stages, g = 8.
Networks: where a layer norm is all that reads f, Σ_c f_c ∂CE/∂f_c is 0 but for rounding, as that
norm forgets how long f is: in every stage of ConvNeXt but the last, which is then the default, in
the last of Swin, in the last two blocks of a transformer pooled by its class token. Such taps are
refused.

Verification: the authors published no code, and the text of the method was not at hand; this
follows secondary descriptions of it. Of these, the scale of S before the softmax (its maximum is
1 here), the stage and the number of cells are choices of this implementation.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods.base import FeatureDict, Method, MethodSettings
from adautomix.methods.base_feature import replaced_output
from adautomix.methods.facts import LabelRule, Paper, Requirement
from adautomix.mixing.ops import Mixed, mix_by_masks
from adautomix.mixing.params import MixParams, Shape, draw_beta, draw_partners
from adautomix.mixing.saliency import looking, scaled, shares
from adautomix.models import Classifier
from adautomix.rng import generator_at

ROUNDING = 1e-4  # of |f| |∂CE/∂f|


@dataclass(frozen=True)
class SaliencyGraftingParams(MixParams):
    """`perm` `[B, 2]`; `picked`, the cells that chance allows to graft, bool `[B, g, g]`."""

    perm: Tensor
    picked: Tensor


class SaliencyGraftingSettings(MethodSettings):
    """Settings of Saliency Grafting."""

    alpha: float = Field(2.0, gt=0, description="p ~ Beta(alpha, alpha), chance of a cell")
    temperature: float = Field(0.2, gt=0, description="T, the lower the fewer cells are salient")
    cells: int = Field(8, ge=1, le=64, description="g, cells a side")
    tap: int | None = Field(
        None, ge=1, description="stage looked at; none: third of four, middle block"
    )


def draw_saliencygrafting(
    batch: int, cells: int, alpha: float, generator: torch.Generator
) -> SaliencyGraftingParams:
    """A partner for each image and the cells that may be grafted from it."""
    perm = draw_partners(batch, generator)
    chance = draw_beta(batch, 1, alpha, generator)[:, :, None]
    return SaliencyGraftingParams(
        perm, torch.rand(batch, cells, cells, generator=generator) < chance
    )


def feature_saliency(
    student: Any, images: Tensor, targets: Tensor, tap: int, head: str = "clean"
) -> Tensor:
    """Share of each position in `|Σ_c f_c ∂CE/∂f_c|`, one map an image.

    Nothing moves in the student and no parameter gets a gradient.

    Args:
        student: a network with stages.
        images: normalized, `[B, C, H, W]`.
        targets: soft labels, `[B, K]`.
        tap: the stage whose feature map f it is.
        head: the head whose cross-entropy is differentiated.

    Returns:
        `[B, h, w]`, float32, sums to 1; uniform where there is no gradient.
    """
    features, gradient = stage_gradient(student, images, targets, tap, head)
    return shares((features * gradient).sum(dim=1).abs())


def stage_gradient(
    student: Any, images: Tensor, targets: Tensor, tap: int, head: str = "clean"
) -> tuple[Tensor, Tensor]:
    """A stage's map and the gradient of the cross-entropy in it, both float32 `[B, C, h, w]`."""
    kept: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        kept.append(output)
        return output

    # What the stage hands on, and not the tap: of a transformer that is a copy beside the way.
    watched = replaced_output(student, student.stages[tap - 1], keep)
    with torch.enable_grad(), looking(student), watched:
        features = student.features(images.detach().requires_grad_(), tap)
        logits = student.logits(features.pooled, head)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, kept)
    return as_map(kept[0].detach().float(), features.tap), as_map(gradient.float(), features.tap)


def as_map(values: Tensor, tap: Tensor) -> Tensor:
    """What a stage hands on, be it with channels last or as tokens, as its tap `[B, C, h, w]`."""
    if values.shape == tap.shape:
        return values
    height, width = tap.shape[2:]
    places = values.flatten(1, -2)[:, -height * width :]  # the tokens ahead are no patches
    maps: Tensor = places.mT.unflatten(2, (height, width))
    return maps


def telling_tap(student: Classifier, asked: int | None) -> int:
    """The stage asked for; else the default, or the last where the default says nothing.

    Raises:
        UsageError: the sum over channels is 0 by construction, whatever the image.
    """
    taps = [asked] if asked else [student.default_tap(), len(student.stages)]
    for tap in taps:
        if tells(student, tap):
            return tap
    raise UsageError(
        f"saliencygrafting.tap = {taps[0]}: {student.spec.name} normalizes what that stage gives, "
        "so that no place of it is salient; choose another tap or network"
    )


def tells(student: Classifier, tap: int) -> bool:
    """Whether `Σ_c f_c ∂CE/∂f_c` is more than rounding.

    It is not where all that reads f forgets its length, as a layer norm does.
    """
    size = student.spec.image_size
    noise = torch.randn(2, 3, size, size, generator=generator_at(0, 0, "probe"))
    images = noise.to(next(student.parameters()))
    targets = torch.full((2, student.num_classes), 1 / student.num_classes, device=images.device)
    targets[:, 0] += 1
    features, gradient = stage_gradient(student, images, targets, tap, next(iter(student.heads)))
    longest = features.norm(dim=1) * gradient.norm(dim=1)
    return bool((features * gradient).sum(dim=1).abs().sum() > ROUNDING * longest.sum())


def salient_cells(saliency: Tensor, temperature: float) -> Tensor:
    """Cells whose softmax weight is above the mean of all, bool `[B, g, g]`."""
    weights: Tensor = (scaled(saliency) / temperature).flatten(1).softmax(dim=1)
    return (weights > 1 / weights.shape[1]).view_as(saliency)


def importance(saliency: Tensor, kept: Tensor) -> Tensor:
    """`|S ⊙ kept|₂ / |S|₂` of saliency and masks `[M, g, g]`: `[M]`."""
    left: Tensor = (saliency * kept).flatten(1).norm(dim=1)
    whole: Tensor = saliency.flatten(1).norm(dim=1)
    return left / whole


def calibrated_lam(saliency: Tensor, grafted: Tensor) -> Tensor:
    """Shares of both images in the label, `[M, 2]`.

    Args:
        saliency: of both, `[M, 2, g, g]`.
        grafted: where the second image is seen, `[M, g, g]`.
    """
    kept = importance(saliency[:, 0], ~grafted)
    added = importance(saliency[:, 1], grafted)
    both = torch.stack([kept, added], dim=1)
    return both / both.sum(dim=1, keepdim=True)


class SaliencyGrafting(Method[SaliencyGraftingSettings, SaliencyGraftingParams]):
    """Saliency Grafting (Park et al., AAAI 2022)."""

    name = "saliencygrafting"
    summary = "random salient cells of a partner; labels by the saliency that is left"
    paper = Paper(
        authors="Park, Yang, Shin, Hwang, Yang",
        title="Saliency Grafting: Innocuous Attribution-Guided Mixup with Calibrated Label Mixing",
        venue="AAAI",
        year=2022,
        arxiv="2112.08796",
    )
    requires = frozenset({Requirement.STAGE_OUTPUTS, Requirement.FEATURE_GRADIENT})
    cost = 4.0
    label_rule = LabelRule.SALIENCY
    label_note = "labels follow the saliency that is left of each image"
    Settings = SaliencyGraftingSettings

    def build(self, model: nn.Module | None) -> None:
        """Choose the stage whose saliency is used."""
        self.tap = telling_tap(self.network_with(model, "stages"), self.settings.tap)

    def make_params(
        self, shape: Shape, generator: torch.Generator, step: int
    ) -> SaliencyGraftingParams:
        """A partner for each image and the cells that may be grafted from it."""
        return draw_saliencygrafting(shape[0], self.settings.cells, self.settings.alpha, generator)

    def extract_features(
        self,
        images: Tensor,
        targets: Tensor,
        student: Classifier,
        teacher: Any,
        params: SaliencyGraftingParams,
    ) -> FeatureDict:
        """The saliency of each cell."""
        maps = feature_saliency(student, images, targets, self.tap)
        return {"saliency": F.adaptive_avg_pool2d(maps[:, None], self.settings.cells)[:, 0]}

    def mix(
        self, images: Tensor, targets: Tensor, params: SaliencyGraftingParams, **features: Tensor
    ) -> Mixed:
        """Graft the salient cells that chance picked; the label by what is left of the saliency."""
        saliency = features["saliency"][params.perm]
        grafted = params.picked & salient_cells(saliency[:, 1], self.settings.temperature)
        lam = calibrated_lam(saliency, grafted)
        inside = F.interpolate(grafted[:, None].float(), images.shape[2:])
        masks = torch.cat([1 - inside, inside], dim=1)
        return mix_by_masks(images, targets, params.perm, lam, masks)
