"""How the cost of training grows with its work, and that it does not grow with time."""

import gc
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from adautomix.bench.steps import time_steps
from adautomix.bench.workload import Row, Workload, endless, endless_trainer, time_call
from adautomix.config import TrainConfig, merge
from adautomix.device import peak_memory_mib
from adautomix.methods import find_method
from adautomix.runs.build import load_images
from adautomix.runs.folder import RunFolder
from adautomix.training.loop import Trainer

AXES = {"batch_size": "images a batch", "image_size": "image side, pixels", "n": "N, images a mix"}
"""What can grow, and what a reader is told that it is."""
POINTS = {"batch_size": (25, 50, 100, 200), "image_size": (16, 32, 48, 64), "n": (2, 3, 4, 6, 8)}


def time_growth(
    work: Workload,
    points: Mapping[str, Sequence[int]] = POINTS,
    on_progress: Callable[[str], None] = lambda point: None,
) -> list[Row]:
    """Median step of each method while one kind of work grows and the rest stays as set.

    Args:
        work: what to measure; along "n" only the methods that have such a setting.
        points: along each of `AXES` the values to time at.
        on_progress: called with each point before it is timed.

    Returns:
        Rows with "axis", "value", "method" and "seconds".
    """
    rows = []
    for axis, value in ((axis, value) for axis, values in points.items() for value in values):
        if (grown := grow(work, axis, value)).methods:
            on_progress(f"{axis} {value}")
            point = {"axis": axis, "value": value}
            timings = time_steps(grown)
            rows += [point | {"method": t.method, "seconds": t.median} for t in timings]
    return rows


def grow(work: Workload, axis: str, value: int) -> Workload:
    """The work at one point of an axis; N is a setting of each method of its own."""
    if axis == "image_size":
        return replace(work, size=value)
    if axis == "batch_size":
        return replace(work, values=merge(work.values, {axis: value}))
    have = [name for name in work.methods if axis in find_method(name).Settings.model_fields]
    own = {name: {axis: value} for name in have}
    return replace(work, values=merge(work.values, own), methods=have)


def memory_over_steps(work: Workload, every: int = 50) -> list[Row]:
    """Memory held while a trainer goes on and on: rows with "method", "step" and "memory_mib".

    On a GPU what tensors hold between two steps, on the CPU the resident memory of the process.
    """
    config, *_ = work.configs()
    trainer = endless_trainer(config, work.images())
    rows = []
    for step, batch in zip(range(1, work.steps + 1), endless(trainer), strict=False):
        trainer.train_step(batch)
        trainer.step += 1
        if step == 1 or step % every == 0:
            held = held_memory_mib(trainer.device)
            rows.append({"method": config.method, "step": step, "memory_mib": held})
    return rows


def held_memory_mib(device: torch.device) -> float:
    """Memory held now: by tensors on the GPU, or by this process on the CPU."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    resident = Path("/proc/self/statm")
    if not resident.exists():  # not Linux: what it grew to so far can hide no growth either
        return peak_memory_mib(device)
    return int(resident.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def time_epochs(config: TrainConfig) -> list[Row]:
    """Seconds of each epoch of a whole run, evaluation and checkpoints included.

    Returns rows with "method", "epoch" and "seconds".
    """
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(config, load_images(config), RunFolder(Path(scratch)), quiet=True)
        for epoch in range(1, config.epochs + 1):
            end = epoch * trainer.batches.steps_per_epoch
            seconds = time_call(partial(trainer.fit, until=end), trainer.device)
            rows.append({"method": config.method, "epoch": epoch, "seconds": seconds})
    return rows
