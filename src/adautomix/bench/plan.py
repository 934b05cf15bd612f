"""What a run would cost, before it is started: some real steps of it and of its neighbors."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from adautomix.bench.steps import Makers, Timing, time_by_turns
from adautomix.bench.workload import ProgressCallback, Row, endless_trainer, real_step, time_call
from adautomix.config import TrainConfig
from adautomix.device import autocast
from adautomix.runs.build import load_images
from adautomix.training.loop import Trainer

STEPS = 20
"""Largest number of measured steps per method, if the user names none."""

SECONDS = 30.0
"""Time after which no further step is measured, counted from the loading of the images."""

NEIGHBOURS = ("vanilla", "mixup")  # what a plain step costs, and one that mixes


def plan(
    config: TrainConfig,
    *,
    steps: int | None = None,
    on_progress: ProgressCallback = lambda done: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Row]:
    """Cost of the run and of the same run with neighboring methods, from timed steps by turns.

    The steps are the trainer's own on the run's own images, teacher included. Nothing is written,
    but for the cache of decoded images that the run itself would make.

    Args:
        config: the settings of the run.
        steps: measured steps per method; None measures up to `STEPS`, and fewer where the machine
            would take longer than `SECONDS`.
        on_progress: called with the number of rounds done.
        clock: the seconds that `SECONDS` limits.

    Returns:
        Rows, that of the method asked for first. "seconds_an_epoch" and "hours" to the end count
        training and evaluation, "images_per_second" training alone.

    Raises:
        UsageError: the images cannot be loaded, or a setting does not fit them.
    """
    data = load_images(config)
    deadline = clock() + SECONDS
    # Copied, not made anew: a neighbor keeps settings that only the asked-for method may have.
    configs = [
        config.model_copy(update={"method": name})
        for name in dict.fromkeys((config.method, *NEIGHBOURS))
    ]
    makers: Makers = {one.method: partial(real_step, one, data) for one in configs}
    timings = time_by_turns(
        makers,
        config,
        steps=steps or STEPS,
        on_progress=on_progress,
        enough=lambda: steps is None and clock() >= deadline,
    )
    trainer = endless_trainer(config, data)
    evaluation = seconds_to_evaluate(trainer)
    return [cost(config, timing, trainer.batches.steps_per_epoch, evaluation) for timing in timings]


def seconds_to_evaluate(trainer: Trainer) -> float:
    """Of both networks on all test and held-out images, judged by a chunk of the test images."""
    config, data = trainer.config, trainer.data
    count = min(len(data.test), config.eval_batch_size, config.batch_size)
    chunk = replace(data, test=data.test.subset(torch.arange(count)))
    evaluator = replace(trainer.evaluator, data=chunk)
    with autocast(trainer.device, config.precision):
        evaluator.scores("test")  # the first time is no measure: libraries are loaded
        seconds = time_call(partial(evaluator.scores, "test"), trainer.device)
    return seconds * (len(data.test) + (len(data.val) if data.val else 0)) / count


def cost(config: TrainConfig, timing: Timing, steps_an_epoch: int, evaluation: float) -> Row:
    """The cost of a run: its steps, and `evaluation` seconds every `eval_every` epochs."""
    step = statistics.fmean(timing.seconds)  # the mean: kinds of step may differ in cost
    epoch = steps_an_epoch * step + evaluation / config.eval_every
    return {
        "method": timing.method,
        "asked": timing.method == config.method,
        "images_per_second": config.batch_size / step,
        "peak_memory_mib": timing.peak_memory_mib,
        "seconds_an_epoch": epoch,
        "hours": config.epochs * epoch / 3600,
    }
