"""The run folder: settings, metrics, and the summary of a finished run."""

import json
from pathlib import Path
from typing import Any

import yaml

from adautomix.config import TrainConfig, make_config
from adautomix.data.split_record import SplitRecord, read_record, write_record
from adautomix.errors import UsageError
from adautomix.files import atomic_write
from adautomix.runs.records import (
    append_row,
    read_metrics,
    read_summary,
    write_metrics,
    write_summary,
)
from adautomix.runs.schema import Row, Summary


class RunFolder:
    """Paths and files of one run: make a new folder with `create`, find one with `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self.summary_path = path / "summary.json"
        self.samples = path / "samples"

    @classmethod
    def create(cls, config: TrainConfig) -> "RunFolder":
        """Create a new folder with a `config.yaml` of the resolved settings.

        Raises:
            UsageError: the folder that the settings name is not empty.
        """
        path = config.out or unused_folder(config)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(
                f"{path} exists: choose another --out, or continue it with "
                f"`adautomix resume {path}`"
            )
        resolved = config.resolved() | {"out": str(path)}
        with atomic_write(path / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(resolved, sort_keys=False))
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Find the folder of an existing run.

        Raises:
            UsageError: there is no run folder at `path`.
        """
        if not (path / "config.yaml").is_file():
            raise UsageError(f"{path} is not a run folder: it has no config.yaml")
        return cls(path)

    def config(self) -> TrainConfig:
        """The settings that the run was started with."""
        return make_config(yaml.safe_load((self.path / "config.yaml").read_text()))

    def write_data_info(self, info: dict[str, Any]) -> None:
        """Write `data.json`: what prediction needs to know about the data, see `data_info`."""
        with atomic_write(self.path / "data.json") as temporary:
            temporary.write_text(json.dumps(info, indent=1) + "\n")

    def data_info(self) -> dict[str, Any]:
        """The content of `data.json`: classes, image size, normalization and image counts."""
        info: dict[str, Any] = json.loads((self.path / "data.json").read_text())
        return info | {name: tuple(info[name]) for name in ("mean", "std")}

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

    def truncate_after(self, step: int) -> None:
        """Delete the rows after a step, from which the run is about to be resumed."""
        write_metrics(self.metrics_path, [row for row in self.rows() if row.step <= step])

    def write_summary(self, summary: Summary) -> None:
        """Write `summary.json`."""
        write_summary(self.summary_path, summary)

    def summary(self) -> Summary | None:
        """The content of `summary.json`, or None while the run is unfinished."""
        return read_summary(self.summary_path)


def unused_folder(config: TrainConfig) -> Path:
    """The first of `runs/<data>-<method>-s<seed>`, the same with `-2`, … that does not exist."""
    name = Path(config.data.rpartition(":")[2]).name  # without "hf:" or "python:"
    base = Path("runs") / f"{name}-{config.method}-s{config.seed}"
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path
