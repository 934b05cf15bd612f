"""The teacher: an exponential moving average of the student.

It is part of training and not of a method: every method is evaluated with one, so that comparisons
are fair.

When a method runs the teacher, batch norm uses the statistics of the batch, as in the authors'
code, and everything else is in evaluation mode, without dropout or stochastic depth. Only then are
the logits of permuted images the permuted logits, which AdAutoMix relies on.

The batch-norm buffers of the teacher matter only in evaluation. There are three policies:

- `average`: average them like the weights.
- `copy`: copy those of the student after every step.
- `own`: update them in the teacher's own forward passes, with batch norm's momentum. AdAutoMix runs
  the teacher once per step on clean images and once on mixes, so each of the two updates them once;
  the authors' code runs four clean batches for each mixed one. Methods that never run the teacher
  cannot use this policy.
"""

import copy
import math
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adautomix.errors import UsageError, one_line

BufferPolicy = Literal["average", "copy", "own"]

Network = TypeVar("Network", bound=nn.Module)


class Teacher(Generic[Network]):
    """A copy of the student whose weights are the moving average of the student's.

    Args:
        student: the trained network, which is copied.
        buffers: how the batch-norm buffers are updated, see the module's documentation.

    Attributes:
        model: the copy. It needs no gradients and stays in evaluation mode, except for batch norm,
            which uses the statistics of the batch.
    """

    def __init__(self, student: Network, buffers: BufferPolicy = "average") -> None:
        self.model: Network = copy_network(student).requires_grad_(False).eval()
        self.buffers = buffers
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.train()
                # Without tracking, a forward pass in training mode does not change the buffers,
                # and one in evaluation mode still reads them.
                module.track_running_stats = buffers == "own"

    @torch.no_grad()
    def update(self, student: Network, momentum: float | Tensor) -> None:
        """Update the average in place: `Ŵ ← ξ Ŵ + (1 - ξ) W`.

        Args:
            student: the network with the weights W.
            momentum: ξ; a float64 scalar tensor if the step is captured in a CUDA graph.
        """
        average: list[Tensor] = list(self.model.parameters())
        current: list[Tensor] = [
            gather_like(mine, theirs)
            for mine, theirs in zip(average, student.parameters(), strict=True)
        ]
        if self.buffers == "average":
            average += floating_buffers(self.model)
            current += floating_buffers(student)
        if isinstance(momentum, Tensor):
            change = torch._foreach_sub(current, average)
            torch._foreach_mul_(change, (1 - momentum).float())
            torch._foreach_add_(average, change)
        else:
            torch._foreach_lerp_(average, current, 1 - momentum)
        if self.buffers != "own":
            self._copy_buffers(student)

    def _copy_buffers(self, student: nn.Module) -> None:
        """Copy the buffers that are not averaged: counters, and under `copy` all of them."""
        for mine, theirs in zip(self.model.buffers(), student.buffers(), strict=True):
            if self.buffers == "copy" or not mine.is_floating_point():
                mine.copy_(theirs)


def copy_network(network: Network) -> Network:
    """A deep copy of a network, which may have run before.

    Modules may keep tensors with a graph from an earlier forward pass, for example cached
    activations or the weights that `torch.nn.utils.weight_norm` computes. PyTorch cannot copy
    those, so they are copied without their graph.

    Raises:
        UsageError: the network still cannot be copied.
    """
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(network, memo)
    except Exception as error:  # modules may refuse with any type
        reason = one_line(error, 160)
        raise UsageError(
            f"{type(network).__name__} cannot be copied for the teacher "
            f"({type(error).__name__}: {reason}): create the method before the first forward pass"
        ) from error


def gather_like(mine: Tensor, theirs: Tensor) -> Tensor:
    """Gather a student's parameter that FSDP has sharded, unless the teacher's is sharded too."""
    if hasattr(theirs, "full_tensor") and not hasattr(mine, "full_tensor"):
        whole: Tensor = theirs.full_tensor()
        return whole
    return theirs


def floating_buffers(model: nn.Module) -> list[Tensor]:
    """The floating-point buffers of a network, which can be averaged."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def momentum_schedule(
    steps: int, *, start: float | None, end: float, constant_share: float
) -> list[float]:
    """The teacher momentum ξ of every step: constant at first, then rising along a cosine.

    `ξ(t) = end - (end - start)·(cos(π t/T) + 1)/2`, where t counts from the start of training, as
    in the authors' code.

    Args:
        steps: optimizer steps T of the whole training.
        start: ξ at the start. None is `1 - 100/T`, at most 0.999, so that the average of a short
            training spans the same fraction of it as in the published ones of 100,000 steps.
        end: ξ at the end.
        constant_share: fraction of the steps before ξ begins to rise, 0 to 1. It rises along the
            same cosine wherever it begins.

    Returns:
        One float per step.
    """
    if start is None:
        start = min(0.999, max(0.0, 1 - 100 / steps))
    constant = constant_share * steps
    return [
        start if t < constant else end - (end - start) * (math.cos(math.pi * t / steps) + 1) / 2
        for t in range(steps)
    ]
