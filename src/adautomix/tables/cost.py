"""What the runs of a table would cost, estimated without their data.

A step costs as many forward passes of the network as the method states, and a forward pass costs
the floating-point operations of the network on one image. How many of them the device does per
second is measured with real training steps of a small network, as `adautomix plan` does. Finished
epochs of a run replace the estimate by what was measured.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adautomix.bench.workload import Workload, real_step, time_call
from adautomix.config import TrainConfig
from adautomix.config.recipes import read_families
from adautomix.device import DTYPES, pick_device
from adautomix.methods import METHODS
from adautomix.models import Stem, build_model
from adautomix.runs.records import Run, read_run
from adautomix.tables.tasks import Task

PROBE: dict[str, Any] = {"model": "resnet18", "stem": "cifar", "epochs": 1}
PROBE_SIZE = 32
PROBE_BATCH = {"cpu": 16, "cuda": 256}


@dataclass(frozen=True)
class NetworkCost:
    """The cost of a network for one image.

    Attributes:
        flops: floating-point operations of a forward pass.
        activations: numbers that a forward pass keeps for the backward pass.
        parameters: number of parameters.
    """

    flops: float
    activations: int
    parameters: int


@dataclass(frozen=True)
class Estimate:
    """The cost of what is left of a run.

    Attributes:
        hours: training and evaluation after each epoch.
        memory_gib: peak memory.
        basis: "measured" if epochs of this run were timed, else "estimated".
        state: "new", "finished", or the number of epochs done.
    """

    hours: float
    memory_gib: float
    basis: Literal["estimated", "measured"]
    state: str


def estimate(task: Task, flops_per_second: float) -> Estimate:
    """Return the cost of what is left of a task, measured where epochs of it were timed."""
    config = task.settings()
    cost = network_cost_of(config)
    family = read_families()[task.cell.family]
    train_images = family.train_images
    if config.per_class is not None:
        train_images = min(train_images, config.per_class * family.classes)
    forwards = train_images * METHODS[config.method].cost + 2 * family.test_images
    hours = config.epochs * forwards * cost.flops / flops_per_second / 3600
    new = Estimate(hours, peak_memory_gib(config, cost), "estimated", "new")
    if not (task.folder / "config.yaml").is_file():
        return new
    return measured(read_run(task.folder), config.epochs, new)


def measured(run: Run, epochs: int, new: Estimate) -> Estimate:
    """Return the cost of the rest of a run that has begun, by its own epochs."""
    if run.summary is not None:
        memory = run.summary.peak_memory_mib / 1024
        return Estimate(0.0, memory, "measured", "finished")
    if not run.epoch_rows:
        return new
    last = run.epoch_rows[-1]
    hours = last.seconds / last.epoch * (epochs - last.epoch) / 3600
    state = f"{last.epoch} of {epochs} epochs"
    return replace(new, hours=hours, basis="measured", state=state)


def network_cost_of(config: TrainConfig) -> NetworkCost:
    """Return the cost of the network that the settings of a run describe."""
    size = config.image_size or PROBE_SIZE
    # JSON, because the options of timm may be lists, which no cache can look up.
    options = json.dumps(config.model_options, sort_keys=True)
    return network_cost(config.model, config.stem_for(size), config.width, size, options)


@cache
def network_cost(
    name: str, stem: Stem, width: float, size: int, options: str = "{}"
) -> NetworkCost:
    """Count the work of a network without computing anything.

    Args:
        name: architecture, as timm names it.
        stem: "standard" or "cifar".
        width: multiplier of the channels.
        size: side of the images in pixels.
        options: options of `timm.create_model`, as JSON.
    """
    with torch.device("meta"):
        model = build_model(
            name, 100, stem=stem, width=width, image_size=size, options=json.loads(options)
        ).eval()
        images = torch.zeros(1, 3, size, size)
    kept = 0

    def count(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal kept
        kept += output.numel() if isinstance(output, Tensor) else 0

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return NetworkCost(float(counter.get_total_flops()), kept, parameters)


def peak_memory_gib(config: TrainConfig, cost: NetworkCost) -> float:
    """Estimate the peak memory of a run.

    Weights of student and teacher, gradients and the optimizer's state are float32. Of each third
    of a method's cost, which is a forward and a backward pass, the activations are kept at once.
    """
    states = 2 if config.optimizer == "adamw" else 1
    weights = 4 * cost.parameters * (3 + states)
    passes = METHODS[config.method].cost / 3
    bytes_each = torch.finfo(DTYPES[config.precision]).bits / 8
    images = config.batch_size / config.accumulate
    return (weights + cost.activations * bytes_each * images * passes) / 2**30


def measure_speed(config: TrainConfig) -> float:
    """Measure floating-point operations per second in training steps of a small network.

    Args:
        config: settings of a run, of which device, precision and runtime are used.
    """
    device = pick_device(config.device)
    batch = PROBE_BATCH.get(device.type, PROBE_BATCH["cpu"])
    used = {"device": config.device, "precision": config.precision, "runtime": config.runtime}
    work = Workload(PROBE | used | {"batch_size": batch}, ["vanilla"], size=PROBE_SIZE)
    step = real_step(work.configs()[0], work.images())
    step()  # the first step also loads libraries
    seconds: float = min(time_call(step, device) for _ in range(3))
    cost = network_cost("resnet18", "cifar", 1.0, PROBE_SIZE)
    return 3 * cost.flops * batch / seconds
