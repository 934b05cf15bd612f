"""Time our training steps and openmixup's, in turns in one process.

    python benchmarks/compare_openmixup.py batch_size=50 --rows benchmarks/results/cpu.jsonl

`sh benchmarks/install_openmixup.sh python` installs openmixup. Its batch lies ready in memory; the
time of our steps includes reading and augmentation.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common import add_settings, read_settings
from openmixup_step import OPENMIXUP_MIXERS, openmixup_step
from peers import require_peer

from adautomix.bench.rows import append
from adautomix.bench.steps import Makers, Timing, step_rows, time_by_turns
from adautomix.bench.workload import Row, Workload, cycle, real_step
from adautomix.errors import UsageError


def main() -> None:
    """Time, print, and write two rows if asked."""
    arguments = parse_arguments()
    require_peer("openmixup")
    work = Workload(
        read_settings(arguments.settings),
        arguments.methods.split(","),
        arguments.steps,
        arguments.classes,
        arguments.size,
    )
    timings = time_beside_openmixup(work)
    results = {"steps": step_rows(timings), "peers": side_by_side(timings)}
    for kind, figures in results.items():
        for figure in figures:
            print(figure)
        if arguments.rows:
            device = work.device()
            append(arguments.rows, kind, figures, device=device, libraries=["openmixup"])


def time_beside_openmixup(work: Workload) -> list[Timing]:
    """Time each method's steps, and openmixup's of the same methods where it has them.

    Raises:
        UsageError: a setting is wrong, or openmixup has no such network.
    """
    configs, data = work.configs(), work.images()
    makers: Makers = {config.method: partial(real_step, config, data) for config in configs}
    makers |= openmixup_makers(work)
    return time_by_turns(makers, max(configs, key=cycle), steps=work.steps)


def openmixup_makers(work: Workload) -> Makers:
    """Functions that make openmixup's steps of the methods that it has, on the same network.

    Raises:
        UsageError: openmixup's step is not made for this network or precision.
    """
    first, *_ = configs = work.configs()
    wanted = (first.model, first.width, first.stem, first.precision)
    supported = {("resnet18", 1, stem, "fp32") for stem in ("auto", "cifar")}
    if wanted not in supported or work.size > 64:
        raise UsageError(
            "openmixup is timed on resnet18 of width 1 with stem cifar in fp32, up to 64 pixels: "
            "set model, width, stem, precision and --size to match"
        )
    make = partial(
        openmixup_step,
        batch_size=first.batch_size,
        classes=work.classes,
        size=work.size,
        device=work.device(),
    )
    known = (*OPENMIXUP_MIXERS, "adautomix")
    return {f"openmixup {c.method}": partial(make, c.method) for c in configs if c.method in known}


def side_by_side(timings: Sequence[Timing], peer: str = "openmixup") -> list[Row]:
    """Medians of our steps and of another library's steps of the same methods, as rows of data."""
    seconds = {timing.method: timing.median for timing in timings}
    return [
        {
            "method": method,
            "library": peer,
            "seconds": ours,
            "library_seconds": theirs,
            "times_ours": theirs / ours,
        }
        for method, ours in seconds.items()
        if (theirs := seconds.get(f"{peer} {method}"))
    ]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_settings(parser)
    parser.add_argument("--methods", default="vanilla,adautomix", help="comma-separated")
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each method")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--size", type=int, default=32, help="image height and width in pixels")
    parser.add_argument("--rows", type=Path, help="file of rows to add to")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
