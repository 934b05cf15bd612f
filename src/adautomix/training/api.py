"""What Python users call to compare methods."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adautomix.config import TrainConfig
from adautomix.training import compare as runs
from adautomix.training.engines.base import EngineChoice, EngineName


def compare(
    config: TrainConfig | Mapping[str, Any],
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("vanilla", "adautomix"),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    out: Path | str = "runs/compare",
    jobs: int | None = None,
    engine: EngineName = "local",
    engine_options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> list[Path]:
    """Train several methods, or variants of one, with several seeds.

    Runs that exist already are continued, not repeated, so that an interrupted comparison can be
    called again.

    Args:
        config: settings that all runs share.
        methods: names of methods; or variants by name, each with the settings that it changes.
        seeds: one run per method and seed.
        out: folder of the run folders `<method>-s<seed>`.
        jobs: runs at the same time; default: one per core on the CPU, one on a GPU; with Ray or
            Slurm as many as fit.
        engine: what computes the runs: processes on this machine, a Ray cluster (its address is
            in `RAY_ADDRESS`), or Slurm.
        engine_options: options of `@ray.remote` such as num_gpus, or submitit parameters such as
            slurm_partition.
        quiet: show no progress.

    Returns:
        The run folders.

    Raises:
        UsageError: there is nothing to run, or a run in `out` has other settings.
        RunError: a run failed; all others were trained.

    Example:
        runs = adautomix.compare({"data": "digits", "epochs": 5}, ["vanilla", "mixup"], seeds=[0])
    """
    shared = changed_settings(config) if isinstance(config, TrainConfig) else dict(config)
    variants = methods if isinstance(methods, Mapping) else runs.method_variants(methods)
    choice = EngineChoice(engine, jobs, engine_options or {})
    return runs.compare(
        shared, variants=variants, seeds=seeds, out=Path(out), engine=choice, quiet=quiet
    )


def changed_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that somebody set, without those that each run of a comparison sets itself."""
    own = config.model_fields_set - {"method", "seed", "out"}
    return config.model_dump(mode="json", exclude_unset=True, include=own)
