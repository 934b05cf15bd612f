"""Read and write the records of a run folder, and read whole run folders for reports.

This is the only module that reads or writes `metrics.jsonl` and `summary.json`; `runs/schema.py`
declares what they hold.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from numpy.typing import NDArray
from pydantic import ValidationError

from adautomix.errors import UsageError
from adautomix.files import atomic_write
from adautomix.runs.schema import (
    SCHEMA_VERSION,
    EpochRow,
    Row,
    SplitName,
    Summary,
    TrainRow,
    row_adapter,
    upgrade_row,
    upgrade_summary,
)

Kind = TypeVar("Kind", TrainRow, EpochRow)

# ---------------------------------------------------------------------- files


def read_metrics(path: Path) -> list[Row]:
    """Read the rows of a `metrics.jsonl`, in the order of the file; none if there is no file.

    A last line that was cut off by a crash is left out.

    Raises:
        UsageError: a line is not a valid row; the file and the line are named.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line) if line else None
        except ValueError:
            if number == len(lines):  # without a newline at its end: cut off
                break
            raise UsageError(f"{path}, line {number}, is not valid JSON: delete it") from None
        if fields is not None:
            with _named_errors(f"{path}, line {number},", "correct or delete it"):
                rows.append(row_adapter.validate_python(_current(fields, upgrade_row)))
    return rows


def append_row(path: Path, row: Row) -> None:
    """Append one row to a `metrics.jsonl`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row))


def write_metrics(path: Path, rows: Iterable[Row]) -> None:
    """Replace a `metrics.jsonl` by one with these rows."""
    with atomic_write(path) as temporary:
        temporary.write_text("".join(map(_line, rows)), encoding="utf-8")


def read_summary(path: Path) -> Summary | None:
    """Read a `summary.json`; None if there is no file, because the run is unfinished.

    Raises:
        UsageError: the file is not a valid summary.
    """
    if not path.is_file():
        return None
    remedy = "delete it, and `adautomix resume` writes it again"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UsageError(f"{path} is not valid JSON: {remedy}") from None
    with _named_errors(str(path), remedy):
        return Summary.model_validate(_current(fields, upgrade_summary))


def write_summary(path: Path, summary: Summary) -> None:
    """Write a `summary.json`."""
    with atomic_write(path) as temporary:
        temporary.write_text(summary.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _line(row: Row) -> str:
    return row.model_dump_json(exclude_none=True) + "\n"


def _current(fields: Any, upgrade: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Convert the fields of a record of any known version to those of the current version.

    Raises:
        ValueError: this is not a record, or one of a newer version.
    """
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object")
    version = fields.get("schema_version", 1)
    if version == 1:
        return upgrade(fields)
    if version != SCHEMA_VERSION:
        raise ValueError(f"has schema version {version}, which only a newer adautomix can read")
    return fields


@contextmanager
def _named_errors(place: str, remedy: str) -> Iterator[None]:
    """Turn a failed validation into one line that names the place and the remedy.

    Raises:
        UsageError: the validation failed.
    """
    try:
        yield
    except ValidationError as error:
        problem = error.errors()[0]
        path = [str(part) for part in problem["loc"]]
        if path[:1] in (["train"], ["epoch"]) and len(path) > 1:
            del path[0]  # the kind of the row, which pydantic puts before the name of the field
        name = ".".join(path) or "kind"
        raise UsageError(f"{place} has a wrong field {name}: {problem['msg']}: {remedy}") from None
    except ValueError as error:
        raise UsageError(f"{place} {error}: {remedy}") from None


# ---------------------------------------------------------------------- run folders


