"""Save and load checkpoints: written atomically, verified by hash, loaded without running code.

`checkpoints/last` is the newest one, `checkpoints/previous` the one before it, `checkpoints/best`
the one of the best evaluation, and `checkpoints/epoch-0005` one that `keep_every` asked for. Each
folder holds `weights.safetensors` (student, teacher and method), `state.pt` (optimizer, counters
and running means; empty in a checkpoint kept for its weights) and `manifest.json` (step, hashes).
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
    """The complete state of a run.

    Attributes:
        step: optimizer steps done.
        weights: tensors by name; a name begins with "student.", "teacher." or "method.".
        state: everything else, in plain Python values and tensors.
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
    """Turn the error of a full disk into one that names the run and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"no space left to write {folder}: free some, then `adautomix resume {folder}`; "
            "the previous checkpoint is intact"
        ) from None


def save_checkpoint(
    run: Path, checkpoint: Checkpoint, *, best: bool = False, kept: str | None = None
) -> None:
    """Save a checkpoint as `last`; the old `last` becomes `previous`.

    Args:
        run: the run folder.
        checkpoint: the state to save.
        best: save it as `best` too.
        kept: keep its weights under this name too, see `epoch_checkpoint_name`; None does not.

    Raises:
        RunError: the disk is full; the older checkpoints are intact.
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
    """The name of a checkpoint that is kept after an epoch, such as "epoch-0005"."""
    return f"epoch-{epoch:04d}"


def kept_epochs(run: Path) -> list[int]:
    """The epochs after which a checkpoint was kept, in ascending order."""
    names = [path.name for path in (run / "checkpoints").glob("epoch-*")]
    return sorted(int(name[6:]) for name in names if name[6:].isdigit())


def checkpoint_names(run: Path) -> list[str]:
    """The names of the checkpoints of a run, those kept per epoch first."""
    folder = run / "checkpoints"
    kept = [epoch_checkpoint_name(epoch) for epoch in kept_epochs(run)]
    return kept + [name for name in ("best", "last") if (folder / name).is_dir()]


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        RunError: it is missing or damaged; the message names the file.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, expected in manifest["sha256"].items():
            if file_hash(folder / name) != expected:
                raise RunError(f"damaged checkpoint: {folder / name} does not match its hash")
        state = torch.load(folder / FILES[1], map_location="cpu", weights_only=True)
        return Checkpoint(manifest["step"], load_file(folder / FILES[0]), state)
    except RunError:
        raise
    except Exception as error:  # readers raise almost any exception on damaged files
        raise RunError(f"damaged checkpoint: {folder} ({type(error).__name__}: {error})") from None


def resumable_checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders that a run can be resumed from, the newest first."""
    folders = (run / "checkpoints" / name for name in ("last", "previous"))
    return [folder for folder in folders if folder.exists()]


def move_damaged_last(run: Path) -> None:
    """Rename a damaged `last` to `damaged`, so that the next save does not make it `previous`."""
    damaged = run / "checkpoints" / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    (run / "checkpoints" / "last").rename(damaged)


def load_checkpoint(run: Path) -> tuple[Checkpoint, str]:
    """Load the newest undamaged checkpoint of a run.

    Returns:
        The checkpoint, and a warning to show the user, which is "" if none is damaged.

    Raises:
        UsageError: the run has no checkpoint yet.
        RunError: every checkpoint is damaged.
    """
    folders = resumable_checkpoints(run)
    if not folders:
        raise UsageError(f"{run} has no checkpoint yet: start the run again with another --out")
    problem = ""
    for folder in folders:
        try:
            return read_checkpoint(folder), problem and f"{problem}; resuming from {folder}"
        except RunError as error:
            problem = problem or str(error)
    raise RunError(problem)
