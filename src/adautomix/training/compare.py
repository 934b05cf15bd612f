"""Train several methods with several seeds on the same data, network and schedule.

Instead of methods, the variants of a sweep can be compared, see `config/sweeps.py`.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from adautomix.config import TrainConfig, make_config, merge
from adautomix.device import pick_device
from adautomix.errors import RunError, UsageError
from adautomix.runs.build import load_images
from adautomix.runs.folder import RunFolder
from adautomix.text import printable
from adautomix.training.run import RunResult, train


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
    """Train every variant with every seed; finished runs are kept and stopped ones are resumed.

    A small network does not keep many cores busy, so on the CPU one run per core is trained in
    parallel, in processes that divide the threads among them. On a GPU, runs are trained one after
    another.

    Args:
        values: nested settings of all runs.
        variants: settings that override `values` for each variant, see `method_variants`.
        seeds: the random seeds; one seed gives all variants the same split and order of the data.
        out: folder for the run folders `<variant>-s<seed>`.
        jobs: number of parallel runs; None picks one that suits the device.
        quiet: show no progress.
        command: the command line, for the summaries.

    Returns:
        The run folders: for each variant in the given order, those of all seeds.

    Raises:
        UsageError: there is nothing to run, or a run in `out` has other settings.
        RunError: a run could not continue, or Ctrl-C stopped the comparison.
    """
    configs = [
        make_config(
            merge(merge(values, variant), {"seed": seed, "out": str(out / f"{name}-s{seed}")})
        )
        for seed in seeds
        for name, variant in variants.items()
    ]
    if not configs:
        raise UsageError("no run to compare: name at least one method and one seed")
    jobs = min(jobs or default_jobs(configs[0]), len(configs))
    if jobs == 1:
        for config in configs:
            train(config, quiet=quiet, command=command)
    else:
        run_parallel(configs, jobs, quiet=quiet, command=command)
    return [out / f"{name}-s{seed}" for name in variants for seed in seeds]


def method_variants(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The variants of a comparison of methods, each named after its method."""
    return {name: {"method": name} for name in names}


def default_jobs(config: TrainConfig) -> int:
    """The number of parallel runs: one per core on the CPU, one on a GPU."""
    return 1 if pick_device(config.device).type == "cuda" else os.cpu_count() or 1


def run_parallel(configs: Sequence[TrainConfig], jobs: int, *, quiet: bool, command: str) -> None:
    """Train all runs, `jobs` at a time, and print a line for each that has finished.

    Raises:
        RunError: stopped by Ctrl-C; the runs have saved checkpoints.
    """
    # Fill the image cache once, before the processes read it.
    load_images(configs[0], progress=not quiet)
    console = Console(stderr=True, quiet=quiet)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    started = time.perf_counter()
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), start_worker, (threads,)
    ) as pool:
        runs = [pool.submit(train, config, quiet=True, command=command) for config in configs]
        config_of = dict(zip(runs, configs, strict=True))
        try:
            for done, run in enumerate(as_completed(runs), 1):
                run.result()
                elapsed = time.perf_counter() - started
                line = progress_line(config_of[run], done, len(runs), elapsed)
                console.print(printable(line), highlight=False, markup=False)
        except BaseException as error:
            cancel_pending(runs)
            if isinstance(error, KeyboardInterrupt):
                raise RunError("stopped by Ctrl-C; continue with the same command") from None
            raise


def start_worker(threads: int) -> None:
    """Prepare a process that trains runs: it ends with the process that started it.

    Otherwise the workers of a killed comparison would go on training.
    """
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=end_after, args=(parent.sentinel,), daemon=True).start()


def end_after(sentinel: int) -> None:
    """Wait for the end of the process that a sentinel belongs to, then end this one at once.

    This is as a kill, which loses nothing that was saved.
    """
    wait([sentinel])
    os._exit(1)


def progress_line(config: TrainConfig, done: int, runs: int, elapsed: float) -> str:
    """A line with the scores of a finished run and the time that the others will take."""
    assert config.out is not None
    summary = RunFolder.open(config.out).summary()
    assert summary is not None
    networks = "  ".join(f"{name} {scores}" for name, scores in summary.final.items())
    left = elapsed / done * (runs - done)
    name = config.label or config.method
    return f"{name} s{config.seed}: {networks}  ({done} of {runs} runs, {left:.0f} s left)"


def cancel_pending(runs: Sequence[Future[RunResult]]) -> None:
    """Cancel the runs that have not started; running ones get the signal too, and save."""
    for run in runs:
        run.cancel()
