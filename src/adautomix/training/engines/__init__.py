"""Where the runs of a comparison, table or search are computed: this machine, Ray or Slurm."""

from pathlib import Path

from adautomix.training.engines.base import Ended, Engine, EngineChoice, Job
from adautomix.training.engines.local import LocalEngine
from adautomix.training.engines.ray import RayEngine
from adautomix.training.engines.slurm import SlurmEngine

__all__ = ["Ended", "Engine", "EngineChoice", "Job", "open_engine"]


def open_engine(choice: EngineChoice, parallel: int, folder: Path) -> Engine:
    """Return a new engine.

    Args:
        choice: which engine, and its options.
        parallel: number of jobs at the same time; 0 leaves it to the scheduler of Ray or Slurm.
        folder: where an engine may keep logs.

    Raises:
        UsageError: its package is not installed, or it cannot be reached.
    """
    if choice.name == "ray":
        return RayEngine(parallel, choice.options)
    if choice.name == "slurm":
        return SlurmEngine(parallel, choice.options, folder)
    return LocalEngine(parallel)
