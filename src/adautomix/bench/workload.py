"""What is measured: the trainer's own steps, on images made up for it or on real ones."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from adautomix.config import TrainConfig, make_config, merge
from adautomix.data import Batch, ImageData
from adautomix.data.dataset import InMemory
from adautomix.data.preparation import default_crop
from adautomix.device import pick_device
from adautomix.errors import UsageError
from adautomix.runs.folder import RunFolder
from adautomix.training.loop import Trainer

LASTING = 5000  # steps, more than anybody measures
NOWHERE = Path(os.devnull)  # a measurement writes no run folder

Row = dict[str, Any]
Step = Callable[[], None]
ProgressCallback = Callable[[int], None]


class Measured:
    """What the seconds of a measurement's repetitions come to."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.seconds)

    @property
    def mean(self) -> float:
        """The mean, in seconds: what it costs where some repetitions do more than others."""
        return statistics.fmean(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile, in seconds; never beyond what was measured."""
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Workload:
    """Methods under common settings on made-up images.

    Attributes:
        values: nested settings common to all methods.
        methods: names of methods.
        steps: measured steps of each, at least 2.
        classes: number of classes.
        size: image side in pixels.
        variants: settings that override `values` for each variant, by name, as a sweep gives them;
            they are measured instead of the methods.
    """

    values: dict[str, Any]
    methods: Sequence[str]
    steps: int = 10
    classes: int = 100
    size: int = 32
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def configs(self) -> list[TrainConfig]:
        """The settings of each method or variant, once each.

        Raises:
            UsageError: no method is named, or a setting is wrong.
        """
        variants = self.variants or {name: {"method": name} for name in self.methods}
        if not variants:
            raise UsageError("no method to measure: name one or more, such as vanilla,adautomix")
        return [make_config(merge(self.values, dict(variant))) for variant in variants.values()]

    def device(self) -> torch.device:
        """Where it is measured."""
        return pick_device(self.configs()[0].device)

    def images(self) -> ImageData:
        """Four batches of noise, with labels in turn; the splits are the same."""
        count, generator = 4 * self.configs()[0].batch_size, torch.Generator().manual_seed(0)
        shape = (count, self.size, self.size, 3)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        split = InMemory(pixels, torch.arange(count), torch.arange(count) % self.classes)
        names = tuple(f"class {k}" for k in range(self.classes))
        return ImageData(
            name="noise",
            classes=names,
            image_size=self.size,
            train=split,
            val=None,
            test=split,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            crop=default_crop(self.size),
            pad=4,
            flip=True,
            bad_files=(),
        )


def name_of(config: TrainConfig) -> str:
    """Return the name under which a configuration is measured: its variant's, or its method's."""
    return config.label or config.method


def cycle(config: TrainConfig) -> int:
    """Steps after which every kind of step has run, at least two."""
    return max(2, config.method_settings.step_cycle)


def endless_trainer(config: TrainConfig, data: ImageData) -> Trainer:
    """A trainer that reaches no end while it is measured, and has no folder to write to."""
    an_epoch = max(1, len(data.train) // config.batch_size)
    # Steps that train only the heads are few and cheap: time those that train everything.
    changes = {"epochs": -(-LASTING // an_epoch), "probe_epochs": 0}
    lasting = config.model_copy(update=changes)
    return Trainer(lasting, data, RunFolder(NOWHERE), quiet=True)


def endless(trainer: Trainer) -> Iterator[Batch]:
    """The training batches, epoch after epoch."""
    for epoch in range(trainer.config.epochs):
        yield from trainer.batches.epoch(epoch)


def real_step(config: TrainConfig, data: ImageData) -> Step:
    """The steps of a new trainer, one a call: it asks for a batch and trains on it."""
    trainer = endless_trainer(config, data)
    batches = endless(trainer)

    def step() -> None:
        trainer.train_step(next(batches))
        trainer.step += 1

    return step


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, with the device's work."""
    wait_for(device)
    started = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
