"""SnapMix: a box of one image is resized into a box of another; labels weigh what the boxes show.

Paper: Huang, Wang, Tao, "SnapMix: Semantically Proportional Mixing for Augmenting Fine-grained
Data", AAAI 2021, arXiv 2012.04846.
Computes: the semantic percent map `[H, W]` of image i, its normalized class activation map,

    S_i = Norm(upsample(Σ_c W[y_i, c] · relu(f_c(x_i)))),  Norm: minus the minimum, over the sum

where f is the last feature map `[B, C, h, w]` and W `[K, C]` the weight of the head. Two boxes of
CutMix are drawn with independent λ_a, λ_b ~ Beta(b, b): R_a in x and R_b in x[π]. The pixels of R_b
are resized to R_a and replace it. The weights in the label are

    ρ_a = 1 - Σ_{R_a} S_i,   ρ_b = Σ_{R_b} S_π(i),   ỹ = ρ_a y + ρ_b y[π]   [B, K]

which do *not* sum to 1: `Mixed.lam` is (ρ_a, ρ_b). Where a box is empty nothing is mixed.
Requires: the last feature map of the student and the weight of its linear head. The map is exact
where the head sees the plain mean of the last stage (ResNet, RegNet, DenseNet). ConvNeXt, Swin and
ViT have a norm in between, whose scale of the channels the map leaves out.
Cost: 4F per step: one more forward pass without gradient.
Settings:
- beta: 5, as in the paper and in the authors' README for fine-tuning on CUB, Cars and Aircraft.
- per_sample: off, as in the authors' code.
Deviations:
- Every batch is mixed by default, as in most of the authors' fine-tuning runs (`prob=1.`). Their
  commands for training from scratch mix half of the batches (`--prob 0.5`): set `mix.prob: 0.5` for
  that.
- The forward pass for the maps keeps batch norm in the student's mode, as the authors' code does,
  but updates no running statistics and has no dropout.
- Two images of one class keep their weights, as in the paper. The authors' code replaces both by
  ρ_a + ρ_b, so that such pairs count twice.
- A constant map counts as uniform, which gives the areas. The authors' code then uses the area of
  R_a for both weights.
- With soft labels, W[y] is the average of the rows weighted by the label. The bias of the head
  cancels in Norm.
Evidence: none published for ResNet-18 on CIFAR-100. The AdAutoMix authors' table has 79.27 % on
CUB-200 and 88.45 % on Stanford Cars with ResNet-18.
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
from adautomix.mixing.saliency import last_stage, normalize_sum, probing
from adautomix.models import Classifier


@dataclass(frozen=True)
class SnapMixParams(MixParams):
    """Parameters of SnapMix.

    Boxes are top, bottom, left, right, with exclusive ends. Both boxes of a mix are empty, or none.

    Attributes:
        perm: rows of the image and its partner, int64 `[B, 2]`.
        box: box of the image that is filled, int64 `[B, 4]`.
        source: box of the partner that fills it, int64 `[B, 4]`.
    """

    perm: Tensor
    box: Tensor
    source: Tensor


class SnapMixSettings(MethodSettings):
    """Settings of SnapMix."""

    beta: float = Field(5.0, gt=0, description="b in λ_a, λ_b ~ Beta(b, b)")
    per_sample: bool = Field(False, description="draw two boxes per mix instead of two per batch")


def draw_snapmix(
    batch: int,
    height: int,
    width: int,
    beta: float,
    generator: torch.Generator,
    *,
    per_sample: bool = False,
) -> SnapMixParams:
    """Draw a partner for each image, the box that is filled, and the partner's box."""
    perm = draw_partners(batch, generator)
    lam = draw_beta(batch if per_sample else 1, 2, beta, generator)
    boxes = torch.stack([draw_box(lam[:, n], height, width, generator) for n in range(2)], dim=1)
    filled = (boxes[..., 1::2] > boxes[..., 0::2]).all(dim=2).all(dim=1)
    boxes = (boxes * filled[:, None, None]).expand(batch, 2, 4)
    return SnapMixParams(perm, boxes[:, 0].contiguous(), boxes[:, 1].contiguous())


