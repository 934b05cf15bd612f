"""Time the real training step of several methods, by turns, in one process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from adautomix.bench.workload import (
    Measured,
    ProgressCallback,
    Row,
    Step,
    Workload,
    cycle,
    name_of,
    real_step,
    time_call,
)
from adautomix.config import TrainConfig
from adautomix.device import peak_memory_mib, pick_device
from adautomix.training.graphs import EAGER_STEPS
from adautomix.training.runtimes import pick_runtime

Makers = dict[str, Callable[[], Step]]


@dataclass(frozen=True)
class Timing(Measured):
    """Seconds of each measured step of one method, ours or a peer's.

    Attributes:
        method: name of the method; another library's name stands before its methods' names.
        batch_size: images per step.
        seconds: one number per step.
        peak_memory_mib: most memory that it held; None where several methods share the process.
    """

    method: str
    batch_size: int
    seconds: list[float]
    peak_memory_mib: float | None = None


def time_steps(
    work: Workload, *, on_progress: ProgressCallback = lambda done: None
) -> list[Timing]:
    """Time steps of each method: the trainer's own, from reading a batch to updating the teacher.

    Args:
        work: what to measure.
        on_progress: called with the number of rounds that are done.

    Raises:
        UsageError: a setting is wrong.
    """
    configs, data = work.configs(), work.images()
    makers: Makers = {name_of(config): partial(real_step, config, data) for config in configs}
    return time_by_turns(makers, max(configs, key=cycle), steps=work.steps, on_progress=on_progress)


def time_by_turns(
    makers: Mapping[str, Callable[[], Step]],
    config: TrainConfig,
    *,
    steps: int,
    on_progress: ProgressCallback = lambda done: None,
    enough: Callable[[], bool] = lambda: False,
) -> list[Timing]:
    """Time `steps` steps of each, one of each in turn, after some to warm up.

    Taking turns lets whatever slows the machine for a while slow all methods alike.

    Args:
        makers: for each name, what makes its step.
        config: batch size, device and runtime of all, and the longest cycle of kinds of step.
        steps: measured steps of each.
        on_progress: called with the number of rounds done.
        enough: asked after each round; if it says so, no further round is timed.
    """
    device = pick_device(config.device)
    made = [warmed_up(make, config, device) for make in makers.values()]
    seconds: list[list[float]] = [[] for _ in made]
    for round_ in range(steps):
        for (step, _), row in zip(made, seconds, strict=True):
            row.append(time_call(step, device))
        on_progress(round_ + 1)
        if enough():
            break
    # On the CPU all there is to see is what the process grew to, which all methods share.
    alone = peak_memory_mib(device) if len(made) == 1 else None
    return [
        Timing(name, config.batch_size, row, alone if memory is None else memory)
        for name, row, (_, memory) in zip(makers, seconds, made, strict=True)
    ]


def warmed_up(
    make: Callable[[], Step], config: TrainConfig, device: torch.device
) -> tuple[Step, float | None]:
    """A step of which every kind has run, and the most MiB of the GPU that this took.

    The first to be made pays for the workspaces of the libraries too.
    """
    graphed = pick_runtime(config, device) == "graph"
    rounds = cycle(config) * (EAGER_STEPS + 1 if graphed else 1)
    if device.type != "cuda":
        return warm_up(make, rounds), None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step = warm_up(make, rounds)
    return step, peak_memory_mib(device) - before / 2**20


def warm_up(make: Callable[[], Step], rounds: int) -> Step:
    """Make a step and run it a few times."""
    step = make()
    for _ in range(rounds):
        step()
    return step


def step_rows(timings: Sequence[Timing]) -> list[Row]:
    """The timings as rows of data; `times` are multiples of the first one's median and mean."""
    return [
        {
            "method": t.method,
            "batch_size": t.batch_size,
            "seconds": t.median,
            "quartiles": t.quartiles,
            "times": t.median / timings[0].median,
            "mean_times": t.mean / timings[0].mean,
            "images_per_second": t.batch_size / t.median,
            "peak_memory_mib": t.peak_memory_mib,
        }
        for t in timings
    ]
