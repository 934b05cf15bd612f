"""Saliency Grafting: random salient cells of one image on another; labels follow saliency.

Paper: Park, Yang, Shin, Hwang, Yang, "Saliency Grafting: Innocuous Attribution-Guided Mixup with
Calibrated Label Mixing", AAAI 2022, arXiv 2112.08796.
Computes: on g × g cells, with p ~ Beta(a, a) for each pair,

    saliency   S = |Σ_c f_c ∂CE/∂f_c| of a feature map f, averaged over the cells     [B, g, g]
    candidates cells where softmax(S / max S / T) is above its mean
    graft      G ~ Bernoulli(p) on each cell, and the cell is a candidate of image B  [M, g, g]
    mix        (1 - G) ⊙ x_A + G ⊙ x_B                                                [M, C, H, W]
    label      λ_A : λ_B = I(S_A, 1 - G) : I(S_B, G),  I(S, G) = |S ⊙ G|₂ / |S|₂      [M, K]

so that the label follows the visible saliency of each image, not areas: cells of equal saliency
count by the root of their number.
Requires: the feature map of an inner stage and the gradient of the loss with respect to it. Where
only a layer norm reads f, Σ_c f_c ∂CE/∂f_c is 0 up to rounding, because that norm ignores the
length of f: in every stage of ConvNeXt but the last, which is then the default, in the last stage
of Swin, and in the last two blocks of a transformer pooled by its class token. Such taps are
refused.
Cost: 4F per step and a little more: one more forward pass, and a backward pass down to the feature
map only.
Settings:
- alpha: 2, as in secondary descriptions of the paper.
- temperature: 0.2, as in secondary descriptions of the paper.
- cells: 8 is a choice of this implementation.
- tap: none (the third of four stages) is a choice of this implementation.
Deviations: the authors published no code, and the text of the paper was not available. This
follows secondary descriptions of it. The scale of S before the softmax (its maximum is 1 here), the
stage and the number of cells are choices of this implementation.
Evidence: none published for ResNet-18 on CIFAR-100. The openmixup benchmark has 64.84 % on
Tiny-ImageNet with ResNet-18 and 77.74 % on ImageNet with ResNet-50 after 100 epochs.
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
from adautomix.mixing.saliency import normalize_max, normalize_sum, probing
from adautomix.models import Classifier
from adautomix.rng import generator_at

ROUNDING = 1e-4  # largest rounding error of Σ_c f_c ∂CE/∂f_c, as a fraction of |f| |∂CE/∂f|


@dataclass(frozen=True)
class SaliencyGraftingParams(MixParams):
    """Parameters of Saliency Grafting.

    Attributes:
        perm: rows of the image and its partner, int64 `[B, 2]`.
        picked: cells that may be grafted from the partner, bool `[B, g, g]`.
    """

    perm: Tensor
    picked: Tensor


class SaliencyGraftingSettings(MethodSettings):
    """Settings of Saliency Grafting."""

    alpha: float = Field(
        2.0, gt=0, description="p ~ Beta(alpha, alpha), probability that a cell may be grafted"
    )
    temperature: float = Field(
        0.2, gt=0, description="T, temperature of the softmax; lower selects fewer cells"
    )
    cells: int = Field(8, ge=1, le=64, description="g, cells per side")
    tap: int | None = Field(
        None,
        ge=1,
        description="stage whose saliency is used; none: the third of four, or the middle block",
    )


def draw_saliencygrafting(
    batch: int, cells: int, alpha: float, generator: torch.Generator
) -> SaliencyGraftingParams:
    """Draw a partner for each image and the cells that may be grafted from it."""
    perm = draw_partners(batch, generator)
    probability = draw_beta(batch, 1, alpha, generator)[:, :, None]
    return SaliencyGraftingParams(
        perm, torch.rand(batch, cells, cells, generator=generator) < probability
    )


def feature_saliency(
    student: Any, images: Tensor, targets: Tensor, tap: int, head: str = "clean"
) -> Tensor:
    """Compute `|Σ_c f_c ∂CE/∂f_c|` at each position of a feature map, normalized to sum 1.

    No buffer of the student changes and no parameter receives a gradient.

    Args:
        student: a network with stages.
        images: normalized, `[B, C, H, W]`.
        targets: soft labels, `[B, K]`.
        tap: the stage whose feature map is f.
        head: the head whose cross-entropy is differentiated.

    Returns:
        Float32 `[B, h, w]`; uniform where the gradient is 0.
    """
    features, gradient = stage_gradient(student, images, targets, tap, head)
    return normalize_sum((features * gradient).sum(dim=1).abs())


def stage_gradient(
    student: Any, images: Tensor, targets: Tensor, tap: int, head: str = "clean"
) -> tuple[Tensor, Tensor]:
    """Return a stage's feature map and the gradient of the cross-entropy with respect to it.

    Arguments as in `feature_saliency`.

    Returns:
        Both float32 `[B, C, h, w]`.
    """
    outputs: list[Tensor] = []

    def record(output: Tensor) -> Tensor:
        outputs.append(output)
        return output

    # The stage's output rather than its tap, which for a transformer is a detour: a copy that is
    # not on the path to the logits.
    recording = replaced_output(student, student.stages[tap - 1], record)
    with torch.enable_grad(), probing(student), recording:
        features = student.features(images.detach().requires_grad_(), tap)
        logits = student.logits(features.pooled, head)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, outputs)
    return as_map(outputs[0].detach().float(), features.tap), as_map(gradient.float(), features.tap)


def as_map(values: Tensor, tap: Tensor) -> Tensor:
    """Bring a stage's output (channels first, channels last or tokens) to the layout of its tap.

    Args:
        values: output of a stage, in the layout of the network.
        tap: the stage's tap, `[B, C, h, w]`.

    Returns:
        `[B, C, h, w]`.
    """
    if values.shape == tap.shape:
        return values
    height, width = tap.shape[2:]
    positions = values.flatten(1, -2)[:, -height * width :]  # drops tokens ahead of the patches
    maps: Tensor = positions.mT.unflatten(2, (height, width))
    return maps


def informative_tap(student: Classifier, tap: int | None) -> int:
    """Return `tap`; if it is None, the default tap, or the last one if that is uninformative.

    Raises:
        UsageError: the sum over channels is 0 by construction, whatever the image.
    """
    candidates = [tap] if tap else [student.default_tap(), len(student.stages)]
    for candidate in candidates:
        if is_informative(student, candidate):
            return candidate
    raise UsageError(
        f"saliencygrafting.tap = {candidates[0]}: {student.spec.name} normalizes the output of that"
        " stage, so that no position of it is salient; choose another tap or network"
    )


def is_informative(student: Classifier, tap: int) -> bool:
    """Whether `Σ_c f_c ∂CE/∂f_c` of a stage exceeds rounding errors, tested on noise.

    It does not if every layer that reads f ignores its norm, as layer norm does.
    """
    size = student.spec.image_size
    noise = torch.randn(2, 3, size, size, generator=generator_at(0, 0, "probe"))
    images = noise.to(next(student.parameters()))
    targets = torch.full((2, student.num_classes), 1 / student.num_classes, device=images.device)
    targets[:, 0] += 1
    features, gradient = stage_gradient(student, images, targets, tap, next(iter(student.heads)))
    largest = features.norm(dim=1) * gradient.norm(dim=1)
    return bool((features * gradient).sum(dim=1).abs().sum() > ROUNDING * largest.sum())


def salient_cells(saliency: Tensor, temperature: float) -> Tensor:
    """Cells whose softmax weight is above the mean over all cells, bool `[B, g, g]`."""
    weights: Tensor = (normalize_max(saliency) / temperature).flatten(1).softmax(dim=1)
    return (weights > 1 / weights.shape[1]).view_as(saliency)


def importance(saliency: Tensor, mask: Tensor) -> Tensor:
    """Compute `|S ⊙ mask|₂ / |S|₂` of saliency and masks `[M, g, g]`: `[M]`."""
    visible: Tensor = (saliency * mask).flatten(1).norm(dim=1)
    total: Tensor = saliency.flatten(1).norm(dim=1)
    return visible / total


def calibrated_lam(saliency: Tensor, grafted: Tensor) -> Tensor:
    """Compute the weights of both images in the label from their visible saliency.

    Args:
        saliency: saliency of both images, `[M, 2, g, g]`.
        grafted: cells where the second image is visible, bool `[M, g, g]`.

    Returns:
        `[M, 2]`; rows sum to 1.
    """
    first = importance(saliency[:, 0], ~grafted)
    second = importance(saliency[:, 1], grafted)
    both = torch.stack([first, second], dim=1)
    return both / both.sum(dim=1, keepdim=True)


class SaliencyGrafting(Method[SaliencyGraftingSettings, SaliencyGraftingParams]):
    """Saliency Grafting (Park et al., AAAI 2022)."""

    name = "saliencygrafting"
    summary = "random salient cells of a partner; labels follow the saliency that is left"
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
        """Choose the stage whose saliency is used.

        Raises:
            UsageError: the network normalizes the output of that stage.
        """
        self.tap = informative_tap(self.network_with(model, "stages"), self.settings.tap)

    def make_params(
        self, shape: Shape, generator: torch.Generator, step: int
    ) -> SaliencyGraftingParams:
        """Draw a partner for each image and the cells that may be grafted from it."""
        return draw_saliencygrafting(shape[0], self.settings.cells, self.settings.alpha, generator)

    def extract_features(
        self,
        images: Tensor,
        targets: Tensor,
        student: Classifier,
        teacher: Any,
        params: SaliencyGraftingParams,
    ) -> FeatureDict:
        """Return the mean saliency of each cell, `[B, g, g]`."""
        maps = feature_saliency(student, images, targets, self.tap)
        return {"saliency": F.adaptive_avg_pool2d(maps[:, None], self.settings.cells)[:, 0]}

    def mix(
        self, images: Tensor, targets: Tensor, params: SaliencyGraftingParams, **features: Tensor
    ) -> Mixed:
        """Graft the picked salient cells of the partner; labels follow what saliency is left."""
        saliency = features["saliency"][params.perm]
        grafted = params.picked & salient_cells(saliency[:, 1], self.settings.temperature)
        lam = calibrated_lam(saliency, grafted)
        inside = F.interpolate(grafted[:, None].float(), images.shape[2:])
        masks = torch.cat([1 - inside, inside], dim=1)
        return mix_by_masks(images, targets, params.perm, lam, masks)
