"""Attentive CutMix: the cells of an image that a network attends to most, pasted into another.

Paper: Walawalkar, Shen, Liu, Savvides, "Attentive CutMix: An Enhanced Data Augmentation Approach
for Deep Learning Based Image Classification", ICASSP 2020, arXiv 2003.13048.
Computes: the attention `[B, g, g]` of each image, which is the mean over the channels of a feature
map, resized to a grid of g × g cells. The k cells of x[π] with the largest attention are pasted
into x where they are; ỹ = λ y + (1 - λ) y[π] `[B, K]`, where λ = 1 - pasted fraction of the pixels,
which is 1 - k / g² wherever g divides the sides of the image.
Requires: the feature map of a stage of the teacher.
Cost: 4F per step with the teacher. With another network, 3F and one forward pass of that network at
`network_size` pixels.
Settings:
- grid: 7, as in the paper.
- patches: 6, as in the paper.
- alpha: none, because k is fixed in the paper. The openmixup benchmark draws k = ⌊49 λ⌋ with
  alpha 2 and calls the method AttentiveMix+.
- network: none (the teacher) is a choice of this implementation. The paper uses a pretrained
  ResNet-50, openmixup a pretrained ResNet-18 for CNNs on CIFAR-100 (`resnet18.tv_in1k`).
- network_size: 224, as in the paper.
- tap: none (the last stage), as in the paper.
Deviations:
- The teacher, the moving average of the student, stands in for the paper's frozen ResNet-50 by
  default: no other weights are needed, and its attention improves during training.
  `network: resnet50`, or any timm name, is the paper's choice. Its weights must be cached or
  downloadable; its images are resized to 224 pixels and keep the normalization of the data.
- A feature map of another size than g × g is resized to it, for example the 4 × 4 map of a ResNet
  on CIFAR. The paper has 7 × 7 from 224 pixels.
- The paper does not say how channels are combined. The mean is openmixup's reading.
- As in CutMix, the image keeps the background and its partner gives the cells. The paper names the
  two the other way round.
Evidence: 79.62 / 80.14 / 78.91 % top-1 accuracy with ResNet-18 on CIFAR-100 after 200 / 400 / 800
epochs, with a = 2 and a pretrained ResNet-18 (openmixup benchmark; median of the last 10 epochs).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods.base import FeatureDict, Method, MethodSettings
from adautomix.methods.facts import Paper, Requirement
from adautomix.mixing.boxes import paste
from adautomix.mixing.ops import Mixed, cells_to_pixels
from adautomix.mixing.params import MixParams, Shape, draw_beta, draw_partners
from adautomix.mixing.saliency import last_stage, probing, resize
from adautomix.models import Classifier, build_model


@dataclass(frozen=True)
class AttentiveCutMixParams(MixParams):
    """Parameters of Attentive CutMix.

    Attributes:
        perm: rows of the image and its partner, int64 `[B, 2]`.
        count: number of pasted cells, int64 `[B]`.
    """

    perm: Tensor
    count: Tensor


class AttentiveCutMixSettings(MethodSettings):
    """Settings of Attentive CutMix."""

    grid: int = Field(7, ge=2, description="g, cells per side")
    patches: int = Field(6, ge=1, description="k, number of pasted cells")
    alpha: float | None = Field(
        None,
        gt=0,
        description="draw k = ⌊g²·λ⌋ with λ ~ Beta(alpha, alpha); none: k is always `patches`",
    )
    network: str | None = Field(
        None, description="pretrained timm network that gives the attention; none: the teacher"
    )
    network_size: int = Field(224, ge=8, description="input size of that network, pixels per side")
    tap: int | None = Field(
        None, ge=1, description="stage whose feature map gives the attention; none: the last"
    )


def draw_attentivecutmix(
    batch: int, cells: int, patches: int, alpha: float | None, generator: torch.Generator
) -> AttentiveCutMixParams:
    """Draw a partner for each image and the number of pasted cells."""
    perm = draw_partners(batch, generator)
    count = torch.tensor(patches)
    if alpha is not None:
        count = (cells * draw_beta(1, 1, alpha, generator)[0, 0]).long()
    return AttentiveCutMixParams(perm, count.clamp(1, cells).repeat(batch))


def largest_cells(attention: Tensor, count: Tensor) -> Tensor:
    """Mark exactly the `count[b]` largest cells of `attention[b]`, bool `[B, g, g]`."""
    order = attention.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return (rank < count[:, None]).view_as(attention)


class AttentiveCutMix(Method[AttentiveCutMixSettings, AttentiveCutMixParams]):
    """Attentive CutMix (Walawalkar et al., ICASSP 2020)."""

    name = "attentivecutmix"
    summary = "the cells of one image that a network attends to most, pasted into another"
    paper = Paper(
        authors="Walawalkar, Shen, Liu, Savvides",
        title="Attentive CutMix: An Enhanced Data Augmentation Approach for Deep Learning "
        "Based Image Classification",
        venue="ICASSP",
        year=2020,
        arxiv="2003.13048",
    )
    requires = frozenset({Requirement.LAST_FEATURES, Requirement.TEACHER})
    cost = 4.0
    Settings = AttentiveCutMixSettings

    def build(self, model: nn.Module | None) -> None:
        """Load the pretrained network, if there is one, and find the stage that gives attention.

        Raises:
            UsageError: more cells are pasted than the grid has, or the network has no stages.
        """
        s = self.settings
        if s.patches > s.grid**2:
            raise UsageError(
                f"attentivecutmix.patches = {s.patches}: a grid of {s.grid} has {s.grid**2} cells"
            )
        # In a list, so that the frozen network is neither a submodule nor saved.
        self._network: list[Classifier] = []
        if s.network is not None:
            self._network.append(frozen_network(s.network, s.network_size))
        attending = self._network[0] if self._network else model
        self.tap = s.tap or last_stage(attending, self.name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the frozen network together with the method from device to device."""
        for network in self._network:
            network._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def make_params(
        self, shape: Shape, generator: torch.Generator, step: int
    ) -> AttentiveCutMixParams:
        """Draw a partner for each image and the number of pasted cells."""
        s = self.settings
        return draw_attentivecutmix(shape[0], s.grid**2, s.patches, s.alpha, generator)

    @torch.no_grad()
    def extract_features(
        self, images: Tensor, targets: Tensor, student: Any, teacher: Classifier, params: Any
    ) -> FeatureDict:
        """Return the attention of each cell, float32 `[B, g, g]`."""
        network = self._network[0] if self._network else teacher
        if self._network:
            size = self.settings.network_size
            images = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
        with probing(network):
            features = network.feature_map(images, self.tap)
        grid = self.settings.grid
        return {"attention": resize(features.float().mean(dim=1), grid, grid)}

    def mix(
        self, images: Tensor, targets: Tensor, params: AttentiveCutMixParams, **features: Tensor
    ) -> Mixed:
        """Return the partner in its most attended cells and the image elsewhere."""
        cells = largest_cells(features["attention"][params.perm[:, 1]], params.count)
        return paste(images, targets, params.perm, ~cells_to_pixels(cells, *images.shape[2:]))


def frozen_network(name: str, size: int) -> Classifier:
    """Build a pretrained network in evaluation mode without trainable weights.

    Args:
        name: name of a timm network.
        size: input size, pixels per side.

    Raises:
        UsageError: timm has no network of that name.
        RunError: its weights could not be loaded.
    """
    network = build_model(name, 1, pretrained=True, image_size=size, seed=0)
    return network.requires_grad_(False).eval()
