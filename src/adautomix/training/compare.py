"""Train several methods with several seeds on the same data, network and schedule.

Instead of methods, the variants of a sweep can be compared, see `config/sweeps.py`.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from adautomix.config import TrainConfig, make_config, merge
from adautomix.device import pick_device
from adautomix.errors import UsageError
from adautomix.runs.build import load_images
from adautomix.training.engines import EngineChoice, Job
from adautomix.training.jobs import Failure, raise_failures, run_jobs
from adautomix.training.run import state_for, train


def compare(
    values: dict[str, Any],
    *,
    variants: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    out: Path,
    engine: EngineChoice | None = None,
    quiet: bool = False,
    command: str = "",
) -> list[Path]:
    """Train every variant with every seed; finished runs are kept and stopped ones are resumed.

    Args: see `run_comparison`.

    Returns:
        The run folders: for each variant in the given order, those of all seeds.

    Raises:
        UsageError: there is nothing to run, or a run in `out` has other settings.
        RunError: a run failed, after all others have ended; or a signal stopped the comparison.
    """
    folders, failures = run_comparison(
        values,
        variants=variants,
        seeds=seeds,
        out=out,
        engine=engine,
        quiet=quiet,
        command=command,
    )
    raise_failures(failures, len(folders))
    return folders


def run_comparison(
    values: dict[str, Any],
    *,
    variants: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    out: Path,
    engine: EngineChoice | None = None,
    quiet: bool = False,
    command: str = "",
) -> tuple[list[Path], list[Failure]]:
    """Train every variant with every seed, and return what failed instead of raising it.

    A small network does not keep many cores busy, so on the CPU one run per core is trained in
    parallel, in processes that divide the threads among them. On a GPU, runs are trained one after
    another.

    Args:
        values: nested settings of all runs.
        variants: settings that override `values` for each variant, see `method_variants`.
        seeds: the random seeds; one seed gives all variants the same split and order of the data.
        out: folder for the run folders `<variant>-s<seed>`.
        engine: what computes the runs; None trains on this machine.
        quiet: show no progress.
        command: the command line, for the summaries.

    Returns:
        The run folders, for each variant in the given order those of all seeds; and the failures.

    Raises:
        UsageError: there is nothing to run, or a run in `out` has other settings.
        StoppedError: a signal stopped the comparison.
    """
    engine = engine or EngineChoice()
    configs = [
        make_config(
            merge(merge(values, variant), {"seed": seed, "out": str(out / f"{name}-s{seed}")})
        )
        for seed in seeds
        for name, variant in variants.items()
    ]
    if not configs:
        raise UsageError("no run to compare: name at least one method and one seed")
    for config in configs:
        assert config.out is not None
        state_for(config.out, config)  # other settings are an error before anything starts
    if engine.name == "local":
        # Fill the image cache once, before several processes read it.
        load_images(configs[0], progress=not quiet)
    jobs = [train_job(config, command) for config in configs]
    failures = run_jobs(jobs, engine, parallel_jobs(engine, configs[0]), out, quiet=quiet)
    return [out / f"{name}-s{seed}" for name in variants for seed in seeds], failures


def train_job(config: TrainConfig, command: str) -> Job:
    """Return the job that trains a run, or continues it."""
    assert config.out is not None
    name = f"{config.label or config.method} s{config.seed}"
    return Job(name, config.out, config.epochs, partial(train, config, command=command))


def parallel_jobs(engine: EngineChoice, config: TrainConfig) -> int:
    """Return the number of runs at the same time: by default one per core, or one on a GPU.

    Ray and Slurm decide by themselves, which is 0.
    """
    if engine.parallel is not None or engine.name != "local":
        return engine.parallel or 0
    return os.cpu_count() or 1 if pick_device(config.device).type == "cpu" else 1


def method_variants(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The variants of a comparison of methods, each named after its method."""
    return {name: {"method": name} for name in names}
