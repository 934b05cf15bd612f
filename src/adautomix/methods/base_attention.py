"""Base classes of methods that read the attention of a plain vision transformer.

A mask over patches is `[M, h, w]`. Attention over patches is `[B, P]` with P = h·w, patches in row
order, averaged over heads. It leaves out the tokens ahead of the patches (class, distillation,
registers), so its rows sum to less than 1.

Networks: timm's ViT and DeiT families, pooled by a class token or over the patches. Swin, PVT, CaiT
and other networks from the papers have no attention between all patches, or implement it
differently, and are refused by name.
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
from adautomix.mixing.ops import Mixed, weighted_sum
from adautomix.mixing.params import PairParams, Shape, draw_lam, draw_partners
from adautomix.models import Classifier, Queries, evaluating

Grid = tuple[int, int]


class AttentionOutput(NamedTuple):
    """Output of a forward pass together with the attention of the last block.

    Attributes:
        pooled: pooled features, which the linear heads see, `[B, D]`.
        patches: normalized last features of the patches, `[B, P, D]`.
        attention: attention over patches, averaged over heads, float32 `[B, P]`, without gradient.
    """

    pooled: Tensor
    patches: Tensor
    attention: Tensor


def forward_with_attention(
    network: Classifier, images: Tensor, queries: Queries = "class"
) -> AttentionOutput:
    """Run a forward pass and return the attention of the last block too.

    Args:
        network: a plain vision transformer.
        images: normalized, `[B, C, H, W]`.
        queries: whose attention is returned, that of the class token or of all patches.
    """
    blocks = network.blocks()
    tokens = blocks.forward_to(images, blocks.depth)
    attention = blocks.attention(tokens, blocks.depth, queries).mean(dim=1)
    return AttentionOutput(*blocks.forward_from(tokens, blocks.depth), attention)


@torch.no_grad()
def eval_with_attention(
    network: Classifier, images: Tensor, queries: Queries = "class"
) -> AttentionOutput:
    """Run `forward_with_attention` in evaluation mode and without gradient."""
    with evaluating(network):
        return forward_with_attention(network, images, queries)


def patches_to_pixels(patches: Tensor, patch: Grid) -> Tensor:
    """Upsample a mask over patches `[M, h, w]` to pixels `[M, H, W]`."""
    count, height, width = patches.shape
    large = patches[:, :, None, :, None].expand(-1, -1, patch[0], -1, patch[1])
    return large.reshape(count, height * patch[0], width * patch[1])


def pixels_to_patches(pixels: Tensor, patch: Grid) -> Tensor:
    """Downsample a mask over pixels `[M, H, W]` to patches `[M, P]` by each patch's first pixel.

    This is nearest-neighbor interpolation, and exact for masks made of whole patches.
    """
    return pixels[:, :: patch[0], :: patch[1]].flatten(1)


def fraction_inside(attention: Tensor, inside: Tensor) -> Tensor:
    """Fraction of the attention that falls inside a mask, both `[M, P]`: `[M]`, 0 to 1."""
    total = attention.sum(dim=1).clamp_min(torch.finfo(attention.dtype).tiny)
    return (attention * inside).sum(dim=1) / total


def with_lam(mixed: Mixed, targets: Tensor, lam: Tensor) -> Mixed:
    """Return the same mixes with other weights in the label.

    Args:
        mixed: M mixes.
        targets: soft labels of the sources, `[B, K]`.
        lam: new weights, `[M, 2]`.
    """
    labels = weighted_sum(targets, mixed.perm, lam[:, :, None])
    return dataclasses.replace(mixed, targets=labels, lam=lam)


class AlternatingSettings(MethodSettings):
    """Settings of a method that alternates with Mixup, as recipes for transformers do."""

    switch: float = Field(
        0.5, ge=0, le=1, description="fraction of steps that use this method; the rest use Mixup"
    )
    mixup_alpha: float = Field(0.8, gt=0, description="Mixup steps: λ ~ Beta(alpha, alpha)")
    per_sample: bool = Field(
        False, description="draw the parameters once per mix instead of once per batch"
    )


@dataclasses.dataclass(frozen=True)
class AlternatingParams(PairParams):
    """Parameters of a method that alternates with Mixup, whose weights are `lam`.

    Attributes:
        plain: whether this is a Mixup step.
    """

    plain: bool


A = TypeVar("A", bound=AlternatingParams, default=Any)


def draw_alternating(
    batch: int, settings: AlternatingSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor, bool]:
    """Draw the fields of `AlternatingParams`: partners, Mixup's weights, and the kind of step."""
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
        return self.network_with(model, "blocks").blocks().patch_size

    def patch_grid(self, shape: Shape) -> Grid:
        """Number of patches per column and per row of images `[B, C, H, W]`.

        Raises:
            UsageError: the images do not consist of whole patches.
        """
        (height, width), (patch_height, patch_width) = shape[2:], self.patch
        if height % patch_height or width % patch_width:
            raise UsageError(
                f"{self.name} mixes whole patches of {patch_height}×{patch_width} pixels: choose an"
                f" image size that is a multiple, not {height}×{width}"
            )
        return height // patch_height, width // patch_width


class RelabelingMethod(AttentionMethod[S, A]):
    """A method that mixes first and then weighs the labels by attention to the mix."""

    @abstractmethod
    def relabel(self, mixed: Mixed, targets: Tensor, attention: Tensor, logits: Tensor) -> Mixed:
        """Return the mixes with labels that follow attention.

        Args:
            mixed: M mixes labeled by area.
            targets: soft labels of the sources, `[B, K]`.
            attention: attention over patches of the mixes, `[M, P]`.
            logits: logits of the mixes, `[M, K]`, without gradient.
        """

    def relabels(self, params: A) -> bool:
        """Whether labels of this step depend on the forward pass."""
        return not params.plain

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Any, params: A
    ) -> dict[str, Tensor]:
        """Compute the soft cross-entropy of the mixes, with labels from the same forward pass."""
        if not self.relabels(params):
            return super().compute_loss(sources, student, teacher, params)
        mixed = self.mix(sources.images, sources.targets, params)
        # One forward pass gives both the logits to train on and the attention that weighs labels.
        output = forward_with_attention(student, mixed.images)
        logits = student.logits(output.pooled)
        # Labels are constants: attention has no gradient and the logits are detached.
        mixed = self.relabel(mixed, sources.targets, output.attention, logits.detach())
        return self.loss_from_logits(logits, mixed.targets)

    def mix_batch(
        self, images: Tensor, targets: Tensor, student: Classifier, teacher: Any, params: A
    ) -> Mixed:
        """Return the mixes with the labels that the network in evaluation mode gives them."""
        mixed = self.mix(images, targets, params)
        if not self.relabels(params):
            return mixed
        output = eval_with_attention(student, mixed.images)
        logits = student.logits(output.pooled).detach()
        return self.relabel(mixed, targets, output.attention, logits)
