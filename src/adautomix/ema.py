"""The teacher: a moving average of the student, kept for every method.

It belongs to training and not to a method, so that every method can be judged with it and a
comparison is like for like.

Mode. When a method runs it, batch norm uses the statistics of the batch (as in the authors' code)
and everything else is as in evaluation: no dropout, no dropped paths. Only then are its logits of
permuted images the permuted logits, which AdAutoMix builds on.

Batch-norm buffers, which only evaluation uses, follow one of three policies:

- `average`: averaged like the weights;
- `copy`: the student's, after every step;
- `own`: moved by the teacher's own forwards at batch norm's usual momentum. AdAutoMix runs it once
  on clean images and once on mixes per step, so both move them once; the authors' code runs four
  clean batches for each mixed one. Methods that never run the teacher cannot use this.
"""

import copy
import math
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BufferPolicy = Literal["average", "copy", "own"]

Network = TypeVar("Network", bound=nn.Module)


class Teacher(Generic[Network]):
    """A frozen copy of the student that follows it.

    Args:
        student: the trained network; it is copied.
        buffers: what happens to the batch-norm statistics, see above.
    """

    def __init__(self, student: Network, buffers: BufferPolicy = "average") -> None:
        self.model: Network = copy.deepcopy(student).requires_grad_(False).eval()
        self.buffers = buffers
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.train()
                # Without tracking, a forward in training mode leaves the buffers alone, and one
                # in evaluation mode still reads them.
                module.track_running_stats = buffers == "own"

    @torch.no_grad()
    def update(self, student: Network, momentum: float | Tensor) -> None:
        """`Ŵ ← ξ Ŵ + (1 - ξ) W`, in place, with ξ = `momentum`; a tensor where it is captured."""
        average: list[Tensor] = list(self.model.parameters())
        current: list[Tensor] = list(student.parameters())
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
        """Take over the buffers that are not averaged: counters, and all under `copy`."""
        for mine, theirs in zip(self.model.buffers(), student.buffers(), strict=True):
            if self.buffers == "copy" or not mine.is_floating_point():
                mine.copy_(theirs)


def floating_buffers(model: nn.Module) -> list[Tensor]:
    """The buffers that can be averaged."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def momentum_schedule(
    steps: int, *, start: float | None, end: float, constant_share: float
) -> list[float]:
    """ξ at every step: constant at first, then a cosine to its end.

    `ξ(t) = end - (end - start)·(cos(π t/T) + 1)/2` with t counted from the start of training, as
    the authors count it. Without a start value it is `1 - 100/T`, at most 0.999: the average then
    spans the same share of a short run as of the published ones of 100 000 steps and more.
    """
    if start is None:
        start = min(0.999, max(0.0, 1 - 100 / steps))
    constant = constant_share * steps
    return [
        start if t < constant else end - (end - start) * (math.cos(math.pi * t / steps) + 1) / 2
        for t in range(steps)
    ]
