"""Proof that a run resumes exactly: train the last stretch again and compare hashes."""

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
    """Hashes of two ways to the same step.

    Attributes:
        start: step that the second way started from.
        step: step at which both are compared.
        rows: (what, hash of the run, hash of the second way).
    """

    start: int
    step: int
    rows: list[tuple[str, str, str]]

    @property
    def equal(self) -> bool:
        """Whether all hashes agree."""
        return all(mine == theirs for _, mine, theirs in self.rows)


def verify_resume(path: Path, *, quiet: bool = True) -> Verification:
    """Resume from the checkpoint before the last (or from the start) and train up to the last.

    Nothing in the run folder changes.

    Raises:
        UsageError: no run there, or no checkpoint yet.
        RunError: a checkpoint is damaged.
    """
    run = RunFolder.open(path)
    if not (path / "checkpoints" / "last").exists():
        raise UsageError(f"{path} has no checkpoint yet: nothing to verify")
    last = read_checkpoint(path / "checkpoints" / "last")
    config = run.config()
    data = load_images(config, progress=not quiet)
    with tempfile.TemporaryDirectory() as scratch:
        copy = RunFolder(Path(scratch))
        if run.metrics_path.exists():
            shutil.copy(run.metrics_path, copy.metrics_path)
        again = Trainer(config, data, copy, quiet=quiet)
        start = previous_checkpoint(path, last.step)
        if start is None:
            copy.truncate_after(0)
        else:
            again.restore(start)
        begun = again.step
        again.fit(until=last.step)
        mine, theirs = fingerprint(again, last, run), fingerprint(again, again.checkpoint(), copy)
    rows = [(name, mine[name], theirs[name]) for name in mine]
    return Verification(begun, last.step, rows)


def previous_checkpoint(path: Path, step: int) -> Checkpoint | None:
    """The checkpoint before the last one, if it was kept and is older."""
    folder = path / "checkpoints" / "previous"
    if not folder.exists():
        return None
    checkpoint = read_checkpoint(folder)
    return checkpoint if checkpoint.step < step else None


def fingerprint(trainer: Trainer, checkpoint: Checkpoint, run: RunFolder) -> dict[str, str]:
    """Hashes of all that decides how a run goes on, and of what it logged."""
    prints = {
        owner: tensor_hash(checkpoint.part(owner)) for owner in ("student", "teacher", "method")
    }
    prints["optimizer"] = tensor_hash(flatten(checkpoint.state["optimizer"]["state"]))
    prints["next batch"] = tensor_hash(next_batch(trainer, checkpoint.step))
    logged = [row.without_timing() for row in run.rows() if row.step <= checkpoint.step]
    prints["metrics"] = hashlib.sha256(json.dumps(logged).encode()).hexdigest()
    return prints


def next_batch(trainer: Trainer, step: int) -> dict[str, Tensor]:
    """The batch that the run would train on next, and how it would be mixed."""
    epoch, done = divmod(step, trainer.batches.steps_per_epoch)
    batch = next(trainer.batches.epoch(epoch, start=done))
    images = trainer.batches.augment(batch)
    params = trainer.method.training_params(images.shape, step)
    return {"images": images, "labels": batch.labels, **flatten(vars(params))}


def flatten(nested: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    """The tensors of nested dictionaries, by path."""
    flat: dict[str, Tensor] = {}
    for name, value in nested.items():
        if isinstance(value, Tensor):
            flat[f"{prefix}{name}"] = value
        elif isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
    return flat


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        plain = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(plain.numpy().tobytes())
    return digest.hexdigest()
