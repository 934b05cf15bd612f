"""What the methods share that look at the attention of a plain vision transformer.

A mask over patches is `[M, h, w]`, one row of the grid of patches after the other; attention over
patches is `[B, P]` with P = h·w, the mean over heads, and says nothing about the tokens ahead of
the patches (class, distillation, registers), so that its rows sum to less than 1.

Networks: timm's ViT and DeiT families, pooled by a class token or over the patches. Swin, PVT,
CaiT and other networks that the papers also train have no attention of all patches to all, or
other code for it, and are refused by name.
"""

import dataclasses
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypeVar

from adautomix.errors import UsageError
from adautomix.methods.base import Method, MethodSettings, MixInputs, P, S
from adautomix.methods.facts import Requirement
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.ops import Mixed, weighted_sum
from adautomix.mixing.params import PairParams, Shape, draw_lam, draw_partners
from adautomix.models import Classifier, Queries, evaluating

Grid = tuple[int, int]


class Attended(NamedTuple):
    """One forward and what its last block attended to.

    Attributes:
        pooled: what the linear heads see, `[B, D]`.
        patches: the normalized last features of the patches, `[B, P, D]`.
        attention: over patches, mean over heads, float32 `[B, P]`, without gradient.
    """

    pooled: Tensor
    patches: Tensor
    attention: Tensor


def attend(network: Classifier, images: Tensor, queries: Queries = "class") -> Attended:
    """One forward with the attention of the last block, of the class token or of all patches."""
    blocks = network.blocks()
    tokens = blocks.enter(images, blocks.depth)
    attention = blocks.attention(tokens, blocks.depth, queries).mean(dim=1)
    return Attended(*blocks.leave(tokens, blocks.depth), attention)


@torch.no_grad()
def attend_clean(network: Classifier, images: Tensor, queries: Queries = "class") -> Attended:
    """The same in evaluation mode and without gradient: nothing dropped, each image by itself."""
    with evaluating(network):
        return attend(network, images, queries)


def to_pixels(patches: Tensor, patch: Grid) -> Tensor:
    """A mask over patches `[M, h, w]` as one over pixels, `[M, H, W]`."""
    count, height, width = patches.shape
    large = patches[:, :, None, :, None].expand(-1, -1, patch[0], -1, patch[1])
    return large.reshape(count, height * patch[0], width * patch[1])


def to_patches(pixels: Tensor, patch: Grid) -> Tensor:
    """A mask over pixels `[M, H, W]` as one over patches, `[M, P]`: each patch's first pixel.

    That is nearest-neighbor interpolation, exact where the mask is one of whole patches.
    """
    return pixels[:, :: patch[0], :: patch[1]].flatten(1)


def share_inside(attention: Tensor, inside: Tensor) -> Tensor:
    """Share of the attention, both `[M, P]`, that falls inside: `[M]`."""
    total = attention.sum(dim=1).clamp_min(torch.finfo(attention.dtype).tiny)
    return (attention * inside).sum(dim=1) / total


def relabeled(mixed: Mixed, targets: Tensor, lam: Tensor) -> Mixed:
    """The same mixes with weights `[M, 2]` of their own in the label."""
    labels = weighted_sum(targets, mixed.perm, lam[:, :, None])
    return dataclasses.replace(mixed, targets=labels, lam=lam)


class AlternatingSettings(MethodSettings):
    """Settings of a method that takes turns with Mixup, as recipes of transformers do."""

    switch: float = Field(0.5, ge=0, le=1, description="share of steps mixed so; others by Mixup")
    mixup_alpha: float = Field(0.8, gt=0, description="λ ~ Beta(a, a) of the steps of Mixup")
    per_sample: bool = Field(False, description="numbers drawn for each mix instead of each batch")


@dataclasses.dataclass(frozen=True)
class AlternatingParams(PairParams):
    """Parameters of a method that alternates with Mixup, whose weights are `lam`.

    Attributes:
        plain: this step is a Mixup step.
    """

    plain: bool


A = TypeVar("A", bound=AlternatingParams, default=Any)


def draw_turn(
    batch: int, settings: AlternatingSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor, bool]:
    """A partner for each image, Mixup's shares, and whether it is Mixup's turn."""
    plain = bool(torch.rand((), generator=generator) >= settings.switch)
    lam = draw_lam(batch, settings.mixup_alpha, generator, per_sample=settings.per_sample)
    return draw_partners(batch, generator), lam, plain


class AttentionMethod(Method[S, P]):
    """A method that reads the attention of a plain vision transformer.

    Raises:
        UsageError: the network is not a plain vision transformer.
    """

    requires = frozenset({Requirement.PATCH_ATTENTION})

    def build(self, model: nn.Module | None) -> None:
        """Read the patch size of the network."""
        self.patch = self.patch_size(model)

    def patch_size(self, model: nn.Module | None) -> Grid:
        """Height and width in pixels of the smallest unit that is mixed: a patch of the network."""
        return self.network_with(model, "blocks").blocks().patch

    def grid_of(self, shape: Shape) -> Grid:
        """Patches from top to bottom and from left to right of images `[B, C, H, W]`.

        Raises:
            UsageError: the images are not cut into whole patches.
        """
        (height, width), (tall, wide) = shape[2:], self.patch
        if height % tall or width % wide:
            raise UsageError(
                f"{self.name} mixes whole patches of {tall}×{wide} pixels: choose an image size"
                f" that is a multiple, not {height}×{width}"
            )
        return height // tall, width // wide


class RelabelingMethod(AttentionMethod[S, A]):
    """Mixes first, and weighs the labels by what the network attended to in the mix."""

    @abstractmethod
    def relabel(self, mixed: Mixed, targets: Tensor, attention: Tensor, logits: Tensor) -> Mixed:
        """The mixes with the labels that they deserve.

        Args:
            mixed: labeled by area.
            targets: soft labels of the sources, `[B, K]`.
            attention: over patches in the mixes, `[M, P]`.
            logits: of the mixes, `[M, K]`.
        """

    def relabels(self, params: A) -> bool:
        """Whether the labels of this step wait for the forward."""
        return not params.plain

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Any, params: A
    ) -> dict[str, Tensor]:
        """Mix, predict, weigh the labels anew, soft cross-entropy: one forward."""
        if not self.relabels(params):
            return super().compute_loss(sources, student, teacher, params)
        mixed = self.mix(sources.images, sources.targets, params)
        features = attend(student, mixed.images)
        logits = student.logits(features.pooled)
        mixed = self.relabel(mixed, sources.targets, features.attention, logits.detach())
        return {
            "loss": self.cross_entropy(logits, mixed.targets),
            "mixture_accuracy": mixture_accuracy(logits, mixed.targets),
        }

    def mix_batch(
        self, images: Tensor, targets: Tensor, student: Classifier, teacher: Any, params: A
    ) -> Mixed:
        """The mixes with their labels as the network in evaluation mode would weigh them."""
        mixed = self.mix(images, targets, params)
        if not self.relabels(params):
            return mixed
        features = attend_clean(student, mixed.images)
        return self.relabel(
            mixed, targets, features.attention, student.logits(features.pooled).detach()
        )
