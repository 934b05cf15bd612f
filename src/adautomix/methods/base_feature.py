"""Base class of methods that mix hidden states: the output of a stage of the network.

If a batch is split, over processes or gradient accumulation steps, each part computes the hidden
states of its partners in a pass of its own, so the stages below the mix run twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from adautomix.methods.base import Method, MixInputs, S
from adautomix.methods.facts import LabelRule, Requirement
from adautomix.mixing.ops import Mixed, mix_by_lam, weighted_sum
from adautomix.mixing.params import PairParams
from adautomix.models import Classifier


class ReplacedOutput(nn.Module):
    """A module whose output is passed through a function."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the function of the module's output."""
        return self.function(self.module(*args, **kwargs))


@contextmanager
def replaced_output(
    network: nn.Module, path: str, function: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Context in which the output of the module at `path` is passed through `function`.

    The module is replaced and put back. A forward hook would do the same, but `torch.compile`
    neither compiles hooks in nor notices when they change.
    """
    parent, _, name = path.rpartition(".")
    owner = network.get_submodule(parent)
    module = owner.get_submodule(name)
    setattr(owner, name, ReplacedOutput(module, function))
    try:
        yield
    finally:
        setattr(owner, name, module)


def with_partners(images: Tensor, perm: Tensor) -> tuple[Tensor, Tensor]:
    """Select the images that some mixes need and renumber `perm` accordingly.

    Args:
        images: `[B, C, H, W]`.
        perm: rows to mix, int64 `[M, N]`.

    Returns:
        All images and `perm` if M = B; otherwise the `N·M` sources, all first ones first, and
        their rows, int64 `[M, N]`.
    """
    if len(images) == len(perm):
        return images, perm
    rows = torch.arange(perm.numel(), device=perm.device).view(perm.shape[1], -1)
    return images.index_select(0, perm.T.flatten()), rows.T


Q = TypeVar("Q", bound=PairParams, default=Any)


class FeatureMixing(Method[S, Q]):
    """A method that mixes two images or their hidden states; labels are mixed by `lam`.

    Raises:
        UsageError: the network has no stages.
    """

    requires = frozenset({Requirement.STAGE_OUTPUTS})
    label_rule = LabelRule.HIDDEN

    def build(self, model: nn.Module | None) -> None:
        """Count the stages of the network."""
        self.depth = len(self.network_with(model, "stages").stages)

    def mix(self, images: Tensor, targets: Tensor, params: Q, **features: Tensor) -> Mixed:
        """Return `λ x + (1 - λ) x[π]` of the images, because mixed hidden states are no images."""
        return mix_by_lam(images, targets, params.perm, params.lam)

    def loss_mixed_after(
        self,
        stage: int,
        mix: Callable[[Tensor, Tensor], Tensor],
        sources: MixInputs,
        student: Classifier,
        params: Q,
    ) -> dict[str, Tensor]:
        """Mix the output of a stage, predict, and take the soft cross-entropy.

        Args:
            stage: number of the stage, from 1.
            mix: called with the output of the stage and the rows to mix, int64 `[M, 2]`.
            sources: clean images and labels.
            student: the network in training.
            params: parameters of M mixes.
        """
        images, perm = with_partners(sources.images, params.perm)
        # The gradient flows through the hidden states of both sources.
        with replaced_output(student, student.stages[stage - 1], lambda hidden: mix(hidden, perm)):
            logits = student(images)
        return self.loss_from_logits(
            logits, weighted_sum(sources.targets, params.perm, params.lam[:, :, None])
        )
