"""Methods × seeds on the same data, network and schedule: one folder of runs.

In the place of methods there may be the variants of a sweep, see `training/sweeps.py`.
"""

import multiprocessing
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from adautomix.config import TrainConfig, make_config, merge
from adautomix.device import pick_device
from adautomix.errors import RunError, UsageError
from adautomix.runs.build import load_images
from adautomix.runs.checkpoint import resumable_checkpoints
from adautomix.runs.folder import RunFolder
from adautomix.training.run import resume, train


def compare(
    values: dict[str, Any],
    *,
    variants: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    out: Path,
    jobs: int | None = None,
    quiet: bool = False,
    command: str = "",
) -> list[Path]:
    """Train every variant with every seed; runs that are there are finished, not repeated.

    A small network does not keep many cores busy, so on the CPU as many runs as there are cores
    go side by side, each in a process with its share of the threads. On a GPU they take turns.

    Args:
        values: nested settings common to all runs.
        variants: by name, the settings of each that win over `values`: see `method_variants`.
        seeds: a run each; seed s splits and shuffles the data alike for all variants.
        out: folder of the run folders `<variant>-s<seed>`.
        jobs: runs side by side; none: what suits the device.
        quiet: show no progress.
        command: the command line, for the summaries.

    Returns:
        The run folders, variants in the order given.

    Raises:
        UsageError: nothing to run, or a run there has other settings.
    """
    configs = [
        make_config(merge(merge(values, own), {"seed": seed, "out": str(out / f"{name}-s{seed}")}))
        for seed in seeds
        for name, own in variants.items()
    ]
    if not configs:
        raise UsageError("no run to compare: name at least one method and one seed")
    jobs = min(jobs or default_jobs(configs[0]), len(configs))
    if jobs == 1:
        for config in configs:
            train_or_resume(config, quiet=quiet, command=command)
    else:
        run_parallel(configs, jobs, quiet=quiet, command=command)
    return [out / f"{name}-s{seed}" for name in variants for seed in seeds]


def method_variants(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Variants that differ in the method, each called by its name."""
    return {name: {"method": name} for name in names}


def default_jobs(config: TrainConfig) -> int:
    """Runs side by side: one a core on the CPU, one on a GPU."""
    return 1 if pick_device(config.device).type == "cuda" else os.cpu_count() or 1


def run_parallel(configs: Sequence[TrainConfig], jobs: int, *, quiet: bool, command: str) -> None:
    """All runs, `jobs` at a time; a line for each that is done.

    Raises:
        RunError: stopped by Ctrl-C; what was trained is kept.
    """
    load_images(configs[0], progress=not quiet)  # fills the cache that all will read
    console = Console(stderr=True, quiet=quiet)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    started = time.perf_counter()
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)
    ) as pool:
        runs = [
            pool.submit(train_or_resume, config, quiet=True, command=command) for config in configs
        ]
        named = dict(zip(runs, configs, strict=True))
        try:
            for done, run in enumerate(as_completed(runs), 1):
                run.result()
                passed = time.perf_counter() - started
                console.print(progress_line(named[run], done, len(runs), passed), highlight=False)
        except BaseException as error:
            cancel_pending(runs)
            if isinstance(error, KeyboardInterrupt):
                raise RunError("stopped by Ctrl-C; the same command goes on from there") from None
            raise


def progress_line(config: TrainConfig, done: int, runs: int, passed: float) -> str:
    """What a finished run gave, and how long the others will take."""
    assert config.out is not None
    summary = RunFolder.open(config.out).summary()
    assert summary is not None
    scores = "  ".join(f"{name} {s.top1:.2%}" for name, s in summary.final.items())
    left = passed / done * (runs - done)
    name = config.label or config.method
    return f"{name} s{config.seed}: {scores}  ({done} of {runs} runs, {left:.0f} s left)"


def cancel_pending(runs: Sequence[Future[None]]) -> None:
    """Start no further run; those that are going on get the same signal, and save."""
    for run in runs:
        run.cancel()


def train_or_resume(config: TrainConfig, *, quiet: bool, command: str) -> None:
    """Train this run, finish it, or see that it is done."""
    assert config.out is not None
    if not (config.out / "config.yaml").exists():
        train(config, quiet=quiet, command=command)
        return
    folder = RunFolder.open(config.out)
    if folder.config().resolved() != config.resolved():
        raise UsageError(f"{config.out} was run with other settings: choose another --out")
    if folder.summary() is None:
        if resumable_checkpoints(config.out):
            resume(config.out, quiet=quiet, command=command)
        else:
            shutil.rmtree(config.out)
            train(config, quiet=quiet, command=command)
