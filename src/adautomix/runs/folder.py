"""The run folder: settings, metrics, and the summary of a finished run."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from adautomix.config import TrainConfig, make_config, read_yaml
from adautomix.config.schema import DataSettings
from adautomix.data.split_record import SplitRecord, read_record, write_record
from adautomix.errors import UsageError, command_text
from adautomix.files import TEMPORARY_SUFFIX, atomic_write, flush_to_disk, read_json
from adautomix.runs.checkpoint import Checkpoint, newest_manifest, resumable_checkpoints
from adautomix.runs.lock import LOCK
from adautomix.runs.records import (
    append_row,
    changed_setting,
    check_run_folder,
    read_metrics,
    read_summary,
    write_metrics,
    write_summary,
)
from adautomix.runs.schema import DataInfo, Row, Summary

LOGGER_IDS = "loggers.json"
"""File with the names that services such as MLflow gave to a run."""

UNSAVED = {
    "config.yaml",
    "data.json",
    "data_summary.json",
    "splits.jsonl.gz",
    "metrics.jsonl",
    "samples",
    "tensorboard",
    "wandb",
    LOGGER_IDS,
    LOCK,
}
"""What a run folder can hold before its first checkpoint."""

WRONG_PHOTOS = "wrong"
"""Folder of the pictures of images that the network got wrong, within a run folder."""


class RunFolder:
    """Paths and files of one run: make a new folder with `create`, find one with `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.yaml"
        self.data_path = path / "data.json"
        self.metrics_path = path / "metrics.jsonl"
        self.summary_path = path / "summary.json"
        self.predictions_path = path / "predictions.safetensors"
        self.samples = path / "samples"

    @classmethod
    def create(cls, config: TrainConfig, path: Path | None = None) -> "RunFolder":
        """Create a new folder with a `config.yaml` of the resolved settings.

        What a run left that was stopped before its first checkpoint is deleted: nothing in it can
        be used.

        Args:
            config: the settings.
            path: the folder, as `pick_folder` gives it; None picks it now.

        Raises:
            UsageError: the folder that the settings name is not empty.
        """
        path = path or pick_folder(config)
        check_free(path)
        delete_unsaved(path)
        folder = cls(path)
        folder.write_config(config.resolved() | {"out": str(path)})
        flush_to_disk(path.parent)
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Find the folder of an existing run.

        Raises:
            UsageError: there is no run folder at `path`.
        """
        check_run_folder(path)
        return cls(path)

    def config(self) -> TrainConfig:
        """The settings that the run was started with.

        Raises:
            UsageError: `config.yaml` is damaged, or a setting in it is missing or not valid.
        """
        values = read_yaml(self.config_path, self._restore_hint())
        try:
            config = make_config(values)
        except UsageError as error:
            raise UsageError(f"{self.config_path}: {error}: {self._restore_hint()}") from None
        if lost := self._lost_setting(values, config):
            raise UsageError(f"{self.config_path} lacks {lost}: {self._restore_hint()}")
        return config

    def _lost_setting(self, values: dict[str, Any], config: TrainConfig) -> str:
        """A setting that `config.yaml` lacks, and whose default is not what the run had; or ""."""
        manifest = newest_manifest(self.path)
        trained = manifest["settings"] if manifest else {}
        if not trained.keys() - values.keys():
            return ""
        found = config.resolved()
        lost = (name for name in trained if name not in values)
        return next((name for name in lost if found.get(name) != trained[name]), "")

    def _restore_hint(self) -> str:
        """What to do about a damaged `config.yaml` or `data.json`."""
        if newest_manifest(self.path):
            return f"{command_text('resume', self.path)} restores it from the last checkpoint"
        return "start the run again with the same --out"

    def write_config(self, settings: dict[str, Any]) -> None:
        """Write `config.yaml`."""
        with atomic_write(self.config_path) as temporary:
            temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def write_data_info(self, info: dict[str, Any]) -> None:
        """Write `data.json`: what prediction needs to know about the data, see `data_info`."""
        with atomic_write(self.data_path) as temporary:
            temporary.write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")

    def data_info(self) -> dict[str, Any]:
        """The content of `data.json`: classes, image size, normalization and image counts.

        Raises:
            UsageError: the file is missing or damaged.
        """
        fields = read_json(self.data_path, self._restore_hint())
        try:
            return DataInfo.model_validate(fields).model_dump()
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(map(str, problem["loc"])) or "content"
            raise UsageError(
                f"{self.data_path} has a wrong {name}: {problem['msg']}: {self._restore_hint()}"
            ) from None

    def restore_damaged(self) -> list[str]:
        """Restore a damaged `config.yaml` or `data.json` from the newest intact checkpoint.

        A file that can be read is left alone, even if it was edited.

        Returns:
            A line about each file that was restored.
        """
        manifest = newest_manifest(self.path)
        restored = []
        for path, read, key, write in (
            (self.config_path, self.config, "settings", self.write_config),
            (self.data_path, self.data_info, "data_info", self.write_data_info),
        ):
            try:
                read()
            except UsageError as error:
                if not manifest or not manifest[key]:
                    raise
                write(manifest[key])
                reason = str(error).removesuffix(f": {self._restore_hint()}")
                restored.append(f"{reason}: restored {path.name} from the last checkpoint")
        return restored

    def check_unchanged(self, checkpoint: Checkpoint) -> None:
        """Check that settings and data are those that a checkpoint of this run was trained with.

        Checkpoints of older versions do not say what they were trained with.

        Raises:
            UsageError: a setting or a fact about the data was changed; the message names both.
        """
        if checkpoint.settings:
            difference = changed_setting(checkpoint.settings, self.config().resolved())
            if difference:
                raise UsageError(
                    f"{self.config_path} has {difference}: set it back, or train another run "
                    "with another --out"
                )
        if difference := changed_data(checkpoint.data_info, self.data_info()):
            raise UsageError(
                f"{self.data_path} has {difference}: delete the file, and "
                f"{command_text('resume', self.path)} restores it"
            )

    def check_same_data(self, info: dict[str, Any]) -> None:
        """Check that the data set is still the one that the run was started with.

        Args:
            info: the facts about the data set as it is now, see `data_info`.

        Raises:
            UsageError: the data set has changed.
        """
        if difference := changed_data(self.data_info(), info):
            raise UsageError(
                f"the data set of {self.path} has changed, it now has {difference}: restore it, or "
                "train another run with another --out"
            )

    def write_splits(self, record: SplitRecord) -> None:
        """Write which images are in which split."""
        write_record(record, self.path)

    def splits(self, root: Path | None = None) -> SplitRecord | None:
        """The splits that the run uses; None for a run that did not record them.

        Args:
            root: where the images are now, if their folder was moved or copied.

        Raises:
            UsageError: images have vanished or changed since the run started.
        """
        return read_record(self.path, root)

    def log(self, row: Row) -> None:
        """Append a row to `metrics.jsonl`."""
        append_row(self.metrics_path, row)

    def rows(self) -> list[Row]:
        """The rows logged so far, see `read_metrics`."""
        return read_metrics(self.metrics_path)

    def flush_rows(self) -> None:
        """Flush the rows logged so far to the disk, before a checkpoint relies on them."""
        if self.metrics_path.exists():
            flush_to_disk(self.metrics_path)

    def truncate_after(self, step: int) -> None:
        """Delete the rows after a step, from which the run is about to be resumed."""
        write_metrics(self.metrics_path, [row for row in self.rows() if row.step <= step])

    def write_summary(self, summary: Summary) -> None:
        """Write `summary.json`."""
        write_summary(self.summary_path, summary)

    def summary(self) -> Summary | None:
        """The content of `summary.json`, or None while the run is unfinished."""
        return read_summary(self.summary_path)


def changed_data(trained: dict[str, Any], found: dict[str, Any]) -> str:
    """Describe the first fact about the data that is not as recorded; "" if there is none.

    Args:
        trained: the facts in a record; an empty one, of an older version, says nothing.
        found: the facts to compare.
    """
    if not trained:
        return ""
    trained, found = (DataInfo.model_validate(facts).model_dump() for facts in (trained, found))
    # A changed number of images also changes their mean, which would say less.
    for name in sorted(trained, key=lambda name: name in ("mean", "std")):
        expected, value = trained[name], found.get(name)
        unknown = name not in found or (name == "preparation" and expected is None)
        if name == "bad_files" or unknown or same_fact(expected, value):
            continue
        if name == "classes":
            return "other classes than the run was trained with"
        return f"{name} = {value}, but the run was trained with {expected}"
    return ""


def same_fact(expected: Any, value: Any) -> bool:
    """Whether two facts about the data are equal; means of channels up to rounding."""
    if isinstance(expected, float) and isinstance(value, float):
        return math.isclose(expected, value, rel_tol=1e-6)
    if isinstance(expected, list | tuple) and isinstance(value, list | tuple):
        return len(expected) == len(value) and all(map(same_fact, expected, value))
    return bool(expected == value)


def pick_folder(config: TrainConfig) -> Path:
    """The folder to write a new run to.

    Raises:
        UsageError: the folder that the settings name is not empty.
    """
    path = config.out or unused_folder(config)
    check_free(path)
    return path


def check_free(path: Path) -> None:
    """Check that a new run can be written to a folder.

    Raises:
        UsageError: it is a file, or holds something other than a run that was stopped before its
            first checkpoint.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"{path} is a file: choose another --out")
    if is_empty(path) or is_unsaved(path):
        return
    if not (path / "config.yaml").exists():
        raise UsageError(f"{path} holds files that are not of a run: choose another --out")
    raise UsageError(
        f"{path} exists: choose another --out, or continue it with {command_text('resume', path)}"
    )


def is_empty(path: Path) -> bool:
    """Whether a folder holds nothing but perhaps the lock of a run."""
    return all(entry.name == LOCK for entry in path.iterdir())


def is_unsaved(path: Path) -> bool:
    """Whether a folder holds a run that was stopped before its first checkpoint, and nothing else.

    Such a run can only be started again. What somebody else put there must not be deleted.
    """
    names = {entry.name.removesuffix(TEMPORARY_SUFFIX) for entry in path.iterdir()}
    if not names <= UNSAVED | {"checkpoints"} or (path / "checkpoints" / "damaged").exists():
        return False
    return not resumable_checkpoints(path) and was_started(path)


def was_started(path: Path) -> bool:
    """Whether `train` wrote the `config.yaml` of a folder: completely, or not to its end."""
    config = path / "config.yaml"
    if not config.is_file() or not config.stat().st_size:
        return config.exists() or config.with_name(config.name + TEMPORARY_SUFFIX).exists()
    try:
        # A file that somebody wrote to start runs from does not list every setting.
        return read_yaml(config, "").keys() >= {*DataSettings.model_fields, "out", "seed"}
    except UsageError:
        return (path / "data.json").exists()


def delete_unsaved(path: Path) -> None:
    """Delete what a run left that was stopped before its first checkpoint."""
    if not path.is_dir():
        return
    # The settings last: they mark the folder as a run if this is interrupted.
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name.startswith("config.yaml")):
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def unused_folder(config: TrainConfig) -> Path:
    """The first of `runs/<data>-<method>-s<seed>`, the same with `-2`, … that does not exist."""
    name = Path(config.data.rpartition(":")[2]).name  # without "hf:" or "python:"
    base = Path("runs") / f"{name}-{config.method}-s{config.seed}"
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path
