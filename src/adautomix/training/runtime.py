"""Where and how a run computes: device, precision, requests to stop."""

import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from adautomix.errors import UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises:
        UsageError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"no device {name!r} here: use cpu, or auto") from None
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for the networks; master weights and losses stay float32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def describe_device(device: torch.device) -> str:
    """A name that a reader of the figures can place."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """What the figures were computed with."""
    import timm

    from adautomix import __version__

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "adautomix": __version__,
    }


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held so far: of the GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class StopRequest:
    """Whether somebody asked the run to stop (Ctrl-C or SIGTERM)."""

    signal_name = ""

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the request; the loop acts on it between two steps."""
        self.signal_name = signal.Signals(number).name


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within it Ctrl-C and SIGTERM only ask; the handlers of before come back afterwards.

    Outside the main thread signals cannot be caught, and nothing is.
    """
    request = StopRequest()
    try:
        before = {s: signal.signal(s, request.handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        before = {}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
