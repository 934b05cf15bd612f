"""Save and load checkpoints: written atomically, verified by hash, loaded without running code.

`checkpoints/last` is the newest one, `checkpoints/previous` the one before it, `checkpoints/best`
the one of the best evaluation, and `checkpoints/epoch-0005` one that `keep_every` asked for. Each
folder holds `weights.safetensors` (student, teacher and method), `state.pt` (optimizer, counters
and running means; empty in a checkpoint kept for its weights) and `manifest.json`: the step, the
hashes of the other files, the settings and facts about the data that the run was trained with, and
a checksum of all this.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save
from torch import Tensor

from adautomix.errors import RunError, UsageError, command_text
from adautomix.files import atomic_folder, explain_full_disk, json_digest, link_files, read_json

FILES = ("weights.safetensors", "state.pt")
MANIFEST = "manifest.json"
MANIFEST_VERSION = 2  # version 1 had only the step and the hashes


@dataclass(frozen=True)
class Checkpoint:
    """The complete state of a run.

    Attributes:
        step: optimizer steps done.
        weights: tensors by name; a name begins with "student.", "teacher." or "method.".
        state: everything else, in plain Python values and tensors.
        settings: the settings of the run, as `config.yaml` should hold them; empty if the
            checkpoint was written before they were recorded.
        data_info: the facts about the data, as `data.json` should hold them; likewise.
    """

    step: int
    weights: dict[str, Tensor]
    state: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    data_info: dict[str, Any] = field(default_factory=dict)

    def part(self, owner: str) -> dict[str, Tensor]:
        """The state dict of "student", "teacher" or "method"."""
        prefix = owner + "."
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.weights.items()
            if name.startswith(prefix)
        }


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
    remedy = f"{command_text('resume', run)}; the previous checkpoint is intact"
    with explain_full_disk(run, remedy), atomic_folder(last, backup=previous) as fresh:
        write_files(fresh, checkpoint)
        if best:
            with atomic_folder(folder / "best") as second_name:
                link_files(fresh, second_name)
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
    manifest = {
        "version": MANIFEST_VERSION,
        "step": checkpoint.step,
        "sha256": {name: file_hash(folder / name) for name in FILES},
        "settings": checkpoint.settings,
        "data_info": checkpoint.data_info,
    }
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint with its checksum."""
    text = json.dumps({**manifest, "checksum": json_digest(manifest)}, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest of a checkpoint, without reading the other files.

    Returns:
        The fields of the current version, without the checksum.

    Raises:
        RunError: it is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except UsageError as error:
        raise RunError(f"damaged checkpoint: {error}") from None
    problem = manifest_problem(manifest)
    if problem:
        raise RunError(f"damaged checkpoint: {path} {problem}")
    manifest.pop("checksum", None)
    return {"settings": {}, "data_info": {}, **manifest}


def manifest_problem(manifest: Any) -> str:
    """What is wrong with the content of a manifest; "" if nothing is."""
    if not isinstance(manifest, dict):
        return "is not a JSON object"
    fields = {name: value for name, value in manifest.items() if name != "checksum"}
    if (version := fields.get("version", 1)) not in (1, MANIFEST_VERSION):
        return f"has version {version!r}, which only a newer adautomix can read"
    if (version != 1 or "checksum" in manifest) and json_digest(fields) != manifest.get("checksum"):
        return "does not match its checksum"
    hashes = fields.get("sha256")
    if not isinstance(hashes, dict) or set(hashes) != set(FILES):
        return f"does not list the hashes of {' and '.join(FILES)}"
    if type(fields.get("step")) is not int or fields["step"] < 0:
        return "does not say at which step it was written"
    return ""


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
    return kept + [name for name in ("best", "previous", "last") if (folder / name).is_dir()]


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        RunError: it is missing or damaged; the message names the file.
    """
    manifest = read_manifest(folder)
    try:
        for name in FILES:
            if file_hash(folder / name) != manifest["sha256"][name]:
                raise RunError(f"damaged checkpoint: {folder / name} does not match its hash")
        state = torch.load(folder / FILES[1], map_location="cpu", weights_only=True)
        weights = load_tensors(folder / FILES[0])
    except RunError:
        raise
    except Exception as error:  # readers raise almost any exception on damaged files
        raise RunError(f"damaged checkpoint: {folder} ({type(error).__name__}: {error})") from None
    return Checkpoint(manifest["step"], weights, state, manifest["settings"], manifest["data_info"])


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, whatever bytes its path has."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # which safetensors cannot open
        return load(path.read_bytes())
    return load_file(path)


def resumable_checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders that a run can be resumed from, the newest first."""
    folders = (run / "checkpoints" / name for name in ("last", "previous"))
    return [folder for folder in folders if folder.exists()]


def move_damaged_last(run: Path) -> None:
    """Rename a damaged `last` to `damaged`, so that the next save does not make it `previous`."""
    damaged = run / "checkpoints" / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    (run / "checkpoints" / "last").rename(damaged)


def newest_manifest(run: Path) -> dict[str, Any] | None:
    """The manifest of the newest checkpoint of which it is intact; None if there is none."""
    for folder in resumable_checkpoints(run):
        try:
            return read_manifest(folder)
        except RunError:
            continue
    return None


def no_checkpoint_yet(run: Path) -> UsageError:
    """The error about a run that was stopped before its first checkpoint."""
    again = command_text("train", "--config", run / "config.yaml", "--out", run)
    return UsageError(f"{run} has no checkpoint yet: start it again with {again}")


def newest_checkpoint(run: Path) -> Checkpoint:
    """Read the newest checkpoint of a run, to use its weights.

    A damaged one is an error: the one before it holds another network, whose predictions and
    scores would be taken for those of the newest.

    Raises:
        UsageError: the run has no checkpoint yet.
        RunError: the newest checkpoint is damaged.
    """
    folders = resumable_checkpoints(run)
    if not folders:
        raise no_checkpoint_yet(run)
    try:
        return read_checkpoint(folders[0])
    except RunError as error:
        older = "use the checkpoint `previous`, or " if len(folders) > 1 else ""
        raise RunError(
            f"{error}: {older}train it again with {command_text('resume', run)}"
        ) from None


def load_checkpoint(run: Path) -> tuple[Checkpoint, str]:
    """Load the newest undamaged checkpoint of a run, to train on from it.

    Returns:
        The checkpoint, and a warning to show the user, which is "" if none is damaged.

    Raises:
        UsageError: the run has no checkpoint yet.
        RunError: every checkpoint is damaged.
    """
    folders = resumable_checkpoints(run)
    if not folders:
        raise no_checkpoint_yet(run)
    problem = ""
    for folder in folders:
        try:
            return read_checkpoint(folder), problem and f"{problem}; resuming from {folder}"
        except RunError as error:
            problem = problem or str(error)
    raise RunError(f"{problem}: train the run again with another --out")
