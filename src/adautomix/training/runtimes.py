"""How the training step is run (eager, compiled or as CUDA graphs), and requests to stop."""

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
    """How to run the training step; "auto" is eager until the others are validated on GPUs.

    Raises:
        UsageError: the step cannot be captured on this device or with these settings.
    """
    if config.runtime == "auto":
        return "eager"
    if config.runtime == "graph":
        if device.type != "cuda":
            raise UsageError(f"runtime = graph needs a GPU, and the device is {device}: use eager")
        if world_size() > 1 or config.precision == "fp16":
            raise UsageError(
                "runtime = graph works with one process in fp32 or bf16: use eager or compile"
            )
    return config.runtime


class StopRequest:
    """Whether a signal asked the run to stop (Ctrl-C or SIGTERM).

    Attributes:
        signal_name: name of the last signal, "" before there was one.
        count: number of signals.
    """

    signal_name = ""
    count = 0

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the signal; the training loop stops after the current step."""
        self.signal_name = signal.Signals(number).name
        self.count += 1


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Record Ctrl-C and SIGTERM in the yielded request, and restore the old handlers at the end.

    Signals can only be handled in the main thread; in other threads this does nothing.
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
