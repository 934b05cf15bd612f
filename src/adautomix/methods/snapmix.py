"""SnapMix: a box of one image resized into a box of another; labels by what the boxes mean.

Paper: Huang, Wang, Tao, "SnapMix: Semantically Proportional Mixing for Augmenting Fine-grained
Data", AAAI 2021, arXiv 2012.04846.
Computes: the semantic percent map of image i, its class activation map brought to a share,

    S_i = Norm(upsample(Σ_c W[y_i, c] · relu(f_c(x_i)))),  Norm: minus its least, over its sum

with f the last feature map `[C, h, w]` and W the weights of the head; two boxes of CutMix with
independent λ_a, λ_b ~ Beta(b, b), R_a in x and R_b in x[π]; the pixels of R_b, resized to the
size of R_a, take its place. Weights in the label:

    ρ_a = 1 - Σ_{R_a} S_i,   ρ_b = Σ_{R_b} S_π(i),   ỹ = ρ_a y + ρ_b y[π]

which do *not* sum to 1: `Mixed.lam` is (ρ_a, ρ_b). Where a box is empty nothing is mixed.
Needs: the student's last feature map. Cost: 4F a step.
Defaults: b = 5 (paper: CUB, Cars and Aircraft at 448 pixels), every batch is mixed.
Deviations:
- The forward for the maps keeps batch norm in the student's mode, as the authors' code does, but
  moves no statistics, and drops nothing.
- Two images of one class keep their weights, as the paper has it; the authors' code replaces both
  by ρ_a + ρ_b, so that such pairs count twice.
- A map that is the same everywhere is taken as uniform, which gives the areas; the authors fall
  back to the area of R_a in both weights.
- Soft labels weigh the rows of W. The bias of the head cancels in Norm.
Exact for networks whose head sees the plain average of the last stage (ResNet, RegNet, DenseNet);
ConvNeXt, Swin and ViT have a norm in between, whose scale of the channels the maps leave out.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods.base import FeatureDict, Method, MethodSettings
from adautomix.methods.facts import LabelRule, Paper, Requirement
from adautomix.mixing.boxes import box_mask, draw_box
from adautomix.mixing.ops import Mixed, weighted_sum
from adautomix.mixing.params import MixParams, Shape, draw_beta, draw_partners
from adautomix.mixing.saliency import last_stage, looking, shares
from adautomix.models import Classifier


@dataclass(frozen=True)
class SnapMixParams(MixParams):
    """`perm` `[B, 2]`; `box` in the image and `source` in its partner, both `[B, 4]`.

    Boxes are top, bottom, left, right, with exclusive ends; both are empty or neither is.
    """

    perm: Tensor
    box: Tensor
    source: Tensor


class SnapMixSettings(MethodSettings):
    """Settings of SnapMix."""

    beta: float = Field(5.0, gt=0, description="b of λ_a, λ_b ~ Beta(b, b)")
    per_sample: bool = Field(False, description="two boxes a mix instead of two a batch")


def draw_snapmix(
    batch: int,
    height: int,
    width: int,
    beta: float,
    generator: torch.Generator,
    *,
    per_sample: bool = False,
) -> SnapMixParams:
    """A partner for each image, the box that it fills and the box of it that does so."""
    perm = draw_partners(batch, generator)
    lam = draw_beta(batch if per_sample else 1, 2, beta, generator)
    boxes = torch.stack([draw_box(lam[:, n], height, width, generator) for n in range(2)], dim=1)
    filled = (boxes[..., 1::2] > boxes[..., 0::2]).all(dim=2).all(dim=1)
    boxes = (boxes * filled[:, None, None]).expand(batch, 2, 4)
    return SnapMixParams(perm, boxes[:, 0].contiguous(), boxes[:, 1].contiguous())


def activation_maps(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Class activation maps of the images' own classes, `[B, h, w]`.

    Args:
        features: the last feature map, `[B, C, h, w]`.
        weight: of the linear head, `[K, C]`.
        targets: soft labels, `[B, K]`.
    """
    with torch.autocast(features.device.type, enabled=False):
        channels = targets @ weight.float()
        return torch.einsum("bc,bchw->bhw", channels, features.float().relu())


def percent_maps(maps: Tensor, height: int, width: int) -> Tensor:
    """Activation maps `[B, h, w]` as each pixel's share of the meaning, `[B, H, W]`."""
    large = F.interpolate(maps[:, None], (height, width), mode="bilinear")[:, 0]
    return shares(large - large.amin(dim=(1, 2), keepdim=True))


