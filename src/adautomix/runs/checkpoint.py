"""Checkpoints: written beside and renamed, checked by hash, read without running code in them.

`checkpoints/last` is the newest, `checkpoints/previous` the one before, `checkpoints/best` that of
the best evaluation, `checkpoints/epoch-0005` one that was asked for (`--keep-every`). Each folder
holds `weights.safetensors` (student, teacher, method), `state.pt` (optimizer, counters, meters;
nothing in one that is kept for its weights) and `manifest.json` (hashes and step).
"""

import errno
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from adautomix.errors import RunError, UsageError
from adautomix.files import atomic_folder

FILES = ("weights.safetensors", "state.pt")


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on as if it had never stopped.

    Attributes:
        step: optimizer steps done.
        weights: named tensors; the part before the first dot says whose they are.
        state: everything else, plain data and tensors.
    """

    step: int
    weights: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, owner: str) -> dict[str, Tensor]:
        """The state dict of "student", "teacher" or "method"."""
        prefix = owner + "."
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.weights.items()
            if name.startswith(prefix)
        }


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Say which folder could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"no space left to write {folder}: free some, then `adautomix resume {folder}`; "
            "the checkpoint before is intact"
        ) from None


def save_checkpoint(
    run: Path, checkpoint: Checkpoint, *, best: bool = False, kept: str | None = None
) -> None:
    """Write `last`, keeping the one before as `previous`, and others too where asked.

    Args:
        run: the run folder.
        checkpoint: what to write.
        best: write `best` too.
        kept: also keep the weights for good under this name, see `epoch_checkpoint_name`.

    Raises:
        RunError: the disk is full; older checkpoints are as they were.
    """
    folder = run / "checkpoints"
    last, previous = folder / "last", folder / "previous"
    with explain_full_disk(run), atomic_folder(last, backup=previous) as fresh:
        write_files(fresh, checkpoint)
        if best:
            with atomic_folder(folder / "best") as copy:
                shutil.copytree(fresh, copy, dirs_exist_ok=True)
        if kept is not None:
            # Without the training state: these weights are evaluated, never resumed from.
            with atomic_folder(folder / kept) as weights_only:
                write_files(weights_only, replace(checkpoint, state={}))


def write_files(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the files of one checkpoint to a folder, the manifest last."""
    # write_bytes reports a full disk as an OSError; torch.save and save_file raise other errors.
    state = io.BytesIO()
    torch.save(checkpoint.state, state)
    weights = {name: tensor.contiguous() for name, tensor in checkpoint.weights.items()}
    for name, content in zip(FILES, (save(weights), state.getvalue()), strict=True):
        (folder / name).write_bytes(content)
    manifest = {"step": checkpoint.step, "sha256": {n: file_hash(folder / n) for n in FILES}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def epoch_checkpoint_name(epoch: int) -> str:
    """What the checkpoint kept after so many epochs is called."""
    return f"epoch-{epoch:04d}"


def kept_epochs(run: Path) -> list[int]:
    """After which epochs a checkpoint was kept, ascending."""
    names = [path.name for path in (run / "checkpoints").glob("epoch-*")]
    return sorted(int(name[6:]) for name in names if name[6:].isdigit())


def checkpoint_names(run: Path) -> list[str]:
    """The checkpoints of a run that can be looked at, the kept ones first."""
    folder = run / "checkpoints"
    kept = [epoch_checkpoint_name(epoch) for epoch in kept_epochs(run)]
    return kept + [name for name in ("best", "last") if (folder / name).is_dir()]


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(folder: Path) -> Checkpoint:
    """One checkpoint folder.

    Raises:
        RunError: it is missing or damaged; the file is named.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, expected in manifest["sha256"].items():
            if file_hash(folder / name) != expected:
                raise RunError(f"damaged checkpoint: {folder / name} is not what was written")
        state = torch.load(folder / FILES[1], map_location="cpu", weights_only=True)
        return Checkpoint(manifest["step"], load_file(folder / FILES[0]), state)
    except RunError:
        raise
    except Exception as error:  # there is no end to what readers raise on damaged files
        raise RunError(f"damaged checkpoint: {folder} ({type(error).__name__}: {error})") from None


def resumable_checkpoints(run: Path) -> list[Path]:
    """The folders that a run can go on from, the newest first."""
    folders = (run / "checkpoints" / name for name in ("last", "previous"))
    return [folder for folder in folders if folder.exists()]


def move_damaged_last(run: Path) -> None:
    """Put a damaged `last` out of the way, so that the next save does not take it for whole."""
    damaged = run / "checkpoints" / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    (run / "checkpoints" / "last").rename(damaged)


def load_checkpoint(run: Path) -> tuple[Checkpoint, str]:
    """The newest checkpoint that is whole, and a line to tell the user ("" if nothing is wrong).

    Raises:
        UsageError: the run has none yet.
        RunError: all are damaged.
    """
    present = resumable_checkpoints(run)
    if not present:
        raise UsageError(f"{run} has no checkpoint yet: start it again with another --out")
    problem = ""
    for folder in present:
        try:
            return read_checkpoint(folder), problem and f"{problem}; going on from {folder}"
        except RunError as error:
            problem = problem or str(error)
    raise RunError(problem)
