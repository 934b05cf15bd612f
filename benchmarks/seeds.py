"""Several seeds of a small network: one after the other, a process a core, or stacked by vmap.

    python benchmarks/seeds.py --width 0.25 --rows benchmarks/results/cpu.jsonl

Each way trains the same number of networks for the same number of steps and adds to one row. The
stacked way is flattered: it only predicts, differentiates and descends, without data or teacher.
"""

import argparse
import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adautomix.bench.rows import append
from adautomix.bench.workload import Workload, real_step, time_call
from adautomix.config import TrainConfig, merge
from adautomix.device import pick_device
from adautomix.models import build_model

WARM_UP = 2


def main() -> None:
    """Time each way, print, write the row."""
    asked = arguments()
    values = {"batch_size": asked.batch_size, "width": asked.width, "stem": "cifar"}
    work = Workload(values, ["vanilla"])
    stacked = stacked_step(work.configs()[0], work.classes, work.size, asked.seeds)
    ways: dict[str, Callable[[], float]] = {
        "one after the other": lambda: time_steps(values, range(asked.seeds), asked.steps),
        "a process a core": lambda: time_processes(values, asked.seeds, asked.steps),
        "stacked in one process": lambda: time_calls(stacked, asked.steps),
    }
    seconds = {way: [time_way() for _ in range(asked.rounds)] for way, time_way in ways.items()}
    first = statistics.median(seconds["one after the other"])
    figures = [
        {
            "way": way,
            "networks": asked.seeds,
            "seconds": statistics.median(found),
            "to_first": statistics.median(found) / first,
        }
        for way, found in seconds.items()
    ]
    for record in figures:
        print(record)
    if asked.rows:
        append(asked.rows, "seeds", figures, device=pick_device("auto"))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4, help="networks")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each network")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=Path, help="file of rows to add to")
    return parser.parse_args()


def time_calls(call: Callable[[], None], count: int) -> float:
    """Mean seconds of a call, after some to warm up."""
    seconds = [time_call(call, pick_device("auto")) for _ in range(WARM_UP + count)]
    return statistics.fmean(seconds[WARM_UP:])


def time_steps(values: dict[str, Any], seeds: range, steps: int) -> float:
    """Mean seconds of one step of each of the networks, which take turns."""
    works = [Workload(merge(values, {"seed": seed}), ["vanilla"]) for seed in seeds]
    made = [real_step(work.configs()[0], work.images()) for work in works]

    def one_of_each() -> None:
        for step in made:
            step()

    return time_calls(one_of_each, steps)


def time_processes(values: dict[str, Any], seeds: int, steps: int) -> float:
    """Seconds of one step of each network where every core has a process with its share of them.

    Starting the processes is left out: a training lasts longer than that.
    """
    cores = os.cpu_count() or 1
    shares = [range(first, seeds, cores) for first in range(min(cores, seeds))]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(shares), spawn, torch.set_num_threads, (1,)) as pool:
        list(pool.map(abs, range(len(shares))))  # all are up
        runs = [pool.submit(time_steps, values, share, steps) for share in shares]
        return max(run.result() for run in runs)


def stacked_step(config: TrainConfig, classes: int, size: int, seeds: int) -> Callable[[], None]:
    """A step of all networks as one, their weights stacked and the forward vectorized over them."""
    device = pick_device("auto")
    models = [
        build_model(config.model, classes, stem="cifar", width=config.width, image_size=size).to(
            device
        )
        for _ in range(seeds)
    ]
    weights, buffers = torch.func.stack_module_state(models)
    skeleton = models[0]
    images = torch.randn(seeds, config.batch_size, 3, size, size, device=device)
    labels = torch.randint(classes, (seeds, config.batch_size), device=device)

    def loss(weights: Any, buffers: Any, images: Tensor, labels: Tensor) -> Tensor:
        logits = torch.func.functional_call(skeleton, (weights, buffers), (images,))
        return F.cross_entropy(logits, labels)

    losses = torch.func.vmap(loss)
    optimizer = torch.optim.SGD(weights.values(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        losses(weights, buffers, images, labels).sum().backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
