"""Training steps captured as CUDA graphs: one launch instead of thousands of kernel launches.

A graph replays the same kernels on the same memory. Whatever changes from step to step is therefore
copied into tensors that the graph reads, and each kind of step (another batch shape, or a step
without the generator's update) gets a graph of its own. The first steps of a kind run eagerly, as
regular training steps, while libraries choose their kernels and memory is allocated.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from adautomix.training.step import Losses, StepInputs

EAGER_STEPS = 3  # per kind of step before it is captured, as PyTorch's CUDA graph notes advise


class Captured(Protocol):
    """A recorded step that can be run again."""

    def replay(self) -> None:
        """Run the recorded step."""


Capture = Callable[[Callable[[], Losses]], tuple[Captured, Losses]]


@dataclasses.dataclass
class StepKind:
    """Steps that one graph can run.

    Attributes:
        inputs: the tensors that the graph reads.
        eager: how many steps of this kind have run eagerly.
        graph: the recorded step; None before it is captured.
        losses: the tensors that the graph writes.
    """

    inputs: StepInputs
    eager: int = 0
    graph: Captured | None = None
    losses: Losses = dataclasses.field(default_factory=dict)


class GraphedStep:
    """A training step that runs eagerly a few times, is captured, and then replayed.

    Args:
        step: the eager step.
        capture: records a call and returns the recording and the tensors it writes the losses to;
            None captures a CUDA graph on the current device.
    """

    def __init__(
        self, step: Callable[[StepInputs], Losses], capture: Capture | None = None
    ) -> None:
        self._step = step
        self._capture = capture or CudaCapture()
        self._kinds: dict[Hashable, StepKind] = {}

    def __call__(self, inputs: StepInputs) -> Losses:
        """Train on one batch.

        Returns:
            The losses, in tensors that the next step overwrites.
        """
        inputs = numbers_to_tensors(inputs, inputs.batch.pixels.device)
        kind = self._find_kind(inputs)
        # Copy this step's inputs to where the graph reads them.
        copy_tensors(inputs, kind.inputs)
        # Run the first steps of a kind eagerly.
        if kind.graph is None and kind.eager < EAGER_STEPS:
            kind.eager += 1
            return self._step(kind.inputs)
        # Capture the step once, without running it, and replay it from then on.
        if kind.graph is None:
            kind.graph, kind.losses = self._capture(lambda: self._step(kind.inputs))
        kind.graph.replay()
        return kind.losses

    def _find_kind(self, inputs: StepInputs) -> StepKind:
        """The kind of step that these inputs belong to, new if there was none like it."""
        key = signature(inputs)
        if key not in self._kinds:
            self._kinds[key] = StepKind(pytree.tree_map_only(Tensor, Tensor.clone, inputs))
        return self._kinds[key]


class CudaCapture:
    """Records CUDA graphs that share one memory pool, since no two of them run at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], Losses]) -> tuple[Captured, Losses]:
        """Record a call without running it."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            losses = work()
        return graph, losses


def numbers_to_tensors(inputs: StepInputs, device: torch.device) -> StepInputs:
    """Turn the values of the schedules into float64 scalars on the device, for a graph to read."""
    names = ["lr_factor", "momentum"]
    if inputs.method_lr_factor is not None:
        names.append("method_lr_factor")
    numbers = torch.tensor([getattr(inputs, name) for name in names], dtype=torch.float64)
    tensors = numbers.to(device, non_blocking=True)
    return dataclasses.replace(inputs, **dict(zip(names, tensors, strict=True)))


def signature(inputs: StepInputs) -> Hashable:
    """What a graph depends on: types, tensor shapes, dtypes, and the value of everything else."""
    register_dataclasses(inputs)
    leaves, structure = pytree.tree_flatten(inputs)
    kinds = [(tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x for x in leaves]
    return (repr(structure), *kinds)  # a structure is hashable in some versions of PyTorch only


def copy_tensors(source: StepInputs, target: StepInputs) -> None:
    """Copy the tensors of one step's inputs into those of another with the same signature."""
    pairs = zip(pytree.tree_leaves(source), pytree.tree_leaves(target), strict=True)
    for value, place in pairs:
        if isinstance(place, Tensor):
            place.copy_(value, non_blocking=True)


def register_dataclasses(value: Any) -> None:
    """Register the dataclasses in `value` with pytree, so that its functions reach their fields.

    Each method has a dataclass of its own for its random parameters.
    """
    if isinstance(value, tuple):
        for part in value:
            register_dataclasses(part)
    if not dataclasses.is_dataclass(value):
        return
    if type(value) not in pytree.SUPPORTED_NODES:
        pytree.register_dataclass(type(value))
    for field in dataclasses.fields(value):
        register_dataclasses(getattr(value, field.name))
