"""Several processes that train one network, as `torchrun` starts them; alone without it.

Every function is a plain pass-through in a single process, so that callers need not ask.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adautomix.errors import UsageError

Made = TypeVar("Made")
Network = TypeVar("Network", bound=nn.Module)


def start_processes(device: torch.device) -> None:
    """Join the others if `torchrun` started this process; once is enough."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which one this is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and talks to people."""
    return rank() == 0


def local_rank() -> int:
    """Which process on this machine this is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def all_rows(values: Tensor) -> Tensor:
    """The rows of all processes, in the order of the processes; all must bring equally many.

    No gradient flows through it.
    """
    if world() == 1:
        return values
    parts = [
        torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(world())
    ]
    dist.all_gather(parts, values.detach().contiguous())
    gathered = torch.cat(parts)
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        gathered = gathered.contiguous(memory_format=torch.channels_last)
    return gathered


def mean_of(values: dict[str, float]) -> dict[str, float]:
    """The mean over all processes of each value; all must bring the same names."""
    if world() == 1:
        return values
    sums = torch.tensor(list(values.values()), dtype=torch.float64, device=_meeting_place())
    dist.all_reduce(sums)
    return dict(zip(values, (sums / world()).tolist(), strict=True))


def smallest(value: int) -> int:
    """The smallest of the values of all processes."""
    if world() == 1:
        return value
    tensor = torch.tensor(value, device=_meeting_place())
    dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return int(tensor)


def any_process(value: bool) -> bool:
    """Whether it is true in any process."""
    return smallest(int(not value)) == 0


def from_main(make: Callable[[], Made]) -> Made:
    """What the main process makes, for all; it is pickled on its way."""
    if world() == 1:
        return make()
    box = [make() if is_main() else None]
    dist.broadcast_object_list(box, src=0, device=_meeting_place())
    return cast(Made, box[0])


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through this block before the others: it fills what they will read."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def share_batch_norm(model: Network) -> Network:
    """The network with batch statistics taken over the batches of all processes.

    On GPUs timm's conversion to PyTorch's own layer; on the CPU, which that layer does not serve,
    a plain one.

    Raises:
        UsageError: on the CPU, a batch norm other than `nn.BatchNorm2d`.
    """
    if world() == 1:
        return model
    if next(model.parameters()).device.type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm

        return cast(Network, convert_sync_batchnorm(model))  # type: ignore[no-untyped-call]
    for module in list(model.modules()):
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d
        elif isinstance(module, _BatchNorm):
            raise UsageError(
                f"{type(module).__name__} cannot be shared between processes on the CPU: use a "
                "network with plain batch norm or none, or set sync_bn to false"
            )
    return model


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, all of one size; for training on CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]`, normalised with the statistics of all processes in training mode."""
        if not self.training:
            return super().forward(input)
        count = world() * input[:, 0].numel()
        moments = torch.stack(
            [input.double().sum((0, 2, 3)), input.double().square().sum((0, 2, 3))]
        )
        mean, square = cast(Tensor, AllSum.apply(moments)) / count
        var = square - mean.square()
        if self.track_running_stats:
            self._move_buffers(mean.detach(), var.detach() * count / (count - 1))
        scale = (var + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        out = torch.addcmul(shift.float()[:, None, None], input, scale.float()[:, None, None])
        return out.contiguous(memory_format=torch.channels_last)

    def _move_buffers(self, mean: Tensor, unbiased_var: Tensor) -> None:
        mine: Any = self  # typed as perhaps None, which they are not where they are tracked
        mine.num_batches_tracked.add_(1)
        mine.running_mean.lerp_(mean.float(), self.momentum)
        mine.running_var.lerp_(unbiased_var.float(), self.momentum)


class AllSum(torch.autograd.Function):
    """The sum over all processes; its gradient is summed over them in turn."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Sum `values` of any shape."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Every process's loss depends on the sum."""
        return AllSum.forward(ctx, gradients[0].contiguous())


def _meeting_place() -> Any:
    """The device whose tensors the process group can exchange."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
