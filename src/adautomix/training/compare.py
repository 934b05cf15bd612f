"""Methods × seeds on the same data, network and schedule: one folder of runs."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adautomix.config import TrainConfig, make_config, merge
from adautomix.errors import UsageError
from adautomix.training.checkpoint import present_checkpoints
from adautomix.training.run import resume, train
from adautomix.training.run_folder import RunFolder


def compare(
    values: dict[str, Any],
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    quiet: bool = False,
    command: str = "",
) -> list[Path]:
    """Train every method with every seed; runs that are there are finished, not repeated.

    Args:
        values: nested settings common to all runs.
        methods: names of methods.
        seeds: a run each; seed s splits and shuffles the data alike for all methods.
        out: folder of the run folders `<method>-s<seed>`.
        quiet: show no progress.
        command: the command line, for the summaries.

    Returns:
        The run folders, methods in the order given.

    Raises:
        UsageError: a run there has other settings.
    """
    configs = [
        make_config(
            merge(values, {"method": method, "seed": seed, "out": str(out / f"{method}-s{seed}")})
        )
        for seed in seeds
        for method in methods
    ]
    for config in configs:
        run_once(config, quiet=quiet, command=command)
    return [out / f"{method}-s{seed}" for method in methods for seed in seeds]


def run_once(config: TrainConfig, *, quiet: bool, command: str) -> None:
    """Train this run, finish it, or see that it is done."""
    assert config.out is not None
    if not (config.out / "config.yaml").exists():
        train(config, quiet=quiet, command=command)
        return
    folder = RunFolder.open(config.out)
    if folder.config().resolved() != config.resolved():
        raise UsageError(f"{config.out} was run with other settings: choose another --out")
    if folder.summary() is None:
        if present_checkpoints(config.out):
            resume(config.out, quiet=quiet, command=command)
        else:
            shutil.rmtree(config.out)
            train(config, quiet=quiet, command=command)
