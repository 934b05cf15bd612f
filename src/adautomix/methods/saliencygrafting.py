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

Verification: the authors published no code, and the text of the method was not at hand; this
follows secondary descriptions of it. Of these, the scale of S before the softmax (its maximum is
1 here), the stage and the number of cells are choices of this implementation.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods.base import (
    Draw,
    Method,
    MethodSettings,
    Mixed,
    Seen,
    Shape,
    draw_beta,
    draw_partners,
    mix_by_masks,
)
from adautomix.methods.saliency import looking, scaled, shares
from adautomix.models import Classifier


@dataclass(frozen=True)
class SaliencyGraftingDraw(Draw):
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
) -> SaliencyGraftingDraw:
    """A partner for each image and the cells that may be grafted from it."""
    perm = draw_partners(batch, generator)
    chance = draw_beta(batch, 1, alpha, generator)[:, :, None]
    return SaliencyGraftingDraw(perm, torch.rand(batch, cells, cells, generator=generator) < chance)


def feature_saliency(
    student: Any, images: Tensor, targets: Tensor, tap: int, head: str = "clean"
) -> Tensor:
    """Share of each position in `|Σ_c f_c ∂CE/∂f_c|`, one map an image.

    Nothing moves in the student and no parameter gets a gradient.

    Args:
        student: gives `features(images, tap)` and `logits(pooled, head)`.
        images: normalised, `[B, C, H, W]`.
        targets: soft labels, `[B, K]`.
        tap: the stage whose feature map f it is.
        head: the head whose cross-entropy is differentiated.

    Returns:
        `[B, h, w]`, float32, sums to 1; uniform where there is no gradient.
    """
    with torch.enable_grad(), looking(student):
        inner, pooled = inner_and_pooled(student, images.detach().requires_grad_(), tap)
        loss = F.cross_entropy(student.logits(pooled, head).float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, inner)
    weighted = inner.detach().float() * gradient.float()
    if weighted.ndim == 4:
        return shares(weighted.sum(dim=1).abs())
    patches = weighted.sum(dim=2).abs()[:, student.blocks().prefix :]
    return shares(patches.unflatten(1, student.tap_shape(tap)[1:]))


def inner_and_pooled(student: Classifier, images: Tensor, tap: int) -> tuple[Tensor, Tensor]:
    """What a stage puts out, and the pooled features that are computed from it.

    Of a plain transformer it is the tokens `[B, T, D]`: the map of its tap is a copy of them that
    the rest of the network does not see.
    """
    if getattr(student, "plain_transformer", False):
        blocks = student.blocks()
        tokens = blocks.enter(images, tap + 1)
        return tokens, blocks.leave(tokens, tap + 1)[0]
    seen = student.features(images, tap)
    assert seen.tap is not None
    return seen.tap, seen.pooled


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


class SaliencyGrafting(Method):
    """Saliency Grafting (Park et al., AAAI 2022)."""

    name = "saliencygrafting"
    summary = "random salient cells of a partner; labels by the saliency that is left"
    cost = "4F"
    needs = "a stage's feature map and its gradient"
    Settings = SaliencyGraftingSettings

    def __init__(self, settings: SaliencyGraftingSettings, **common: Any) -> None:
        super().__init__(settings, **common)
        model: Any = common.get("model")
        if not hasattr(model, "default_tap"):
            raise UsageError(
                "saliencygrafting looks inside the network: pass model=build_model(...)"
            )
        self.tap = settings.tap or model.default_tap()

    def draw(self, shape: Shape, generator: torch.Generator, step: int) -> SaliencyGraftingDraw:
        """A partner for each image and the cells that may be grafted from it."""
        return draw_saliencygrafting(shape[0], self.settings.cells, self.settings.alpha, generator)

    def look(
        self,
        images: Tensor,
        targets: Tensor,
        student: Classifier,
        teacher: Any,
        draw: SaliencyGraftingDraw,
    ) -> Seen:
        """The saliency of each cell."""
        maps = feature_saliency(student, images, targets, self.tap)
        return {"saliency": F.adaptive_avg_pool2d(maps[:, None], self.settings.cells)[:, 0]}

    def mix(
        self, images: Tensor, targets: Tensor, draw: SaliencyGraftingDraw, **seen: Tensor
    ) -> Mixed:
        """Graft the salient cells that chance picked; the label by what is left of the saliency."""
        saliency = seen["saliency"][draw.perm]
        grafted = draw.picked & salient_cells(saliency[:, 1], self.settings.temperature)
        lam = calibrated_lam(saliency, grafted)
        inside = F.interpolate(grafted[:, None].float(), images.shape[2:])
        masks = torch.cat([1 - inside, inside], dim=1)
        return mix_by_masks(images, targets, draw.perm, lam, masks)
