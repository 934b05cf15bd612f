"""Helpers for data-parallel training with several processes, started by `torchrun`.

Every function also works in a single process, where it returns its argument unchanged or does
nothing, so that callers need no special case.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from adautomix.errors import AdAutoMixError, UsageError

T = TypeVar("T")


def init_distributed(device: torch.device) -> None:
    """Initialize the default process group if `torchrun` started this process.

    The backend is NCCL on GPUs and Gloo on CPUs. Further calls do nothing.

    Args:
        device: the device that this process trains on.

    Raises:
        UsageError: several processes were started on a device that cannot exchange tensors.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and device.type == "mps":
        raise UsageError("device = mps works with one process: start the command without torchrun")
    if several and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, **_store_after_restart())


def _store_after_restart() -> dict[str, Any]:
    """Return the arguments of `init_process_group` that restarted processes need.

    torchrun keeps its store over restarts, and with it the addresses of processes that have ended,
    to which the new ones would try to connect forever. On one machine the number of restarts tells
    the attempts apart. On several machines it differs among them, and torchrun needs
    `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`, which makes a store per attempt.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    store, rank, size = next(rendezvous("env://"))
    prefixed = PrefixStore(f"restart-{restarts}", store)
    return {"store": prefixed, "rank": rank, "world_size": size}


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Return whether this is the main process (rank 0), which writes files and prints messages."""
    return rank() == 0


def local_rank() -> int:
    """Return the rank of this process on its machine, from 0; also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def gather_rows(values: Tensor) -> Tensor:
    """Concatenate the tensors of all processes along dimension 0, in order of rank.

    No gradient flows through the result. Its memory format is that of `values`.

    Args:
        values: `[N, ...]`; the shape must be the same in every process.
    """
    if world_size() == 1:
        return values
    gathered = all_gather(values.detach().contiguous()).flatten(0, 1)
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        gathered = gathered.contiguous(memory_format=torch.channels_last)
    return gathered


def all_gather(values: Tensor) -> Tensor:
    """Stack the tensors of all processes, `[world_size, ...]`; all must have the same shape.

    With Gloo, gathering small tensors and adding them up takes half as long as an all-reduce.
    """
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def mean_over_processes(values: dict[str, float]) -> dict[str, float]:
    """Average each value over all processes; all processes must have the same keys."""
    if world_size() == 1:
        return values
    sums = torch.tensor(list(values.values()), dtype=torch.float64, device=_collective_device())
    dist.all_reduce(sums)
    return dict(zip(values, (sums / world_size()).tolist(), strict=True))


def min_over_processes(value: int) -> int:
    """Return the minimum of the value over all processes."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, device=_collective_device())
    dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return int(tensor)


def any_process(value: bool) -> bool:
    """Return whether the value is true in at least one process."""
    return min_over_processes(int(not value)) == 0


def broadcast_from_main(make: Callable[[], T]) -> T:
    """Call `make` in the main process only and return its result in every process.

    Args:
        make: returns an object that can be pickled.

    Raises:
        AdAutoMixError: `make` raised it in the main process; every process raises it.
    """
    if world_size() == 1:
        return make()
    box: list[tuple[Any, AdAutoMixError | None]] = [(None, None)]
    if is_main():
        try:
            box = [(make(), None)]
        except AdAutoMixError as error:  # else the other processes would wait for the result
            box = [(None, error)]
    dist.broadcast_object_list(box, src=0, device=_collective_device())
    value, refusal = box[0]
    if refusal is not None:
        raise refusal
    return cast(T, value)


def barrier() -> None:
    """Wait until every process has called this function."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block in the main process, then in the others, which can read what it cached."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


class AllReduceSum(torch.autograd.Function):
    """Differentiable sum over all processes; the backward pass sums the gradients.

    `torch.distributed.nn.functional.all_reduce` does the same and is deprecated.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the sum of `values`, a tensor of any shape, over all processes."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sum the gradients, since the loss of every process depends on the sum."""
        return AllReduceSum.forward(ctx, gradients[0].contiguous())


def _collective_device() -> torch.device:
    """Return the device whose tensors the process group can exchange."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
