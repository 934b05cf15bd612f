"""One training step as a function of its inputs, so that it can be run, compiled or captured.

`TrainStep.inputs` does the work of the host: it draws random numbers and looks up the schedules.
`TrainStep.__call__` only does work on the device and never waits for it.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from adautomix.models import Classifier, NetworkPart, set_frozen
from adautomix.rng import seed_at
from adautomix.training.optim import has_gradients, set_learning_rate

Losses = dict[str, Tensor]
"""The loss under "loss", and detached scalars such as "mixture_accuracy" for the log."""


@dataclass(frozen=True)
class StepInputs:
    """Everything that changes from one step to the next.

    Attributes:
        batch: the images of this process.
        params: random parameters of the mixes of all processes.
        lr_factor: position of the learning rate between its minimum (0) and its maximum (1).
        momentum: momentum of the teacher's moving average.
        method_lr_factor: `lr_factor` of the method's own parameters; None if it is the same.
        probing: whether the step trains only the heads.
    """

    batch: Batch
    params: MixParams
    lr_factor: float | Tensor
    momentum: float | Tensor
    method_lr_factor: float | Tensor | None = None
    probing: bool = False


class LossModule(nn.Module):
    """A method's loss as a module, because DDP averages the gradients of a module's parameters."""

    def __init__(self, method: Method, student: Classifier, teacher: Classifier) -> None:
        super().__init__()
        self.method, self.student = method, student
        # In a list, so that the teacher is not a submodule: it has no gradients to average.
        self._teacher = [teacher]

    def forward(self, sources: MixInputs, params: MixParams) -> Losses:
        """Compute the losses of the mixes that `params` describes."""
        return self.method.training_loss(sources, self.student, self._teacher[0], params)


class TrainStep:
    """Computes losses and gradients, and updates student, method and teacher.

    Args:
        config: the settings: precision, gradient accumulation and clipping.
        batches: augments the images.
        student: the trained network.
        method: the mixing method.
        teacher: the moving average of the student.
        optimizers: the optimizer of the student and, if the method has its own, that of the method.
        scaler: scales the loss in fp16.
        compiled: compile the forward and backward passes with `torch.compile`.

    Attributes:
        probing: whether only the heads are trained at the moment.
    """

    def __init__(
        self,
        config: TrainConfig,
        batches: TrainBatches,
        student: Classifier,
        method: Method,
        teacher: Teacher[Classifier],
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler,
        *,
        compiled: bool = False,
    ) -> None:
        self.config, self.batches = config, batches
        self.student, self.method, self.teacher = student, method, teacher
        self.optimizers, self.scaler = optimizers, scaler
        self.device = next(student.parameters()).device
        self.prepare: Callable[..., MixInputs] = method.prepare
        self.loss_module = LossModule(method, student, teacher.model)
        self.probing = False
        if compiled:
            self.prepare = torch.compile(self.prepare)
            self.loss_module.compile()
        self.compute_loss = self._distributed()

    def _distributed(self) -> nn.Module:
        """The loss such that its backward pass averages gradients over all processes."""
        if world_size() == 1:
            return self.loss_module
        return wrap_ddp(self.loss_module, broadcast_buffers=not self.config.sync_bn)

    def probe(self, part: NetworkPart, *, probing: bool) -> None:
        """Train only what is not in a part of the network from now on, or everything again.

        Args:
            part: the backbone, as far as the settings do not freeze it anyway.
            probing: whether only the rest is trained.
        """
        set_frozen(self.student, self.teacher.model, part, frozen=probing)
        self.probing = probing
        # DDP decides when it is created which parameters have gradients to average. The old one
        # has to be gone before, because its hooks are on the same parameters.
        self.compute_loss = self.loss_module
        self.compute_loss = self._distributed()

    def inputs(
        self,
        batch: Batch,
        step: int,
        lr_factor: float,
        momentum: float,
        method_lr_factor: float | None = None,
    ) -> StepInputs:
        """Draw the random parameters of a step, which depend on the seed and the step only.

        Args:
            batch: the images of this process.
            step: number of the step, from 0.
            lr_factor: see `StepInputs`.
            momentum: see `StepInputs`.
            method_lr_factor: see `StepInputs`.
        """
        # Seeds dropout and stochastic depth, with other masks in each process.
        torch.manual_seed(seed_at(self.config.seed, step, f"dropout/{rank()}"))
        images, size = world_size() * len(batch.pixels), self.batches.image_size
        params = self.method.training_params((images, 3, size, size), step)
        return StepInputs(
            batch, params.to(self.device), lr_factor, momentum, method_lr_factor, self.probing
        )

    def __call__(self, inputs: StepInputs) -> Losses:
        """Train on one batch.

        Returns:
            The losses of this process's part of the batch, detached.
        """
        # Crop, flip and normalize the images.
        images = self.batches.augment(inputs.batch)
        # Mix, run student and teacher, and accumulate the gradients of student and method.
        losses = self.add_gradients(images, inputs.batch.labels, inputs.params)
        # Update student and method with one optimizer step.
        self.apply_gradients(inputs.lr_factor, inputs.method_lr_factor)
        # Move the teacher towards the updated student.
        self.teacher.update(self.student, inputs.momentum)
        return losses

    def add_gradients(self, images: Tensor, labels: Tensor, params: MixParams) -> Losses:
        """Add the gradients of the batch to the parameters, in `accumulate` parts.

        Args:
            images: the augmented images of this process, float `[B, 3, H, W]`.
            labels: their class indices, int64 `[B]`.
            params: random parameters of the mixes of all processes.

        Returns:
            The losses averaged over the batch, detached.
        """
        # Compute once what all mixes of the batch need, such as features of the clean images.
        with autocast(self.device, self.config.precision):
            sources = self.prepare(images, labels, self.student, self.teacher.model, params)
        # Gather the images of the other processes, which may be mixed into this one's.
        sources = gather_sources(sources)
        means: Losses = {}
        for rows, last in microbatches(len(images), self.config.accumulate):
            fraction = (rows.stop - rows.start) / len(images)
            with self._gradient_sync(last):
                # Mix the rows of this part and compute their loss.
                with autocast(self.device, self.config.precision):
                    losses = self.compute_loss(replace(sources, own=rows), params.rows(rows))
                # Weight the part by its size, so that the gradients add up to those of the batch.
                self.scaler.scale(losses["loss"] * fraction).backward()
            # Average the logged losses with the same weights.
            for name, value in losses.items():
                means[name] = means.get(name, 0) + fraction * value.detach()
        return means

    def apply_gradients(
        self, lr_factor: float | Tensor, method_lr_factor: float | Tensor | None = None
    ) -> None:
        """Clip the gradients if the settings ask for it, step the optimizers and zero them."""
        for optimizer in self.optimizers:
            set_learning_rate(optimizer, lr_factor, method_lr_factor)
        # The scaler refuses to step an optimizer without gradients.
        stepping = [optimizer for optimizer in self.optimizers if has_gradients(optimizer)]
        if self.config.clip_grad is not None:
            for optimizer in stepping:
                self.scaler.unscale_(optimizer)
            weights = [*self.student.parameters(), *self.method.parameters()]
            torch.nn.utils.clip_grad_norm_(weights, self.config.clip_grad)
        for optimizer in stepping:
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Average gradients over the processes only in the last part of a batch."""
        if last or not isinstance(self.compute_loss, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.compute_loss.no_sync()


def wrap_ddp(module: nn.Module, *, broadcast_buffers: bool) -> DistributedDataParallel:
    """Wrap a module so that its backward pass averages gradients over the processes."""
    with warnings.catch_warnings():
        # Newer versions of PyTorch rename this argument; the oldest supported one lacks the name.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            module, broadcast_buffers=broadcast_buffers, find_unused_parameters=True
        )


def gather_sources(sources: MixInputs) -> MixInputs:
    """Gather the inputs of all processes, so that any image of the whole batch can be mixed in."""
    if world_size() == 1:
        return sources
    features = {name: gather_rows(value) for name, value in sources.features.items()}
    return MixInputs(gather_rows(sources.images), gather_rows(sources.targets), features)


def microbatches(images: int, count: int) -> Iterator[tuple[slice, bool]]:
    """Split this process's rows of the batch of all processes into `count` parts.

    Args:
        images: number of rows of this process.
        count: number of parts.

    Yields:
        The rows of a part, and whether it is the last one.
    """
    first = rank() * images
    for part in range(count):
        begin, end = images * part // count, images * (part + 1) // count
        yield slice(first + begin, first + end), part == count - 1
