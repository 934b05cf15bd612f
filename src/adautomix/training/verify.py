"""Verify that a run resumes exactly: train its last steps again and compare hashes."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.runs.build import load_images
from adautomix.runs.checkpoint import Checkpoint, read_checkpoint
from adautomix.runs.folder import RunFolder
from adautomix.training.loop import Trainer


@dataclass(frozen=True)
class Verification:
    """Hashes of a run at its last checkpoint, and of a second run that reached the same step.

    Attributes:
        start: step that the second run was resumed from.
        step: step at which the two are compared.
        rows: for each compared part its name, the hash in the run and the hash in the second run.
    """

    start: int
    step: int
    rows: list[tuple[str, str, str]]

    @property
    def equal(self) -> bool:
        """Whether all hashes are equal."""
        return all(original == resumed for _, original, resumed in self.rows)


def verify_resume(path: Path, *, quiet: bool = True) -> Verification:
    """Resume from the checkpoint before the last (or start anew) and train up to the last.

    The run folder itself is not changed.

    Args:
        path: the run folder.
        quiet: show no progress.

    Raises:
        UsageError: there is no run at `path`, or it has no checkpoint yet.
        RunError: a checkpoint is damaged.
    """
    run = RunFolder.open(path)
    if not (path / "checkpoints" / "last").exists():
        raise UsageError(f"{path} has no checkpoint yet: nothing to verify")
    last = read_checkpoint(path / "checkpoints" / "last")
    # The repeated steps are not logged anywhere else.
    config = run.config().model_copy(update={"log": (), "tensorboard": False})
    data = load_images(config, progress=not quiet, record=run.splits(), recorded=run.data_info())
    with tempfile.TemporaryDirectory() as scratch:
        copy = RunFolder(Path(scratch))
        if run.metrics_path.exists():
            shutil.copy(run.metrics_path, copy.metrics_path)
        trainer = Trainer(config, data, copy, quiet=quiet)
        previous = previous_checkpoint(path, last.step)
        if previous is None:
            copy.truncate_after(0)
        else:
            trainer.restore(previous)
        start = trainer.step
        trainer.fit(until=last.step)
        original = fingerprint(trainer, last, run)
        resumed = fingerprint(trainer, trainer.checkpoint(), copy)
    rows = [(name, original[name], resumed[name]) for name in original]
    return Verification(start, last.step, rows)


def previous_checkpoint(path: Path, step: int) -> Checkpoint | None:
    """The checkpoint `previous` if it exists and is older than `step`, else None."""
    folder = path / "checkpoints" / "previous"
    if not folder.exists():
        return None
    checkpoint = read_checkpoint(folder)
    return checkpoint if checkpoint.step < step else None


def fingerprint(trainer: Trainer, checkpoint: Checkpoint, run: RunFolder) -> dict[str, str]:
    """Hashes of everything that determines how a run continues, and of the metrics it logged."""
    hashes = {
        owner: tensor_hash(checkpoint.part(owner)) for owner in ("student", "teacher", "method")
    }
    optimizers = {
        name: checkpoint.state[name]["state"]
        for name in ("optimizer", "method_optimizer")
        if name in checkpoint.state
    }
    hashes["optimizer"] = tensor_hash(flatten(optimizers))
    hashes["next batch"] = tensor_hash(next_batch(trainer, checkpoint.step))
    logged = [row.without_timing() for row in run.rows() if row.step <= checkpoint.step]
    hashes["metrics"] = hashlib.sha256(json.dumps(logged).encode()).hexdigest()
    return hashes


def next_batch(trainer: Trainer, step: int) -> dict[str, Tensor]:
    """The batch that the run would train on next, and the random parameters of its mixes."""
    epoch, done = divmod(step, trainer.batches.steps_per_epoch)
    batch = next(trainer.batches.epoch(epoch, start=done))
    images = trainer.batches.augment(batch)
    params = trainer.method.training_params(images.shape, step)
    return {"images": images, "labels": batch.labels, **flatten(vars(params))}


def flatten(nested: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    """The tensors in nested dictionaries, named by their path."""
    flat: dict[str, Tensor] = {}
    for name, value in nested.items():
        if isinstance(value, Tensor):
            flat[f"{prefix}{name}"] = value
        elif isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
    return flat


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        content = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy().tobytes())
    return digest.hexdigest()
