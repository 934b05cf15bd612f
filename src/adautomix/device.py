"""Device and precision of a run, and descriptions of the hardware and software for records."""

import ctypes
import functools
import platform
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from adautomix.distributed import local_rank
from adautomix.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of each value of the setting `precision`."""


def pick_device(name: str) -> torch.device:
    """Return the device with this name, for example "cpu" or "cuda:1".

    "auto" selects the CUDA GPU of this process if there is one, else the CPU. "mps" is the GPU of a
    Mac, which has to be asked for.

    Raises:
        UsageError: this machine has no such device.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        torch.cuda.set_device(local_rank())
        return torch.device("cuda", local_rank())
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"no device {name!r} here: use cpu, or auto") from None
    return device


def has_float64(device: torch.device) -> bool:
    """Return whether a device can compute in double precision; Apple's GPUs cannot."""
    return device.type != "mps"


def exact(values: Tensor) -> Tensor:
    """Return values in float64, for sums that must not lose small parts; float32 on MPS."""
    return values.double() if has_float64(values.device) else values.float()


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return a copy of values on a device, without waiting for it on a CUDA GPU.

    On MPS a copy that is not waited for may read memory that has changed since, and float64 values
    become float32.
    """
    if has_float64(device):
        return values.to(device, non_blocking=device.type == "cuda")
    return (values.float() if values.dtype == torch.float64 else values).to(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return an autocast context for the forward passes of a run; disabled for "fp32".

    Parameters, gradients and losses stay float32.

    Args:
        device: device of the forward passes.
        precision: a key of `DTYPES`.
    """
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def describe_device(device: torch.device) -> str:
    """Return the name of the hardware for records, for example "NVIDIA A100-SXM4-80GB"."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "mps":
        return f"{platform.machine()} GPU (MPS)"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on, by name."""
    import timm

    from adautomix.version import __version__

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "adautomix": __version__,
    }


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory so far in MiB: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":  # which records no peak; the driver keeps what it has allocated
        return torch.mps.driver_allocated_memory() / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from malloc.h


def keep_freed_memory() -> None:
    """Let this process reuse the memory of freed CPU tensors instead of returning it to the system.

    This changes settings of glibc's malloc; other C libraries are left as they are.
    """
    # PyTorch has no caching allocator on the CPU, and glibc returns every freed block above 32 MiB
    # to the kernel, which has to zero its pages again at the next allocation. That costs 15 % of a
    # step with activations of this size, and nothing below it.
    # See https://github.com/pytorch/pytorch/pull/55675, which was not merged.
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 2**30)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def run_eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that `torch.compile` must not compile.

    `torch.compiler.disable` alone imports the compiler when the function is defined, which takes
    seconds. Here it is imported only if something is compiled.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            result: R = torch.compiler.disable(function)(*args, **kwargs)
            return result
        return function(*args, **kwargs)

    return wrapper
