"""Where the time of a training step goes: its parts, timed inside the real step.

For the length of a measurement the trainer's own parts are wrapped by a clock; nothing is copied.
Times are exclusive: at every moment the innermost part that runs is the one that is charged, so
the phases and the rest add up to the whole. The student's forward within the generator's loss is
"student forward", the teacher's of clean images and of mixes is "teacher", the generator's is
"generator", and the way back through all of them is "backward".

On a GPU the clock waits for the device wherever one phase ends and the next begins, which costs
the overlap of host and device. The total is therefore not the time of a step: see `steps.py`.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from adautomix.bench.workload import (
    Row,
    Workload,
    cycle,
    endless,
    endless_trainer,
    name_of,
    wait_for,
)
from adautomix.errors import UsageError
from adautomix.training.loop import Trainer

PHASES = ("data", "teacher", "generator", "student forward", "backward", "optimizer", "average")
REST = "rest"  # mixing, losses, meters
PASSES = ("features", "feature_map", "logits", "forward")  # the ways through a Classifier


class PhaseClock:
    """Charges the time that passes to the innermost phase that runs.

    Args:
        device: waited for wherever a phase begins or ends.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge this block to a phase, except for phases within it."""
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        wait_for(self._device)
        now = time.perf_counter()
        if self._running:
            innermost = self._running[-1]
            self.seconds[innermost] = self.seconds.get(innermost, 0.0) + now - self._since
        self._since = now


def time_phases(work: Workload) -> list[Row]:
    """A row of data a method: mean "seconds" a step and each phase as a share of them.

    Methods are measured one after the other. An even number of steps counts the adversary's and
    the others alike. A phase that a method does not have is not in its row.

    Raises:
        UsageError: a setting is wrong, or the step is to be compiled or captured.
    """
    require_seams(work)
    data, rows = work.images(), []
    for config in work.configs():
        seconds = phase_seconds(endless_trainer(config, data), work.steps)
        total = sum(seconds.values())
        shares = {name: seconds[name] / total for name in (*PHASES, REST) if name in seconds}
        rows.append({"method": name_of(config), "seconds": total, **shares})
    return rows


def require_seams(work: Workload) -> None:
    """Do nothing if the step is an eager one, whose parts can be wrapped.

    Raises:
        UsageError: it is to be compiled or captured.
    """
    runtime = work.configs()[0].runtime
    if runtime not in ("auto", "eager"):
        raise UsageError(f"runtime = {runtime} leaves no seams to time phases at: use eager")


def phase_seconds(trainer: Trainer, steps: int) -> dict[str, float]:
    """Mean seconds of each phase over the next steps of a trainer, after some to warm up."""
    batches = endless(trainer)
    for _ in range(cycle(trainer.config)):
        trainer.train_step(next(batches))
        trainer.step += 1
    clock = PhaseClock(trainer.device)
    with timed_parts(trainer, clock), clock.phase(REST):
        for _ in range(steps):
            with clock.phase("data"):
                batch = next(batches)
            trainer.train_step(batch)
            trainer.step += 1
    return {name: total / steps for name, total in clock.seconds.items()}


@contextmanager
def timed_parts(trainer: Trainer, clock: PhaseClock) -> Iterator[None]:
    """Within it the clock sees the parts of the trainer's step begin and end."""
    with ExitStack() as wrapped:
        for owner, name, phase in parts_of(trainer):
            part = clock.phase(phase)(getattr(owner, name))
            wrapped.enter_context(patch.object(owner, name, part))
        yield


def parts_of(trainer: Trainer) -> list[tuple[Any, str, str]]:
    """What to wrap: an object, the name of its function, and the phase that it is."""
    step = trainer.eager_step
    parts = [
        (step, "inputs", "data"),
        (trainer.batches, "augment", "data"),
        (torch.autograd, "backward", "backward"),  # what the loss's own method calls
        (step, "apply_gradients", "optimizer"),
        (trainer.teacher, "update", "average"),
    ]
    parts += [(trainer.teacher.model, name, "teacher") for name in PASSES]
    parts += [(trainer.student, name, "student forward") for name in PASSES]
    generator = getattr(trainer.method, "generator", None)
    if generator is not None:
        parts.append((generator, "forward", "generator"))
    return parts
