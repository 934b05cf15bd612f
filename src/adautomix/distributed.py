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


def init_distributed(device: torch.device) -> None:
    """Join the others if `torchrun` started this process; once is enough."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which one this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and talks to people."""
    return rank() == 0


def local_rank() -> int:
    """Which process on this machine this is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def gather_rows(values: Tensor) -> Tensor:
    """The rows of all processes, in the order of the processes; all must bring equally many.

    No gradient flows through it.
    """
    if world_size() == 1:
        return values
    gathered = gather_stacked(values.detach().contiguous()).flatten(0, 1)
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        gathered = gathered.contiguous(memory_format=torch.channels_last)
    return gathered


def gather_stacked(values: Tensor) -> Tensor:
    """The values of every process, `[processes, ...]`; on CPUs that takes half as long as a sum."""
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def mean_over_processes(values: dict[str, float]) -> dict[str, float]:
    """The mean over all processes of each value; all must bring the same names."""
    if world_size() == 1:
        return values
    sums = torch.tensor(list(values.values()), dtype=torch.float64, device=_meeting_place())
    dist.all_reduce(sums)
    return dict(zip(values, (sums / world_size()).tolist(), strict=True))


def min_over_processes(value: int) -> int:
    """The smallest of the values of all processes."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, device=_meeting_place())
    dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return int(tensor)


def any_process(value: bool) -> bool:
    """Whether it is true in any process."""
    return min_over_processes(int(not value)) == 0


def broadcast_from_main(make: Callable[[], Made]) -> Made:
    """What the main process makes, for all; it is pickled on its way."""
    if world_size() == 1:
        return make()
    box = [make() if is_main() else None]
    dist.broadcast_object_list(box, src=0, device=_meeting_place())
    return cast(Made, box[0])


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process goes through this block before the others: it fills what they will read."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def sync_batch_norm(model: Network) -> Network:
    """The network with batch statistics taken over the batches of all processes.

    On GPUs timm's conversion to PyTorch's own layer; on the CPU, which that layer does not serve,
    a plain one.

    Raises:
        UsageError: on the CPU, a batch norm other than `nn.BatchNorm2d`.
    """
    if world_size() == 1:
        return model
    if next(model.parameters()).device.type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm

        return cast(Network, convert_sync_batchnorm(model))  # type: ignore[no-untyped-call]
    for module in list(model.modules()):
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2dCPU
        elif isinstance(module, _BatchNorm):
            raise UsageError(
                f"{type(module).__name__} cannot be shared between processes on the CPU: use a "
                "network with plain batch norm or none, or set sync_bn to false"
            )
    return model


class SyncBatchNorm2dCPU(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, all of one size; for training on CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]`, normalized with the statistics of all processes in training mode."""
        if not self.training:
            return super().forward(input)
        out, mean, var = SyncNormFunction.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            count = world_size() * input[:, 0].numel()
            self._move_buffers(mean, var * count / (count - 1))
        return cast(Tensor, out)

    def _move_buffers(self, mean: Tensor, unbiased_var: Tensor) -> None:
        mine: Any = self  # typed as perhaps None, which they are not where they are tracked
        mine.num_batches_tracked.add_(1)
        mine.running_mean.lerp_(mean, self.momentum)
        mine.running_var.lerp_(unbiased_var, self.momentum)


class SyncNormFunction(torch.autograd.Function):
    """The arithmetic of `SharedBatchNorm2d`: PyTorch's own, with one small exchange each way."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The normalized images, and mean and variance `[C]` of those of all processes."""
        own_mean, own_var = torch.batch_norm_update_stats(images, None, None, 0.0)
        moments = torch.stack([own_mean, own_var]).double()
        moments[1] += moments[0].square()  # of equal batches moments can be averaged
        mean, square = gather_stacked(moments).mean(dim=0)
        mean, var = mean.float(), (square - mean.square()).float()
        out, *_ = torch.native_batch_norm(images, weight, bias, mean, var, False, 0.0, eps)
        ctx.save_for_backward(images, weight, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *rest: Tensor) -> tuple[Tensor | None, ...]:
        """Of the sum of all processes' losses; weight and bias get this process's share."""
        images, weight, mean, var = ctx.saved_tensors
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, images, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        sums = gather_stacked(torch.stack([of_weight, of_bias])).sum(dim=0)
        count = world_size() * images[:, 0].numel()
        scale = (var + ctx.eps).rsqrt()
        # ∂/∂x = w s (g - Σg/n - x̂ Σ(g x̂)/n) with x̂ = (x - mean) s, as a g + b x + c
        a = weight * scale
        b = -a * scale * sums[0] / count
        c = -a * sums[1] / count - b * mean
        a, b, c = (part.to(grad.dtype)[:, None, None] for part in (a, b, c))
        return torch.addcmul(c, grad, a).addcmul_(images, b), of_weight, of_bias, None


class AllReduceSum(torch.autograd.Function):
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
        return AllReduceSum.forward(ctx, gradients[0].contiguous())


def _meeting_place() -> Any:
    """The device whose tensors the process group can exchange."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