def activation_maps(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Compute class activation maps of the images' own classes.

    Args:
        features: the last feature map, `[B, C, h, w]`.
        weight: weight of the linear head, `[K, C]`.
        targets: soft labels, `[B, K]`.

    Returns:
        Float32 `[B, h, w]`.
    """
    with torch.autocast(features.device.type, enabled=False):
        channels = targets @ weight.float()
        return torch.einsum("bc,bchw->bhw", channels, features.float().relu())


def percent_maps(maps: Tensor, height: int, width: int) -> Tensor:
    """Upsample activation maps `[B, h, w]` and normalize them to sum 1: `[B, H, W]`."""
    large = F.interpolate(maps[:, None], (height, width), mode="bilinear")[:, 0]
    return normalize_sum(large - large.amin(dim=(1, 2), keepdim=True))


def resize_boxes(images: Tensor, source: Tensor, box: Tensor) -> Tensor:
    """Resize one box of each image into another box, bilinearly with aligned corners.

    Args:
        images: `[B, C, H, W]`; interpolated in float32.
        source: boxes that are read, `[B, 4]`.
        box: boxes that are written, `[B, 4]`.

    Returns:
        `[B, C, H, W]` in the dtype of `images`; values outside `box` are arbitrary.
    """
    y, x = (
        sampling_positions(source[:, side : side + 2], box[:, side : side + 2], size)
        for side, size in ((0, images.shape[2]), (2, images.shape[3]))
    )
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=3)
    with torch.autocast(images.device.type, enabled=False):
        read = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=True)
    return read.to(images.dtype)


def sampling_positions(source: Tensor, target: Tensor, size: int) -> Tensor:
    """Compute where each of `size` pixels in a row is sampled, so that `target` shows `source`.

    Args:
        source: first pixel and exclusive end of the interval that is read, `[B, 2]`.
        target: first pixel and exclusive end of the interval that is written, `[B, 2]`.
        size: H or W.

    Returns:
        `[B, size]`, from -1 to 1 as `grid_sample` expects.
    """
    first, steps = target[:, :1], (target[:, 1:] - target[:, :1] - 1).clamp_min(1)
    span = source[:, 1:] - source[:, :1] - 1
    pixel = torch.arange(size, device=target.device)
    position = source[:, :1] + (pixel - first) * span / steps
    return 2 * position / max(size - 1, 1) - 1


class SnapMix(Method[SnapMixSettings, SnapMixParams]):
    """SnapMix (Huang, Wang, Tao, AAAI 2021)."""

    name = "snapmix"
    summary = "a box of one image in a box of another; labels follow class activation"
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
        network = self.network_with(model, "tap_shape")
        head: Any = network.heads["clean"]
        channels = network.tap_shape(self.tap)[0]
        if channels != head.in_features:
            raise UsageError(
                f"snapmix: the last stage of {network.spec.name} has {channels} channels and its"
                f" head sees {head.in_features}; use a network whose head sees its last stage, say"
                " resnet18"
            )

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> SnapMixParams:
        """Draw a partner for each image and the two boxes."""
        batch, _, height, width = shape
        s = self.settings
        return draw_snapmix(batch, height, width, s.beta, generator, per_sample=s.per_sample)

    @torch.no_grad()
    def extract_features(
        self, images: Tensor, targets: Tensor, student: Classifier, teacher: Any, params: Any
    ) -> FeatureDict:
        """Return class activation maps in the size of the feature map, `[B, h, w]`."""
        with probing(student):
            features = student.feature_map(images, self.tap)
        weight: Any = student.heads["clean"].weight
        return {"maps": activation_maps(features, weight, targets)}

    def mix(
        self, images: Tensor, targets: Tensor, params: SnapMixParams, **features: Tensor
    ) -> Mixed:
        """Return the partner's box resized into the image's; labels follow the maps."""
        height, width = images.shape[2:]
        percent = percent_maps(features["maps"], height, width)
        first, second = params.perm.unbind(dim=1)
        inside, taken = (box_mask(box, height, width) for box in (params.box, params.source))
        lost = (percent[first] * inside).sum(dim=(1, 2)).clamp_max(1)
        lam = torch.stack([1 - lost, (percent[second] * taken).sum(dim=(1, 2))], dim=1)
        content = resize_boxes(images[second], params.source, params.box)
        masks = torch.stack([~inside, inside], dim=1).float()
        # Weights of 0 and 1 are exact; in-place interpolation keeps the images' memory format.
        mixed = images[first].lerp_(content, masks[:, 1:].to(images.dtype))
        labels = weighted_sum(targets, params.perm, lam[:, :, None])
        return Mixed(mixed, labels, lam, params.perm, masks)