def resized_boxes(images: Tensor, source: Tensor, box: Tensor) -> Tensor:
    """Images whose pixels in `box` are those in `source`, bilinearly resized, corner on corner.

    Args:
        images: `[B, C, H, W]`; computed in float32 and given back as they came.
        source: boxes `[B, 4]` that are read.
        box: boxes `[B, 4]` that are written; what lies outside means nothing.
    """
    y, x = (
        places(source[:, side : side + 2], box[:, side : side + 2], size)
        for side, size in ((0, images.shape[2]), (2, images.shape[3]))
    )
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=3)
    with torch.autocast(images.device.type, enabled=False):
        read = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=True)
    return read.to(images.dtype)


def places(source: Tensor, target: Tensor, size: int) -> Tensor:
    """Where each of `size` pixels in a row is read, from -1 to 1, so that `target` gets `source`.

    Args:
        source: first pixel and end of what is read, `[B, 2]`.
        target: first pixel and end of what is written, `[B, 2]`.
        size: H or W.
    """
    first, steps = target[:, :1], (target[:, 1:] - target[:, :1] - 1).clamp_min(1)
    span = source[:, 1:] - source[:, :1] - 1
    pixel = torch.arange(size, device=target.device)
    read = source[:, :1] + (pixel - first) * span / steps
    return 2 * read / max(size - 1, 1) - 1


class SnapMix(Method[SnapMixSettings, SnapMixParams]):
    """SnapMix (Huang, Wang, Tao, AAAI 2021)."""

    name = "snapmix"
    summary = "a box of one image in a box of another, labels by class activation"
    paper = Paper(
        authors="Huang, Wang, Tao",
        title="SnapMix: Semantically Proportional Mixing for Augmenting Fine-grained Data",
        venue="AAAI",
        year=2021,
        arxiv="2012.04846",
    )
    requires = frozenset({Requirement.LAST_FEATURES, Requirement.LINEAR_HEAD})
    cost = 4.0
    label_rule = LabelRule.SALIENCY
    label_note = "labels follow class activation, and their sum need not be 1"
    Settings = SnapMixSettings

    def build(self, model: nn.Module | None) -> None:
        """Check that the head sees the channels of the last stage.

        Raises:
            UsageError: it sees something else, or the network has no stages.
        """
        self.tap = last_stage(model, self.name)
        network: Any = model
        channels, features = network.tap_shape(self.tap)[0], network.heads["clean"].in_features
        if channels != features:
            raise UsageError(
                f"snapmix: the last stage of {network.spec.name} has {channels} channels and"
                f" its head sees {features}; use a network whose head sees its last stage, say"
                " resnet18"
            )

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> SnapMixParams:
        """A partner for each image and the two boxes."""
        batch, _, height, width = shape
        s = self.settings
        return draw_snapmix(batch, height, width, s.beta, generator, per_sample=s.per_sample)

    @torch.no_grad()
    def extract_features(
        self, images: Tensor, targets: Tensor, student: Classifier, teacher: Any, params: Any
    ) -> FeatureDict:
        """Class activation maps, at the size of the feature map."""
        with looking(student):
            features = student.feature_map(images, self.tap)
        weight: Any = student.heads["clean"].weight
        return {"maps": activation_maps(features, weight, targets)}

    def mix(
        self, images: Tensor, targets: Tensor, params: SnapMixParams, **features: Tensor
    ) -> Mixed:
        """The partner's box resized into the image's; weights by the maps."""
        height, width = images.shape[2:]
        percent = percent_maps(features["maps"], height, width)
        own, partner = params.perm.unbind(dim=1)
        inside, taken = (box_mask(box, height, width) for box in (params.box, params.source))
        lost = (percent[own] * inside).sum(dim=(1, 2)).clamp_max(1)
        lam = torch.stack([1 - lost, (percent[partner] * taken).sum(dim=(1, 2))], dim=1)
        content = resized_boxes(images[partner], params.source, params.box)
        masks = torch.stack([~inside, inside], dim=1).float()
        # Weights of 0 and 1 are exact, and filling in place keeps the layout of the images.
        mixed = images[own].lerp_(content, masks[:, 1:].to(images.dtype))
        labels = weighted_sum(targets, params.perm, lam[:, :, None])
        return Mixed(mixed, labels, lam, params.perm, masks)
