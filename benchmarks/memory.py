"""Show that a long training costs the same throughout: memory over many steps, seconds per epoch.

python benchmarks/memory.py data=digits width=0.25 stem=cifar epochs=30
"""

import argparse
import gc
import os
import tempfile
from functools import partial
from pathlib import Path

import torch
from common import add_settings, read_settings

from adautomix.bench.rows import append
from adautomix.bench.workload import Row, Workload, endless, endless_trainer, time_call
from adautomix.config import TrainConfig
from adautomix.device import peak_memory_mib
from adautomix.runs.build import load_images
from adautomix.runs.folder import RunFolder
from adautomix.training.loop import Trainer


def main() -> None:
    """Measure, and write two rows."""
    arguments = parse_arguments()
    work = Workload(read_settings(arguments.settings), [arguments.method], arguments.steps)
    device = work.device()
    append(arguments.rows, "memory", memory_over_steps(work, arguments.every), device=device)
    append(arguments.rows, "epochs", time_epochs(work.configs()[0]), device=device)
    print(f"Added two rows to {arguments.rows}")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_settings(parser)
    parser.add_argument("--method", default="adautomix")
    parser.add_argument("--steps", type=int, default=1000, help="at most 5,000")
    parser.add_argument("--every", type=int, default=50, help="steps between readings")
    parser.add_argument("--rows", type=Path, default=Path("benchmarks/results/memory.jsonl"))
    return parser.parse_intermixed_args()


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


if __name__ == "__main__":
    main()