@dataclass(frozen=True)
class Run:
    """One run folder, finished or not, as reports read it.

    Attributes:
        name: what tables call the run.
        folder: the run folder.
        config: the settings as nested dictionaries; older runs lack newer settings.
        train_rows: the "train" rows of `metrics.jsonl`, by step.
        epoch_rows: the "epoch" rows of `metrics.jsonl`, by step.
        summary: the content of `summary.json`; None if the run is unfinished.
        samples: pictures of training mixes, by epoch.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    train_rows: list[TrainRow]
    epoch_rows: list[EpochRow]
    summary: Summary | None
    samples: list[Path]

    @property
    def finished(self) -> bool:
        """Whether the run reached its last epoch and wrote its summary."""
        return self.summary is not None

    @property
    def method(self) -> str:
        """The name of the mixing method, or "–" if the settings do not name one."""
        return str(self.fact("method") or "–")

    @property
    def label(self) -> str:
        """What tables call the method: the name of the variant in a sweep, else the method."""
        return str(self.config.get("label") or self.method)

    def fact(self, name: str) -> Any:
        """The value of a summary field, else of the setting of that name, else None."""
        value = getattr(self.summary, name, None)
        return self.config.get(name) if value is None else value

    def figure(self, network: str, key: str) -> float | None:
        """The latest test score of a network: from the summary, else from the last epoch.

        Args:
            network: "student" or "teacher".
            key: a field of `Scores`, such as "top1".
        """
        if self.summary is not None:
            return number_at(self.summary.final, (network, key))
        return number_at(self.epoch_rows[-1], (network, key)) if self.epoch_rows else None

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds of the run, or so far if it is unfinished."""
        if self.summary is not None:
            return self.summary.seconds
        return max((row.seconds for row in (*self.train_rows, *self.epoch_rows)), default=None)

    @property
    def evaluated(self) -> list[EpochRow]:
        """The rows of the epochs after which the networks were evaluated."""
        return [row for row in self.epoch_rows if row.student is not None]

    def reached_by(self, seconds: float) -> EpochRow | None:
        """The last evaluated epoch that had ended after so many seconds of training, if any."""
        reached = (row for row in self.evaluated if row.seconds <= seconds)
        return max(reached, key=lambda row: row.seconds, default=None)

    @property
    def picked_on(self) -> SplitName:
        """The split that best epochs are chosen on: "val" if images were held out, else "test"."""
        return "val" if any(row.val is not None for row in self.evaluated) else "test"

    def best_row(self, network: str) -> EpochRow | None:
        """The epoch at which `network` was best on `picked_on`, the first of equals."""
        place = ("val", network, "main") if self.picked_on == "val" else (network, "main")
        return max(self.evaluated, key=lambda row: number_at(row, place) or 0.0, default=None)

    @cached_property
    def predictions(self) -> dict[str, NDArray[Any]] | None:
        """Which test images each network classified correctly after the last epoch.

        Returns:
            For "student" and "teacher" uint8 arrays `[n]`, 1 where correct, and for "images" int64
            hashes `[n]` that identify the images; None if the run is unfinished or was written
            before predictions were recorded.

        Raises:
            UsageError: the file is damaged.
        """
        path = self.folder / "predictions.safetensors"
        return _read_predictions(path) if self.finished and path.is_file() else None


def summary_fields(run: Run) -> dict[str, Any] | None:
    """The summary of a run as plain JSON values, or None if it is unfinished."""
    return None if run.summary is None else run.summary.model_dump(mode="json")


def number_at(record: Any, path: str | Iterable[str]) -> float | None:
    """The number found by following a path of fields or keys, or None if there is none.

    Args:
        record: a record or dictionary, nested in any way.
        path: one name, or several, such as ("val", "teacher", "top1").
    """
    for name in (path,) if isinstance(path, str) else path:
        is_mapping = isinstance(record, Mapping)
        record = record.get(name) if is_mapping else getattr(record, name, None)
    return float(record) if isinstance(record, int | float) else None


def read_run(folder: Path | str) -> Run:
    """Read one run folder, finished or not.

    Raises:
        UsageError: the folder is not a run folder, or one of its files cannot be read.
    """
    folder = Path(folder).resolve()
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder} is not a run folder: it has no config.yaml")
    rows = read_metrics(folder / "metrics.jsonl")
    return Run(
        name=folder.name,
        folder=folder,
        config=_read_config(folder / "config.yaml"),
        train_rows=_of_kind(TrainRow, rows),
        epoch_rows=_of_kind(EpochRow, rows),
        summary=read_summary(folder / "summary.json"),
        samples=sorted((folder / "samples").glob("*.png")),
    )


def read_runs(folders: Sequence[Path | str]) -> list[Run]:
    """Read several run folders, each once, and give them names that tell them apart.

    Raises:
        UsageError: `folders` is empty, or one of them cannot be read.
    """
    runs = [read_run(folder) for folder in dict.fromkeys(Path(f).resolve() for f in folders)]
    if not runs:
        raise UsageError("no run to report: name at least one run folder")
    depth = 1
    while len({_tail(run.folder, depth) for run in runs}) < len(runs):
        depth += 1
    return [replace(run, name=_tail(run.folder, depth)) for run in runs]


def _tail(folder: Path, depth: int) -> str:
    return "/".join(folder.parts[-depth:])


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: correct the settings in it") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} holds no settings: expected `name: value` lines")
    return config


def _read_predictions(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path} is damaged: remove it to report without it") from error


def _of_kind(kind: type[Kind], rows: Sequence[Row]) -> list[Kind]:
    """The rows of one kind, by step; of two rows for one step the later one counts."""
    by_step = {row.step: row for row in rows if isinstance(row, kind)}
    return [by_step[step] for step in sorted(by_step)]
