"""Time the real training step of several methods, alternately, in one process."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adautomix.config import make_config, merge
from adautomix.data.sets import ImageData, InMemory
from adautomix.training.loop import Trainer
from adautomix.training.run_folder import RunFolder


@dataclass(frozen=True)
class Timing:
    """Seconds of each measured step of one method."""

    method: str
    batch_size: int
    seconds: list[float]

    @property
    def median(self) -> float:
        """Median step, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile, in seconds."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return low, high

    @property
    def images_per_second(self) -> float:
        """Training images a second at the median step."""
        return self.batch_size / self.median


def random_images(count: int, classes: int, size: int) -> ImageData:
    """A made-up data set: noise, with labels in turn."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, size, size, 3), generator=generator, dtype=torch.uint8)
    split = InMemory(pixels, torch.arange(count), torch.arange(count) % classes)
    names = tuple(f"class {k}" for k in range(classes))
    grey, half = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return ImageData("noise", names, size, split, None, split, grey, half, "pad", 4, True, ())


def bench(
    values: dict[str, Any],
    *,
    methods: Sequence[str],
    steps: int,
    classes: int = 100,
    size: int = 32,
    told: Callable[[int], None] = lambda done: None,
) -> list[Timing]:
    """Time `steps` steps of each method, one of each in turn, after two to warm up.

    The step is the trainer's own, with augmentation, optimiser and teacher. Taking turns lets
    whatever slows the machine for a while slow all methods alike.

    Args:
        values: nested settings common to all methods.
        methods: names of methods.
        steps: measured steps a method.
        classes: number of classes of the made-up data.
        size: image side in pixels.
        told: called with the number of rounds done.
    """
    with tempfile.TemporaryDirectory() as scratch:
        trainers = [
            bench_trainer(values, name, Path(scratch), classes=classes, size=size)
            for name in methods
        ]
        batches = [endless(trainer) for trainer in trainers]
        seconds: list[list[float]] = [[] for _ in methods]
        for round_ in range(steps + 2):
            for trainer, source, row in zip(trainers, batches, seconds, strict=True):
                row.append(time_step(trainer, source))
            told(round_ + 1)
    return [
        Timing(name, trainer.config.batch_size, row[2:])
        for name, trainer, row in zip(methods, trainers, seconds, strict=True)
    ]


def bench_trainer(
    values: dict[str, Any], method: str, scratch: Path, *, classes: int, size: int
) -> Trainer:
    """A trainer on made-up images that never reaches its end."""
    config = make_config(merge(values, {"method": method, "epochs": 1000}))
    data = random_images(4 * config.batch_size, classes, size)
    return Trainer(config, data, RunFolder(scratch), quiet=True)


def endless(trainer: Trainer) -> Any:
    """Training batches without end."""
    for epoch in range(trainer.config.epochs):
        yield from trainer.batches.epoch(epoch)


def time_step(trainer: Trainer, batches: Any) -> float:
    """Seconds from asking for a batch to the end of its step."""
    wait_for(trainer.device)
    started = time.perf_counter()
    trainer.train_step(next(batches))
    wait_for(trainer.device)
    trainer.step += 1
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
