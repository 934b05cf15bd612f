"""Train one large run on several GPUs of a Ray cluster, with Ray Train.

    python ray_train.py --workers 8 --recipe imagenet-r50/adautomix@100 out=/shared/runs/r50

Settings are written NAME=VALUE, as in a file of settings; `out` names a folder that all machines
share. When a machine or process is lost, Ray Train starts all workers again, and they continue from
the last checkpoint. For many small runs, `adautomix compare --engine ray` is simpler.
"""

import argparse
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train_worker(given: dict[str, Any]) -> None:
    """Train as one of several processes; Ray Train has set up the process group."""
    import adautomix

    adautomix.train(adautomix.load_config(recipe=given["recipe"], flags=given["settings"]))


def run(
    settings: dict[str, str],
    *,
    recipe: str | None = None,
    workers: int = 8,
    use_gpu: bool = True,
    storage: str | None = None,
) -> None:
    """Start the workers and wait until the run has finished."""
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"recipe": recipe, "settings": settings},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=RunConfig(storage_path=storage, failure_config=FailureConfig(max_failures=3)),
    )
    trainer.fit()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="+", metavar="NAME=VALUE", help="Settings of the run.")
    parser.add_argument("--recipe", help="Packaged recipe to start from.")
    parser.add_argument("--workers", type=int, default=8, help="Number of processes.")
    parser.add_argument("--cpu", action="store_true", help="Train on CPUs.")
    parser.add_argument("--storage", help="Folder or bucket for the logs of Ray Train itself.")
    given = parser.parse_args()
    pairs = (setting.partition("=") for setting in given.settings)
    run(
        {name: value for name, _, value in pairs},
        recipe=given.recipe,
        workers=given.workers,
        use_gpu=not given.cpu,
        storage=given.storage,
    )
