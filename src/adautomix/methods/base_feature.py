"""What methods share that change what a stage of the network hands on.

A batch may be split, over processes or parts: a part then takes the hidden states of its partners
from a pass of its own, and the stages up to the mixed one run twice.
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
    """A module whose output goes through a function."""

    def __init__(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.change = module, change

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The changed output."""
        return self.change(self.module(*args, **kwargs))


@contextmanager
def replaced_output(
    network: nn.Module, path: str, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Within it the module at `path` hands on its output through `change`.

    The module is replaced and put back. A forward hook would do the same, but compiled code
    neither takes hooks in nor notices when they change.
    """
    parent, _, name = path.rpartition(".")
    owner = network.get_submodule(parent)
    module = owner.get_submodule(name)
    setattr(owner, name, ReplacedOutput(module, change))
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
        """λ x + (1 - λ) x[π] of the images, whatever is mixed: that alone can be seen."""
        return mix_by_lam(images, targets, params.perm, params.lam)

    def mixed_after(
        self,
        stage: int,
        mix: Callable[[Tensor, Tensor], Tensor],
        sources: MixInputs,
        student: Classifier,
        params: Q,
    ) -> dict[str, Tensor]:
        """Mix what a stage hands on, predict, soft cross-entropy.

        Args:
            stage: counts from 1.
            mix: of the stage's output and of which rows of it, `[M, 2]`.
            sources: clean images and labels.
            student: the trained network.
            params: of M mixes.
        """
        images, perm = with_partners(sources.images, params.perm)
        with replaced_output(student, student.stages[stage - 1], lambda hidden: mix(hidden, perm)):
            logits = student(images)
        return self.loss_from_logits(
            logits, weighted_sum(sources.targets, params.perm, params.lam[:, :, None])
        )
