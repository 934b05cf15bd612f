"""Networks inside `DistributedDataParallel`, `torch.compile` and FSDP."""

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

SHARDED = (
    "a network sharded by FSDP cannot be looked into or copied: create the method with the whole "
    "network first, then call fully_shard on it"
)


def wrappers(model: nn.Module) -> list[nn.Module]:
    """The modules around a network, outermost first, and the network itself as the last one."""
    chain = [model]
    while (inner := inner_module(chain[-1])) is not None:
        chain.append(inner)
    return chain


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DDP, DataParallel, FSDP and `torch.compile` modules."""
    return wrappers(model)[-1]


def inner_module(model: nn.Module) -> nn.Module | None:
    """The network directly inside a module that only distributes or compiles it, else None."""
    if isinstance(model, DistributedDataParallel | nn.DataParallel) or is_fsdp1(model):
        inner = getattr(model, "module", None)
    else:
        inner = getattr(model, "_orig_mod", None)  # torch.compile
    return inner if isinstance(inner, nn.Module) else None


def find_ddp(model: nn.Module) -> DistributedDataParallel | None:
    """The `DistributedDataParallel` module around a network, if there is one."""
    for module in wrappers(model):
        if isinstance(module, DistributedDataParallel):
            return module
    return None


def is_compiled(model: nn.Module) -> bool:
    """Whether calling a network runs compiled code, from `torch.compile` or `Module.compile`."""
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in wrappers(model)
    )


def is_fsdp1(model: nn.Module) -> bool:
    """Whether a module is a `FullyShardedDataParallel` one (FSDP1)."""
    if not dist.is_available():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return isinstance(model, FullyShardedDataParallel)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP has sharded any part of a network, so that it cannot be copied."""
    if not dist.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) or is_fsdp1(module) for module in model.modules())
