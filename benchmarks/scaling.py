"""Weak scaling: step time when every further process brings a batch of its own.

    python benchmarks/scaling.py --processes 1,2 --rows benchmarks/results/cpu.jsonl

Starts `torchrun` for each count, in turns, and adds one row. Each process has one thread, so on a
machine of two cores two processes have all of it, and one has half. What processes take from each
other by sharing cores and memory is told apart: as many are timed that know nothing of each other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from adautomix.bench.rows import append
from adautomix.bench.steps import time_by_turns
from adautomix.bench.workload import Workload, real_step
from adautomix.device import pick_device
from adautomix.distributed import init_distributed, is_main, world_size

Seconds = dict[str, list[float]]


def main() -> None:
    """Time as one of several processes, or start them and gather what they found."""
    asked = arguments()
    if asked.out:
        time_here(asked)
        return
    counts = [int(count) for count in asked.processes.split(",")]
    together: dict[tuple[str, int], list[float]] = {}
    apart: dict[tuple[str, int], list[float]] = {}
    for _ in range(asked.rounds):
        for count in counts:
            for found, groups in ((together, [count]), (apart, [1] * count)):
                for method, seconds in time_groups(groups).items():
                    found.setdefault((method, count), []).extend(seconds)
    figures = [
        {
            "method": method,
            "processes": count,
            "batch_size": count * asked.batch_size,
            "seconds": statistics.median(seconds),
            "apart_seconds": statistics.median(apart[method, count]),
            "efficiency": statistics.median(together[method, counts[0]])
            / statistics.median(seconds),
        }
        for (method, count), seconds in together.items()
    ]
    for record in figures:
        print(record)
    if asked.rows:
        append(asked.rows, "scaling", figures, device=pick_device("auto"))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", default="1,2", help="counts, comma-separated")
    parser.add_argument("--methods", default="vanilla,adautomix")
    parser.add_argument("--batch-size", type=int, default=50, help="images per process")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=10, help="measured in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="file of rows to add to")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def time_groups(groups: list[int]) -> Seconds:
    """Seconds of each method's steps in groups of processes of this very script, all at once.

    The processes of a group train together, and the groups apart.
    """
    seconds: Seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.json" for number in range(len(groups))]
        running = [start(count, file) for count, file in zip(groups, files, strict=True)]
        for process, file in zip(running, files, strict=True):
            if process.wait():
                raise SystemExit("a process failed: see above")
            for method, found in json.loads(file.read_text()).items():
                seconds.setdefault(method, []).extend(found)
    return seconds


def start(count: int, out: Path) -> subprocess.Popen[bytes]:
    """Start so many processes that train together and write their seconds to a file."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = [f"--nproc_per_node={count}", __file__, *sys.argv[1:], "--out", str(out)]
    return subprocess.Popen([*launcher, *words], env={**os.environ, "OMP_NUM_THREADS": "1"})


def time_here(asked: argparse.Namespace) -> None:
    """Time the steps that this process takes together with the others."""
    torch.set_num_threads(1)
    init_distributed(pick_device("auto"))
    values: dict[str, Any] = {"batch_size": world_size() * asked.batch_size, "width": asked.width}
    work = Workload(values, asked.methods.split(","), asked.steps)
    configs, data = work.configs(), work.images()
    makers = {c.method: (lambda c=c: real_step(c, data)) for c in configs}
    timings = time_by_turns(makers, configs[0], steps=asked.steps)
    if is_main():
        asked.out.write_text(json.dumps({timing.method: timing.seconds for timing in timings}))


if __name__ == "__main__":
    main()
