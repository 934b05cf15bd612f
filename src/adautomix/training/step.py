"""One step of training, from its inputs alone: what a runtime runs, compiles or captures.

`TrainStep.inputs` does what belongs to the host: it draws the random numbers and looks up the
schedules. `TrainStep.__call__` is pure device work and waits for nothing.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adautomix.config import TrainConfig
from adautomix.data import Batch, TrainBatches
from adautomix.device import autocast
from adautomix.distributed import gather_rows, rank, world_size
from adautomix.ema import Teacher
from adautomix.methods import Method, MixInputs, MixParams
from adautomix.models import Classifier
from adautomix.rng import seed_at
from adautomix.training.optim import set_learning_rate

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class StepInputs:
    """All that changes from one step to the next.

    Attributes:
        batch: this process's images.
        draw: the mixes of the batch of all processes.
        lr_share: the learning rate, as a share of the way from its floor to its top.
        momentum: of the teacher.
    """

    batch: Batch
    params: MixParams
    lr_factor: float | Tensor
    momentum: float | Tensor


class LossModule(nn.Module):
    """A method's loss as a module: what DDP wants to see to average its gradients."""

    def __init__(self, method: Method, student: Classifier, teacher: Classifier) -> None:
        super().__init__()
        self.method, self.student = method, student
        self._teacher = [teacher]  # in a list: it has no gradients to average

    def forward(self, sources: MixInputs, params: MixParams) -> Losses:
        """The losses of the mixes that `params` holds."""
        return self.method.training_loss(sources, self.student, self._teacher[0], params)


class TrainStep:
    """Loss, gradients, optimizer, teacher.

    Args:
        config: precision, parts of a batch, clipping, and whether to compile.
        batches: augments.
        student: the trained network.
        method: the way to a loss.
        teacher: follows the student.
        optimizer: over student and method.
        scaler: of fp16's gradients.
        compiled: let `torch.compile` make the forward and backward of the losses.
    """

    def __init__(
        self,
        config: TrainConfig,
        batches: TrainBatches,
        student: Classifier,
        method: Method,
        teacher: Teacher[Classifier],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        *,
        compiled: bool = False,
    ) -> None:
        self.config, self.batches = config, batches
        self.student, self.method, self.teacher = student, method, teacher
        self.optimizer, self.scaler = optimizer, scaler
        self.device = next(student.parameters()).device
        self.prepare: Callable[..., MixInputs] = method.prepare
        self.compute_loss: nn.Module = LossModule(method, student, teacher.model)
        if compiled:
            self.prepare = torch.compile(self.prepare)
            self.compute_loss.compile()
        if world_size() > 1:
            self.compute_loss = wrap_ddp(self.compute_loss, broadcast_buffers=not config.sync_bn)

    def inputs(self, batch: Batch, step: int, lr_factor: float, momentum: float) -> StepInputs:
        """The inputs of a step: its random numbers are drawn here, as a function of its number."""
        torch.manual_seed(seed_at(self.config.seed, step, f"dropout/{rank()}"))
        images, size = world_size() * len(batch.pixels), self.batches.image_size
        params = self.method.training_params((images, 3, size, size), step)
        return StepInputs(batch, params.to(self.device), lr_factor, momentum)

    def __call__(self, inputs: StepInputs) -> Losses:
        """Train on one batch; the losses of this process's share of it, detached."""
        images = self.batches.augment(inputs.batch)
        losses = self.add_gradients(images, inputs.batch.labels, inputs.params)
        self.apply_gradients(inputs.lr_factor)
        self.teacher.update(self.student, inputs.momentum)
        return losses

    def add_gradients(self, images: Tensor, labels: Tensor, params: MixParams) -> Losses:
        """Gradients of the batch, part by part where the settings say so; mean losses."""
        with autocast(self.device, self.config.precision):
            sources = self.prepare(images, labels, self.student, self.teacher.model, params)
        sources = gather_sources(sources)
        means: Losses = {}
        for own, last in parts(len(images), self.config.accumulate):
            share = (own.stop - own.start) / len(images)
            with self._gradient_sync(last):
                with autocast(self.device, self.config.precision):
                    losses = self.compute_loss(replace(sources, own=own), params.rows(own))
                self.scaler.scale(losses["loss"] * share).backward()
            for name, value in losses.items():
                means[name] = means.get(name, 0) + share * value.detach()
        return means

    def apply_gradients(self, lr_factor: float | Tensor) -> None:
        """Clip where asked, step the optimizer, forget the gradients."""
        set_learning_rate(self.optimizer, lr_factor)
        if self.config.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            weights = [*self.student.parameters(), *self.method.parameters()]
            torch.nn.utils.clip_grad_norm_(weights, self.config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Processes exchange gradients once a step, after the last part."""
        if last or not isinstance(self.compute_loss, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.compute_loss.no_sync()


def wrap_ddp(terms: nn.Module, *, broadcast_buffers: bool) -> DistributedDataParallel:
    """The module whose backward averages gradients over the processes."""
    with warnings.catch_warnings():
        # Newer versions have another name for this, which older ones lack.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            terms, broadcast_buffers=broadcast_buffers, find_unused_parameters=True
        )


def gather_sources(sources: MixInputs) -> MixInputs:
    """The sources that all processes hold, so that an image can be mixed with any of the batch."""
    if world_size() == 1:
        return sources
    features = {name: gather_rows(value) for name, value in sources.features.items()}
    return MixInputs(gather_rows(sources.images), gather_rows(sources.targets), features)


def parts(images: int, count: int) -> Iterator[tuple[slice, bool]]:
    """The rows of this process's share of the batch, in `count` parts, and whether one is last."""
    first = rank() * images
    for part in range(count):
        begin, end = images * part // count, images * (part + 1) // count
        yield slice(first + begin, first + end), part == count - 1
