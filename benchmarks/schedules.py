"""What cheaper schedules of AdAutoMix cost and what they give: the generator at every k-th step.

    python benchmarks/schedules.py --recipe digits/few-labels --seeds 0,1,2 --out runs/schedules

Trains each schedule with each seed (runs that are there are not repeated), times their steps and
a vanilla step's in turns, and adds one row.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from adautomix.bench.rows import append
from adautomix.bench.steps import time_by_turns
from adautomix.bench.workload import Workload, real_step
from adautomix.config import make_config, merge, read_recipe
from adautomix.device import pick_device
from adautomix.reporting.statistics import t_interval
from adautomix.runs.records import read_runs
from adautomix.training.compare import compare, method_variants


def main() -> None:
    """Train, time, print, write the row."""
    asked = arguments()
    common = merge(read_recipe(asked.recipe), {"method": "adautomix"})
    every = [int(k) for k in asked.every.split(",")]
    times = time_schedules(every, asked)
    figures = [
        {"generator_every": k, "times": times[k], **scores(merge(common, schedule(k)), k, asked)}
        for k in every
    ]
    for record in figures:
        print(record)
    if asked.rows:
        append(asked.rows, "schedules", figures, device=pick_device("auto"))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="digits/few-labels")
    parser.add_argument("--every", default="1,2,4,8", help="k, comma-separated")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=8, help="measured rounds of 2 k steps")
    parser.add_argument("--batch-size", type=int, default=50, help="of the timed steps")
    parser.add_argument("--width", type=float, default=1.0, help="of the timed network")
    parser.add_argument("--out", type=Path, default=Path("runs/schedules"))
    parser.add_argument("--rows", type=Path, help="file of rows to add to")
    return parser.parse_args()


def schedule(every: int) -> dict[str, Any]:
    """The setting of one schedule."""
    return {"adautomix": {"generator_every": every}}


def time_schedules(every: list[int], asked: argparse.Namespace) -> dict[int, float]:
    """Mean step of each schedule over its whole turn of 2 k steps, in vanilla steps."""
    values = {"batch_size": asked.batch_size, "width": asked.width}
    work = Workload(values, ["vanilla"])
    vanilla, data = work.configs()[0], work.images()
    makers = {"vanilla": partial(turn, vanilla, data, 2)}
    for k in every:
        config = make_config(values | {"method": "adautomix"} | schedule(k))
        makers[str(k)] = partial(turn, config, data, 2 * k)
    timings = time_by_turns(makers, vanilla, steps=asked.steps)
    a_step = {
        t.method: t.median / (2 if t.method == "vanilla" else 2 * int(t.method)) for t in timings
    }
    return {k: a_step[str(k)] / a_step["vanilla"] for k in every}


def turn(config: Any, data: Any, steps: int) -> Any:
    """A call that takes so many steps: every kind that the schedule has."""
    step = real_step(config, data)

    def turn_of_steps() -> None:
        for _ in range(steps):
            step()

    return turn_of_steps


def scores(values: dict[str, Any], every: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Mean top-1 of student and teacher over the seeds, with the half-width of its interval."""
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    out = asked.out / f"every-{every}"
    runs = compare(values, variants=method_variants(["adautomix"]), seeds=seeds, out=out)
    found: dict[str, Any] = {"seeds": len(seeds)}
    for network in ("student", "teacher"):
        figures = (run.figure(network, "top1") for run in read_runs(runs))
        top1 = [figure for figure in figures if figure is not None]
        mean = t_interval(top1)
        found |= {network: mean.mean, f"{network}_half_width": mean.half_width}
    return found


if __name__ == "__main__":
    main()
