"""A step captured as CUDA graphs: one launch where the eager step has thousands.

A graph replays the same kernels on the same memory. What changes from step to step is therefore
copied into tensors that stay, and every kind of step (another shape, the adversary's turn or not)
has a graph of its own. The first steps of a kind run eagerly, as the training that they are:
libraries choose their kernels then, and memory is set aside.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from adautomix.training.step import Losses, StepInputs

EAGER_STEPS = 3  # of each kind before it is captured, as PyTorch's notes on CUDA graphs advise

Tree = TypeVar("Tree")


class Captured(Protocol):
    """Recorded work that can be run again."""

    def replay(self) -> None:
        """Run it."""


Capture = Callable[[Callable[[], Losses]], tuple[Captured, Losses]]


@dataclasses.dataclass
class Kind:
    """Steps that one graph can serve.

    Attributes:
        inputs: the tensors that the graph reads.
        eager: how many ran eagerly so far.
        graph: the recorded step, once there is one.
        losses: what it writes.
    """

    inputs: StepInputs
    eager: int = 0
    graph: Captured | None = None
    losses: Losses = dataclasses.field(default_factory=dict)


class GraphedStep:
    """A step that is captured after a few eager ones and replayed from then on.

    Args:
        step: the eager step.
        capture: records a call of a function and says where its losses will be; none: as a CUDA
            graph on the current device.
    """

    def __init__(
        self, step: Callable[[StepInputs], Losses], capture: Capture | None = None
    ) -> None:
        self._step = step
        self._capture = capture or CudaCapture()
        self._kinds: dict[Hashable, Kind] = {}

    def __call__(self, inputs: StepInputs) -> Losses:
        """Train on one batch. The losses are overwritten by the next step: use them before."""
        device = inputs.batch.pixels.device
        inputs = numbers_to_tensors(inputs, device)
        kind = self._kinds.setdefault(signature(inputs), Kind(copied(inputs)))
        copy_into(kind.inputs, inputs)
        if kind.graph is None and kind.eager < EAGER_STEPS:
            kind.eager += 1
            return self._step(kind.inputs)
        if kind.graph is None:
            kind.graph, kind.losses = self._capture(lambda: self._step(kind.inputs))
        kind.graph.replay()
        return kind.losses


class CudaCapture:
    """Records as CUDA graphs that share one pool of memory, as they never run side by side."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], Losses]) -> tuple[Captured, Losses]:
        """Record without running; the caller replays."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            losses = work()
        return graph, losses


def numbers_to_tensors(inputs: StepInputs, device: torch.device) -> StepInputs:
    """The schedules' numbers as float64 scalars on the device, so that a graph can read them."""
    pair = torch.tensor([inputs.lr_factor, inputs.momentum], dtype=torch.float64)
    lr_factor, momentum = pair.to(device, non_blocking=True)
    return dataclasses.replace(inputs, lr_factor=lr_factor, momentum=momentum)


def signature(tree: Any) -> Hashable:
    """What a graph is bound to: the shapes of the tensors and the value of everything else."""
    if isinstance(tree, Tensor):
        return (tuple(tree.shape), tree.dtype)
    if dataclasses.is_dataclass(tree):
        fields = dataclasses.fields(tree)
        return (type(tree), *(signature(getattr(tree, field.name)) for field in fields))
    assert isinstance(tree, Hashable)
    return tree


def copied(tree: Tree) -> Tree:
    """The same dataclasses with their own copies of the tensors."""
    if isinstance(tree, Tensor):
        return cast(Tree, tree.clone())
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = dataclasses.fields(tree)
        return dataclasses.replace(tree, **{f.name: copied(getattr(tree, f.name)) for f in fields})
    return tree


def copy_into(mine: Any, theirs: Any) -> None:
    """Copy the tensors of one tree into those of another of the same signature."""
    if isinstance(mine, Tensor):
        mine.copy_(theirs, non_blocking=True)
    elif dataclasses.is_dataclass(mine):
        for field in dataclasses.fields(mine):
            copy_into(getattr(mine, field.name), getattr(theirs, field.name))
