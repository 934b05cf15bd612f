"""How the step is run (eager, compiled, as CUDA graphs), and requests to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

import torch

from adautomix.config import TrainConfig
from adautomix.distributed import world_size
from adautomix.errors import UsageError

Runtime = Literal["eager", "compile", "graph"]


def pick_runtime(config: TrainConfig, device: torch.device) -> Runtime:
    """How the step is run. "auto" is eager: the other two have yet to be proven on a GPU.

    Raises:
        UsageError: the step cannot be captured here.
    """
    if config.runtime == "auto":
        return "eager"
    if config.runtime == "graph":
        if device.type != "cuda":
            raise UsageError(f"runtime = graph needs a GPU, and the device is {device}: use eager")
        if world_size() > 1 or config.precision == "fp16":
            raise UsageError(
                "runtime = graph is for one process in fp32 or bf16: use eager or compile"
            )
    return config.runtime


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
