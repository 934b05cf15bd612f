"""RecursiveMix: the mix of the previous step is shrunk and pasted into the next image.

Paper: Yang, Li, Zhao, Song, Yang, "RecursiveMix: Mixed Learning with History", NeurIPS 2022,
arXiv 2203.06844.
Computes: with x', y', z' the mixed images, labels and logits of the previous step,

    mix    r ~ U(0, a) for the batch; a box of sides ⌊H√r⌋ and ⌊W√r⌋ around a uniform pixel, with
           half-sides rounded down, clipped; inside it all of x'_i, resized by nearest-neighbor
           interpolation, outside it x_i                                          [B, C, H, W]
    label  y = λ y_i + (1 - λ) y'_i,  λ = 1 - area / HW                           [B, K]
    loss   CE(student(x), y) + ω (1 - λ) CE(roi_head(box average of the last stage), softmax(z'))

where the box average is RoIAlign with a single bin. The mixes and logits of this step are the
history of the next one. Without a history, as at the first step, λ = 1 and the second term is 0.
Requires: the feature map of the last stage. The method has a linear head of its own.
Cost: 3F per step, as plain training, and memory for the batch that is kept.
Settings:
- alpha: 0.5 in the authors' CIFAR and ImageNet commands.
- omega: 0.1 in the authors' CIFAR command; 0.5 in their ImageNet command.
- per_sample: off, as in the authors' code.
Deviations:
- The history continues from epoch to epoch. The authors' code starts without one in each epoch.
- A batch smaller than the previous one uses the first rows of the history and overwrites only
  those. A batch larger than all before it has no history. The kept batch is in buffers, so it is
  part of a checkpoint and determines its size; processes that share a batch each hold all of it.
- Where the last stage is followed by a norm, the map is taken before the norm.
- The authors' code first exchanged rows and columns of the box for RoIAlign. Their current commit
  (ed381bf) does not, and averages over the box that was pasted, as this does.
Evidence: none published for ResNet-18 on CIFAR-100 in the openmixup benchmark, which leaves this
method out. The authors report 97.65 % on CIFAR-10 with PyramidNet and 79.20 % on ImageNet with
ResNet-50 after 300 epochs.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.device import run_eagerly
from adautomix.distributed import gather_rows
from adautomix.methods.base import Method, MethodSettings, MixInputs
from adautomix.methods.facts import LabelRule, Paper, Requirement
from adautomix.methods.resizemix import resize_into
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.boxes import box_mask, draw_box
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import MixParams, Shape
from adautomix.models import Classifier

History = tuple[Tensor, Tensor, Tensor]
# Buffers of the history; each has one row per row of the batch.
HISTORY = ("kept_images", "kept_targets", "kept_logits", "kept")


@dataclass(frozen=True)
class RecursiveMixParams(MixParams):
    """Parameters of RecursiveMix.

    Attributes:
        perm: row of the batch and row of the history, int64 `[B, 2]`.
        box: box (top, bottom, left, right; ends exclusive) that is filled, int64 `[B, 4]`.
    """

    perm: Tensor
    box: Tensor


class RecursiveMixSettings(MethodSettings):
    """Settings of RecursiveMix."""

    alpha: float = Field(
        0.5, ge=0, le=1, description="largest area fraction of the box, r ~ U(0, alpha)"
    )
    omega: float = Field(0.1, ge=0, description="ω, weight of the consistency with the history")
    per_sample: bool = Field(False, description="draw one box per mix instead of one per batch")


def draw_recursivemix(
    batch: int,
    height: int,
    width: int,
    alpha: float,
    generator: torch.Generator,
    *,
    per_sample: bool = False,
) -> RecursiveMixParams:
    """Draw the box of each mix; image i is mixed with row i of the history."""
    outside = 1 - alpha * torch.rand(batch if per_sample else 1, generator=generator)
    box = draw_box(outside, height, width, generator)
    rows = torch.arange(batch)
    return RecursiveMixParams(torch.stack([rows, rows], dim=1), box.expand(batch, 4).contiguous())


def bin_weights(begin: Tensor, end: Tensor, pixels: int, size: int) -> Tensor:
    """Compute the weight of each row of a feature map in the single bin of RoIAlign.

    The bin spans the interval from `begin` to `end`. It is sampled at evenly spaced points, as many
    as it is long, rounded up; each point is interpolated between the two nearest rows.

    Args:
        begin: first pixel, `[M]`.
        end: exclusive end, `[M]`.
        pixels: height or width of the image.
        size: height or width of the feature map.

    Returns:
        `[M, size]`.
    """
    scale = size / pixels
    first, last = begin * scale - 0.5, end * scale - 0.5
    points = (last - first).ceil()[:, None]
    row = torch.arange(size, device=begin.device)
    step = (last - first)[:, None] / points.clamp_min(1)
    position = (first[:, None] + (row + 0.5) * step).clamp(0, size - 1)
    near = (1 - (position[:, :, None] - row).abs()).clamp_min(0) * (row < points)[:, :, None]
    return near.sum(dim=1) / points.clamp_min(1)


def box_average(feature_map: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """Average a feature map over a box, as RoIAlign with a single bin.

    The bin is a product of two intervals, so this is a weighted sum, whose backward pass adds up in
    a fixed order; that of torchvision's RoIAlign does not.

    Args:
        feature_map: `[M, C, h, w]`.
        box: one box per map, in pixels of the image, `[M, 4]`.
        height: height H of the image.
        width: width W of the image.

    Returns:
        Float32 `[M, C]`; 0 for an empty box.
    """
    top, bottom, left, right = box.unbind(dim=1)
    rows = bin_weights(top, bottom, height, feature_map.shape[2])
    columns = bin_weights(left, right, width, feature_map.shape[3])
    weights = rows[:, :, None] * columns[:, None, :]
    return (feature_map.float() * weights[:, None]).sum(dim=(2, 3))


class RecursiveMix(Method[RecursiveMixSettings, RecursiveMixParams]):
    """RecursiveMix (Yang et al., NeurIPS 2022)."""

    name = "recursivemix"
    summary = "the mix of the last step, shrunk and pasted into the next image"
    paper = Paper(
        authors="Yang, Li, Zhao, Song, Yang",
        title="RecursiveMix: Mixed Learning with History",
        venue="NeurIPS",
        year=2022,
        arxiv="2203.06844",
    )
    requires = frozenset({Requirement.LAST_FEATURES})
    label_rule = LabelRule.KEPT
    label_note = "a mix keeps its label when it is shrunk"
    Settings = RecursiveMixSettings

    kept_images: Tensor
    kept_targets: Tensor
    kept_logits: Tensor
    kept: Tensor

    def build(self, model: nn.Module | None) -> None:
        """Create the head that classifies pasted boxes, and an empty history."""
        network = self.network_with(model, "stages")
        self.tap = len(network.stages)
        channels, _, _ = network.tap_shape(self.tap)
        self.roi_head = nn.Linear(channels, self.num_classes)
        for name in HISTORY:
            self.register_buffer(name, torch.zeros(0))

    def make_params(
        self, shape: Shape, generator: torch.Generator, step: int
    ) -> RecursiveMixParams:
        """Draw the box of each mix."""
        batch, _, height, width = shape
        s = self.settings
        return draw_recursivemix(batch, height, width, s.alpha, generator, per_sample=s.per_sample)

    def mix(
        self, images: Tensor, targets: Tensor, params: RecursiveMixParams, **features: Tensor
    ) -> Mixed:
        """Return the images with the shrunk mix of the previous step inside the box.

        The second source is a row of the history, not of the batch.
        """
        return self.mix_with(self.history(images, targets), images, targets, params)

    def mix_batch(
        self,
        images: Tensor,
        targets: Tensor,
        student: Any,
        teacher: Any,
        params: RecursiveMixParams,
    ) -> Mixed:
        """Return the mixes; without a history the previous image of the batch takes its place."""
        if self.fits(images):
            return self.mix(images, targets, params)
        first = params.perm[:, 0]
        previous = replace(params, perm=torch.stack([first, (first - 1) % len(images)], dim=1))
        clean = images, targets, torch.ones(len(images), device=images.device)
        return self.mix_with(clean, images, targets, previous)

    def mix_with(
        self, history: History, images: Tensor, targets: Tensor, params: RecursiveMixParams
    ) -> Mixed:
        """Return the mix with a given history; see `history`."""
        first, second = params.perm.unbind(dim=1)
        kept_images, kept_targets, kept = history
        inside = box_mask(params.box, images.shape[2], images.shape[3])
        inside = inside & (kept[second] > 0)[:, None, None]
        masks = torch.stack([~inside, inside], dim=1).float()
        lam = masks.mean(dim=(2, 3))
        small = resize_into(kept_images, second, params.box).to(images.dtype)
        # Weights of 0 and 1 are exact; in-place interpolation keeps the images' memory format.
        pasted = images[first].lerp_(small, masks[:, 1:].to(images.dtype))
        labels = lam[:, :1] * targets[first] + lam[:, 1:] * kept_targets[second]
        return Mixed(pasted, labels, lam, params.perm, masks)

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Any, params: RecursiveMixParams
    ) -> dict[str, Tensor]:
        """Compute the cross-entropy of the mix, plus ω times the consistency of its box."""
        images, targets = sources.images, sources.targets
        if not self.fits(images):
            self.allocate(len(images), images.shape[1:])
        mixed = self.mix(images, targets, params)
        # One forward pass with gradient gives both the logits and the map that boxes are read from.
        features = student.features(mixed.images, self.tap)
        assert features.tap is not None
        logits = student.logits(features.pooled)
        loss = self.cross_entropy(logits, mixed.targets)
        consistency = self.consistency(features.tap, mixed, params)
        # Only now, because the consistency reads the previous logits.
        self.keep(len(images), mixed, logits.detach())
        return {
            "loss": loss + self.settings.omega * consistency,
            "consistency": consistency.detach(),
            "mixture_accuracy": mixture_accuracy(logits, mixed.targets),
        }

    def consistency(self, feature_map: Tensor, mixed: Mixed, params: RecursiveMixParams) -> Tensor:
        """Mean of (1 - λ) CE(prediction for the box, previous prediction for its content)."""
        height, width = mixed.images.shape[2:]
        logits = self.roi_head(box_average(feature_map, params.box, height, width))
        previous = self.kept_logits[params.perm[:, 1]].softmax(dim=1)
        cross_entropy = F.cross_entropy(logits.float(), previous, reduction="none")
        return (mixed.lam[:, 1] * cross_entropy).mean()

    def fits(self, images: Tensor) -> bool:
        """Whether the history has a row for each of these images."""
        return len(self.kept) >= len(images) and self.kept_images.shape[1:] == images.shape[1:]

    def history(self, images: Tensor, targets: Tensor) -> History:
        """Return the kept mixes and labels, and 1 for every row that holds one, 0 for others.

        If the history does not fit, it consists of the images themselves, and no row counts.
        """
        if self.fits(images):
            return self.kept_images, self.kept_targets, self.kept
        return images, targets, self.kept.new_zeros(len(images))

    @torch.no_grad()
    def keep(self, count: int, mixed: Mixed, logits: Tensor) -> None:
        """Store mixes of a batch of `count` images, with labels and logits, as the history.

        If other processes mix the rest of the batch, their mixes are gathered.
        """
        new = [mixed.perm[:, 0], mixed.images, mixed.targets, logits]
        if len(logits) < count:
            new = [gather_rows(part) for part in new]
        rows, *parts = new
        for name, part in zip(HISTORY, [*parts, torch.ones_like(rows)], strict=True):
            buffer: Tensor = getattr(self, name)
            buffer.index_copy_(0, rows, part.to(buffer.dtype))

    @run_eagerly
    def allocate(self, count: int, shape: Shape) -> None:
        """Allocate an empty history for `count` images of shape `[C, H, W]`."""
        classes = (self.num_classes,)
        for name, row in zip(HISTORY, (shape, classes, classes, ()), strict=True):
            setattr(self, name, torch.zeros(count, *row, device=self.kept.device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load a history of any size."""
        for name in HISTORY:
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape != getattr(self, name).shape:
                setattr(self, name, torch.empty_like(saved, device=self.kept.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
