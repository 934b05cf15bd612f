"""Tell whether a run folder is new, stopped or finished, and remove a run to start it over."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from adautomix.config import TrainConfig, make_config
from adautomix.errors import AdAutoMixError, UsageError, command_text
from adautomix.runs.checkpoint import newest_manifest, read_checkpoint, resumable_checkpoints
from adautomix.runs.folder import UNSAVED, WRONG_PHOTOS, RunFolder, check_free, is_unsaved
from adautomix.runs.lock import LOCK
from adautomix.runs.records import FREE_SETTINGS
from adautomix.runs.schema import Summary

RunState = Literal["new", "stopped", "finished"]

WRITTEN = UNSAVED | {
    "checkpoints",
    "evaluation",
    "evaluation.json",
    "predictions.safetensors",
    "report.html",
    "summary.json",
    WRONG_PHOTOS,
}
"""What this package writes into a run folder."""


def run_state(path: Path) -> RunState:
    """Return what training into a folder means: starting a run, continuing it, or nothing.

    Raises:
        UsageError: the folder holds something other than a run, or its summary is damaged.
    """
    if finished_summary(path) is not None:
        return "finished"
    if (path / "config.yaml").exists() and resumable_checkpoints(path):
        return "stopped"
    check_free(path)
    return "new"


def finished_summary(path: Path) -> Summary | None:
    """Return the summary of a finished run; None if there is something left to do.

    Raises:
        UsageError: the summary is damaged.
    """
    folder = RunFolder(path)
    if not folder.config_path.exists() or not folder.predictions_path.exists():
        return None
    return folder.summary()


def is_damaged(path: Path) -> bool:
    """Return whether a finished run lacks something that `resume` restores.

    Raises:
        UsageError: its settings or the facts about its data were edited.
    """
    folder = RunFolder(path)
    newest = next(iter(resumable_checkpoints(path)), None)
    try:
        folder.config()
        folder.data_info()
        checkpoint = read_checkpoint(newest) if newest else None
    except AdAutoMixError:
        return True
    if checkpoint is not None:
        folder.check_unchanged(checkpoint)
    return False


def check_same_settings(path: Path, config: TrainConfig) -> None:
    """Check that a run was started with these settings.

    Settings that only say where and how fast a run is computed may differ.

    Raises:
        UsageError: other settings; the message names each with its old and new value.
    """
    changes = list(setting_changes(trained_settings(path), config.resolved()))
    if changes:
        listed = ", ".join(f"{name} was {old} and is now {new}" for name, old, new in changes)
        raise UsageError(
            f"{path} was run with other settings: {listed}. Repeat the settings to continue it, "
            "choose another --out, or start over with --fresh"
        )


def trained_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a run, from its last checkpoint if `config.yaml` is damaged.

    Raises:
        UsageError: `config.yaml` is damaged and there is no intact checkpoint.
    """
    try:
        return RunFolder.open(path).config().resolved()
    except UsageError:
        manifest = newest_manifest(path)
        if manifest is None or not manifest["settings"]:
            raise
        return make_config(manifest["settings"]).resolved()


def setting_changes(
    trained: Mapping[str, Any], found: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, old value and new value of each setting that decides results and differs."""
    free = FREE_SETTINGS - {"data"}
    if trained["method"] != found["method"]:  # then their settings cannot be compared
        free = free | {trained["method"], found["method"]}
    for name in sorted({*trained, *found} - free):
        yield from value_changes(name, trained.get(name), found.get(name))


def value_changes(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the differences of one setting; those inside a group are named one by one."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from value_changes(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield name, old, new


def remove_run(path: Path) -> str:
    """Delete the run in a folder, so that another can be written there.

    Returns:
        A line that says what was removed; "" if there was nothing.

    Raises:
        UsageError: the folder holds something that no run wrote; nothing was removed.
    """
    if not path.is_dir() or is_unsaved(path) or not holds_anything(path):
        return ""
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in WRITTEN)
    if foreign or not (path / "config.yaml").exists():
        what = f"holds {foreign[0]}, which no run wrote" if foreign else "holds no run"
        raise UsageError(f"{path} {what}: nothing was removed; choose another --out")
    line = f"removed {described_run(path)}"
    # The settings last: they mark the folder as a run if this is interrupted.
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == "config.yaml"):
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return line


def holds_anything(path: Path) -> bool:
    """Return whether a folder holds more than the lock of a run."""
    return any(entry.name != LOCK for entry in path.iterdir())


def described_run(path: Path) -> str:
    """Return a description of a run: where it is, and how far it came."""
    manifest = newest_manifest(path)
    step = f"step {manifest['step']}" if manifest else "no intact checkpoint"
    ended = (path / "summary.json").exists()
    return f"the {'finished' if ended else 'unfinished'} run in {path} ({step})"


def finished_line(path: Path) -> str:
    """Return what to tell somebody who asks for a run that has finished."""
    return (
        f"{path} has finished: nothing was changed; {command_text('report', path)} shows it, and "
        "--fresh of `adautomix train` starts over"
    )
