"""Cutout: square holes in each image; the label stays.

Paper: DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
arXiv 2017, arXiv 1708.04552.
Computes: `holes` squares of `size` pixels per side around uniform pixels of each image, with
half-sides rounded down, clipped to the image. Pixels of `[B, C, H, W]` inside become 0, which in
normalized images is the mean of the data. Labels `[B, K]` stay.
Requires: only images and labels.
Cost: 3F per step, as plain training.
Settings:
- size: 8 in the authors' CIFAR-100 commands (`--length`); 16 on CIFAR-10 and 20 on SVHN.
- holes: 1, as in the paper.
Deviations: none. No image is mixed with another: each image is its own only source with weight 1.
A mix has no masks, because no image shows inside a hole.
Evidence: none published for ResNet-18 on CIFAR-100 in the openmixup benchmark, which leaves this
method out.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from adautomix.methods.base import InputMixing, MethodSettings
from adautomix.methods.facts import LabelRule, Paper
from adautomix.mixing.boxes import box_mask, clipped_interval
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import MixParams, Shape


@dataclass(frozen=True)
class CutoutParams(MixParams):
    """Parameters of Cutout.

    Attributes:
        perm: row of each image, int64 `[B, 1]`.
        boxes: holes (top, bottom, left, right; ends exclusive), int64 `[B, holes, 4]`.
    """

    perm: Tensor
    boxes: Tensor


class CutoutSettings(MethodSettings):
    """Settings of Cutout."""

    size: int = Field(8, ge=0, description="pixels per side of a hole")
    holes: int = Field(1, ge=1, description="holes per image")


def draw_cutout(
    batch: int, height: int, width: int, size: int, holes: int, generator: torch.Generator
) -> CutoutParams:
    """Draw holes around uniform pixels, separately for each image."""
    side = torch.tensor(size)
    center_y = torch.randint(height, (batch, holes), generator=generator)
    center_x = torch.randint(width, (batch, holes), generator=generator)
    edges = *clipped_interval(center_y, side, height), *clipped_interval(center_x, side, width)
    return CutoutParams(torch.arange(batch)[:, None], torch.stack(edges, dim=2))


def hole_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks that are true inside any of the boxes `[B, holes, 4]` of an image, `[B, H, W]`."""
    inside = box_mask(boxes.flatten(0, 1), height, width)
    hole: Tensor = inside.unflatten(0, boxes.shape[:2]).any(dim=1)
    return hole


class Cutout(InputMixing[CutoutSettings, CutoutParams]):
    """Cutout (DeVries & Taylor, 2017)."""

    name = "cutout"
    summary = "a square hole in each image; the label stays"
    paper = Paper(
        authors="DeVries, Taylor",
        title="Improved Regularization of Convolutional Neural Networks with Cutout",
        venue="arXiv",
        year=2017,
        arxiv="1708.04552",
    )
    label_rule = LabelRule.KEPT
    label_note = "a hole takes nothing from the label"
    Settings = CutoutSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> CutoutParams:
        """Draw where the holes are."""
        batch, _, height, width = shape
        return draw_cutout(batch, height, width, self.settings.size, self.settings.holes, generator)

    def mix(
        self, images: Tensor, targets: Tensor, params: CutoutParams, **features: Tensor
    ) -> Mixed:
        """Return each image with its holes set to 0."""
        rows = params.perm[:, 0]
        lam = torch.ones_like(params.perm, dtype=torch.float32)
        hole = hole_mask(params.boxes, images.shape[2], images.shape[3])
        cut = images[rows].masked_fill_(hole[:, None], 0)
        return Mixed(cut, targets[rows], lam, params.perm)
