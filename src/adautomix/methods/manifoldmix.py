"""Manifold Mixup: Mixup of what the network makes of two images, at a random depth.

Paper: Verma et al., "Manifold Mixup: Better Representations by Interpolating Hidden States",
ICML 2019, arXiv 1806.05236.
Computes: λ ~ Beta(a, a) and a place k ~ U{0..deepest} for the batch; the network runs up to the
output h of stage k (k = 0: the images themselves), goes on with λ h + (1 - λ) h[π], and learns
λ y + (1 - λ) y[π]. Gradients flow through both sources.
Needs: a network with stages. Cost: 3F a step. Where a batch is split, over processes or parts, a
part takes the hidden states of its partners from a pass of its own: the stages below k then run
twice.
Defaults: a = 2 and the images or the output of stage 1 or 2 (CIFAR; of a plain transformer, of
block 1 or 2). The paper uses a = 0.2 on ImageNet.
Deviations: cross-entropy, where the authors' code has a binary cross-entropy of the softmax, whose
scale and learning rates differ. Where a batch is split, batch norm below k sees every image of
the batch twice: the same mean and variance. `sample` shows the mix of the images whatever k is,
as a hidden mix cannot be seen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods.base import (
    Draw,
    Method,
    MethodSettings,
    Mixed,
    Shape,
    Sources,
    captured_share,
    draw_lam,
    draw_partners,
    mix_by_lam,
    weighted_sum,
)
from adautomix.models import Classifier


@dataclass(frozen=True)
class ManifoldMixDraw(Draw):
    """`perm` and `lam` `[B, 2]`; `stage` whose output is mixed, 0 for the images."""

    perm: Tensor
    lam: Tensor
    stage: int


class ManifoldMixSettings(MethodSettings):
    """Settings of Manifold Mixup."""

    alpha: float = Field(2.0, gt=0, description="λ ~ Beta(alpha, alpha)")
    deepest: int = Field(2, ge=0, description="mix images or the output of stage 1 to this one")
    per_sample: bool = Field(False, description="one λ a mix instead of one a batch")


class Altered(nn.Module):
    """A module whose output goes through a function."""

    def __init__(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.change = module, change

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The changed output."""
        return self.change(self.module(*args, **kwargs))


@contextmanager
def altered(network: nn.Module, path: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within it the module at `path` hands on its output through `change`.

    The module is replaced and put back. A forward hook would do the same, but compiled code
    neither takes hooks in nor notices when they change.
    """
    parent, _, name = path.rpartition(".")
    owner = network.get_submodule(parent)
    module = owner.get_submodule(name)
    setattr(owner, name, Altered(module, change))
    try:
        yield
    finally:
        setattr(owner, name, module)


def with_partners(images: Tensor, perm: Tensor) -> tuple[Tensor, Tensor]:
    """The images that mixes `perm` `[M, N]` are made of, and `perm` counted in their rows.

    All images where there are as many mixes, and else every mix's sources, one after the other.
    """
    if len(images) == len(perm):
        return images, perm
    places = torch.arange(perm.numel(), device=perm.device).view(perm.shape[1], -1)
    return images.index_select(0, perm.T.flatten()), places.T


class ManifoldMix(Method):
    """Manifold Mixup (Verma et al., ICML 2019)."""

    name = "manifoldmix"
    summary = "Mixup of hidden states, at a random depth"
    needs = "a network with stages"
    Settings = ManifoldMixSettings

    def __init__(self, settings: ManifoldMixSettings, **common: Any) -> None:
        super().__init__(settings, **common)
        model: Any = common.get("model")
        if not hasattr(model, "stages"):
            raise UsageError("manifoldmix looks inside the network: pass model=build_model(...)")
        if settings.deepest > len(model.stages):
            raise UsageError(
                f"manifoldmix.deepest = {settings.deepest}: {model.spec.name} has "
                f"{len(model.stages)} stages to mix after"
            )

    def draw(self, shape: Shape, generator: torch.Generator, step: int) -> ManifoldMixDraw:
        """A partner for each image, the shares of both, and where they are mixed."""
        s = self.settings
        perm = draw_partners(shape[0], generator)
        lam = draw_lam(shape[0], s.alpha, generator, per_sample=s.per_sample)
        return ManifoldMixDraw(
            perm, lam, int(torch.randint(s.deepest + 1, (), generator=generator))
        )

    def mix(self, images: Tensor, targets: Tensor, draw: ManifoldMixDraw, **seen: Tensor) -> Mixed:
        """λ x + (1 - λ) x[π] of the images, whatever stage is mixed."""
        return mix_by_lam(images, targets, draw.perm, draw.lam)

    def terms(
        self, sources: Sources, student: Classifier, teacher: Any, draw: ManifoldMixDraw
    ) -> dict[str, Tensor]:
        """Mix after the stage of the draw, predict, soft cross-entropy."""
        if draw.stage == 0:
            return super().terms(sources, student, teacher, draw)
        images, perm = with_partners(sources.images, draw.perm)

        def mixed(hidden: Tensor) -> Tensor:
            weights = draw.lam.to(hidden.dtype).view(*draw.lam.shape, *[1] * (hidden.ndim - 1))
            return weighted_sum(hidden, perm, weights)

        with altered(student, student.stages[draw.stage - 1], mixed):
            logits = student(images)
        targets = weighted_sum(sources.targets, draw.perm, draw.lam[:, :, None])
        return {
            "loss": self.cross_entropy(logits, targets),
            "captured": captured_share(logits, targets),
        }
