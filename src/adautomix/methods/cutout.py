"""Cutout: a square hole in each image; the label stays.

Paper: DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
2017, arXiv 1708.04552.
Computes: for each image `holes` squares of `size` pixels a side around uniform pixels, half-sides
floored, clipped to the image; inside them 0, which in normalized images is the mean of the data.
Needs: nothing. Cost: 3F a step, like no mixing.
Defaults: one hole of 8 pixels (CIFAR-100); the paper uses 16 on CIFAR-10 and 20 on SVHN.
Deviations: none. No image is mixed with another: the ledger has each image as its own only source
with share 1, and no masks, as nobody owns the pixels of a hole.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from adautomix.methods.base import InputMixing, MethodSettings
from adautomix.methods.facts import LabelRule, Paper
from adautomix.mixing.boxes import box_around, box_mask
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import MixParams, Shape


@dataclass(frozen=True)
class CutoutParams(MixParams):
    """`perm` `[B, 1]`, each image itself, and `boxes` `[B, holes, 4]`: top, bottom, left, right."""

    perm: Tensor
    boxes: Tensor


class CutoutSettings(MethodSettings):
    """Settings of Cutout."""

    size: int = Field(8, ge=0, description="pixels a side of a hole")
    holes: int = Field(1, ge=1, description="holes an image")


def draw_cutout(
    batch: int, height: int, width: int, size: int, holes: int, generator: torch.Generator
) -> CutoutParams:
    """Holes around uniform pixels, each image its own."""
    side = torch.tensor(size)
    center_y = torch.randint(height, (batch, holes), generator=generator)
    center_x = torch.randint(width, (batch, holes), generator=generator)
    edges = *box_around(center_y, side, height), *box_around(center_x, side, width)
    return CutoutParams(torch.arange(batch)[:, None], torch.stack(edges, dim=2))


def hole_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """True inside any of the boxes `[B, holes, 4]` of an image, `[B, H, W]`."""
    inside = box_mask(boxes.flatten(0, 1), height, width)
    hole: Tensor = inside.unflatten(0, boxes.shape[:2]).any(dim=1)
    return hole


class Cutout(InputMixing[CutoutSettings, CutoutParams]):
    """Cutout (DeVries & Taylor, 2017)."""

    name = "cutout"
    summary = "a square hole in each image, the label stays"
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
        """Where the holes are."""
        batch, _, height, width = shape
        return draw_cutout(batch, height, width, self.settings.size, self.settings.holes, generator)

    def mix(
        self, images: Tensor, targets: Tensor, params: CutoutParams, **features: Tensor
    ) -> Mixed:
        """Each image with its holes."""
        rows = params.perm[:, 0]
        lam = torch.ones_like(params.perm, dtype=torch.float32)
        hole = hole_mask(params.boxes, images.shape[2], images.shape[3])
        cut = images[rows].masked_fill_(hole[:, None], 0)
        return Mixed(cut, targets[rows], lam, params.perm)
