"""Read and write the records of a run folder, and read whole run folders for reports.

This is the only module that reads or writes `metrics.jsonl` and `summary.json`; `runs/schema.py`
declares what they hold.
"""

import hashlib
import json
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray
from pydantic import ValidationError

from adautomix.config import read_yaml
from adautomix.errors import AdAutoMixWarning, UsageError, command_text, nearest_name
from adautomix.files import atomic_write, json_digest, read_json
from adautomix.runs.checkpoint import newest_manifest
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
from adautomix.text import printable

MAX_TRAIN_ROWS = 500  # per run in reports, where they only draw curves
Kind = TypeVar("Kind", TrainRow, EpochRow)

# ---------------------------------------------------------------------- files


def read_metrics(path: Path) -> list[Row]:
    """Read the rows of a `metrics.jsonl`, in the order of the file; none if there is no file.

    A damaged line is left out with a warning that names it; the last line, which a crash can cut
    off, is left out without one.

    Raises:
        UsageError: the file cannot be read, or holds a row of a newer version.
    """
    if not path.is_file():
        return []
    return list(_rows(path))


def _rows(path: Path, max_train_rows: int | None = None) -> Iterator[Row]:
    """The intact rows of a `metrics.jsonl`, without holding the file in memory.

    Args:
        path: the file.
        max_train_rows: thin out the "train" rows to about so many, evenly; None: all rows.
    """
    stride = 1 if max_train_rows is None else max(1, _count_lines(path) // max_train_rows)
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or (number % stride and '"kind":"train"' in line):
                continue
            try:
                yield _parse_row(line)
            except _NewerVersionError as error:
                raise UsageError(f"{path}, line {number}, {error}") from None
            except ValueError as error:
                if line.endswith("\n"):  # otherwise cut off by a crash
                    warn(f"{path}, line {number}, {error}: the line is left out")


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _parse_row(line: str) -> Row:
    """One line as a row.

    Raises:
        _NewerVersionError: the line was written by a newer version.
        ValueError: the line is damaged; the message says how.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("is not valid JSON") from None
    if isinstance(fields, dict) and (checksum := fields.pop("crc32", None)) is not None:
        content, _, _ = line.rpartition(_CRC_FIELD)
        if checksum != _crc32(content + "}"):
            raise ValueError("does not match its checksum")
    try:
        return row_adapter.validate_python(_current(fields, upgrade_row))
    except ValidationError as error:
        raise ValueError(f"has a wrong field {_field_and_problem(error)}") from None


_CRC_FIELD = ',"crc32":'


def _crc32(text: str) -> str:
    """The checksum of a line, as eight hexadecimal digits."""
    return f"{zlib.crc32(text.encode()):08x}"


def warn(text: str) -> None:
    """Warn about something that could be dealt with; the command line prints one line."""
    warnings.warn(text, AdAutoMixWarning, stacklevel=3)


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
        UsageError: the file is not a valid summary, or does not match its checksum.
    """
    if not path.is_file():
        return None
    remedy = f"delete it, and {command_text('resume', path.parent)} writes it again"
    fields = read_json(path, remedy)
    checksum = fields.pop("checksum", None) if isinstance(fields, dict) else None
    if checksum is not None and checksum != json_digest(fields):
        raise UsageError(f"{path} does not match its checksum: {remedy}")
    try:
        return Summary.model_validate(_current(fields, upgrade_summary))
    except ValidationError as error:
        problem = f"has a wrong field {_field_and_problem(error)}"
    except ValueError as error:
        problem = str(error)
    raise UsageError(f"{path} {problem}: {remedy}")


def write_summary(path: Path, summary: Summary) -> None:
    """Write a `summary.json` with its checksum."""
    # Not as JSON text, which pydantic refuses to make of names that are not UTF-8.
    fields = summary.model_dump(mode="json")
    text = json.dumps({**fields, "checksum": json_digest(fields)}, indent=1)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _line(row: Row) -> str:
    """A row as a line of `metrics.jsonl`, with its checksum as the last field."""
    text = row.model_dump_json(exclude_none=True)
    return f'{text[:-1]}{_CRC_FIELD}"{_crc32(text)}"}}\n'


class _NewerVersionError(ValueError):
    """A record has a layout that this version does not know."""


def _current(fields: Any, upgrade: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Convert the fields of a record of any known version to those of the current version.

    Raises:
        _NewerVersionError: the record was written by a newer version.
        ValueError: this is not a record.
    """
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object")
    version = fields.get("schema_version", 1)
    if version == 1:
        return upgrade(fields)
    if version != SCHEMA_VERSION:
        raise _NewerVersionError(
            f"has schema version {version!r}, which only a newer adautomix can read"
        )
    return fields


def _field_and_problem(error: ValidationError) -> str:
    """The first problem of a failed validation, with the name of the field before it."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    if path[:1] in (["train"], ["epoch"]) and len(path) > 1:
        del path[0]  # the kind of the row, which pydantic puts before the name of the field
    return f"{'.'.join(path) or 'kind'}: {problem['msg']}"


# ---------------------------------------------------------------------- run folders


@dataclass(frozen=True)
class Run:
    """One run folder, finished or not, as reports read it.

    Attributes:
        name: what tables call the run.
        folder: the run folder.
        config: the settings as nested dictionaries; older runs lack newer settings.
        train_rows: the "train" rows of `metrics.jsonl`, by step; thinned out if there are many.
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
        return printable(str(self.config.get("label") or self.method), None)

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
        if self.summary is None or not path.is_file():
            return None
        return _read_predictions(path, self.summary.predictions)


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

    Of many "train" rows only some are read, so that many long runs fit into memory.

    Raises:
        UsageError: the folder is not a run folder, or one of its files cannot be read.
    """
    folder = Path(folder).resolve()
    check_run_folder(folder)
    path = folder / "metrics.jsonl"
    rows = list(_rows(path, MAX_TRAIN_ROWS)) if path.is_file() else []
    return Run(
        name=printable(folder.name, None),
        folder=folder,
        config=read_settings(folder),
        train_rows=_of_kind(TrainRow, rows),
        epoch_rows=_of_kind(EpochRow, rows),
        summary=read_summary(folder / "summary.json"),
        samples=sorted((folder / "samples").glob("*.png")),
    )


def check_run_folder(path: Path) -> None:
    """Check that a path is a run folder.

    Raises:
        UsageError: it is not; the message names the folder beside it with the nearest name.
    """
    if not path.exists():
        beside = [one.name for one in path.parent.glob("*/")] if path.parent.is_dir() else []
        near = nearest_name(path.name, sorted(beside))
        hint = f"did you mean {path.parent / near}?" if near else "name one that train wrote"
        raise UsageError(f"no run folder {path}: {hint}")
    if not (path / "config.yaml").exists():
        raise UsageError(f"{path} is not a run folder: it has no config.yaml")


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
    return printable("/".join(folder.parts[-depth:]), None)


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the `config.yaml` of a run as nested settings.

    Raises:
        UsageError: it is damaged, or holds other settings than the run was trained with.
    """
    path = folder / "config.yaml"
    settings = read_yaml(path, "restore the file, or start the run again")
    manifest = newest_manifest(folder)
    if manifest and (difference := changed_setting(manifest["settings"], settings)):
        raise UsageError(f"{path} has {difference}; set it back, or train another run")
    return settings


# These settings say where and how fast a run is computed; they may change while it is stopped.
FREE_SETTINGS = {
    "out",
    "label",
    "workers",
    "device",
    "data",
    "data_root",
    "download",
    "tensorboard",
    "log",
    "eval_batch_size",
    "max_memory",
    "checkpoint_every",
    "keep_every",
}


def changed_setting(trained: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Describe the first setting that is not as the run was trained with; "" if there is none.

    Only settings that both know are compared: each version of the package adds some.
    """
    for name, mine in trained.items():
        if name in FREE_SETTINGS or name not in found:
            continue
        theirs = found[name]
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            if inner := changed_setting(mine, theirs):
                return f"{name}.{inner}"
        elif mine != theirs:
            return f"{name} = {theirs}, but the run was trained with {mine}"
    return ""


def _read_predictions(path: Path, expected_hash: str | None) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    remedy = f"remove it, and {command_text('resume', path.parent)} writes it again"
    content = path.read_bytes()
    if expected_hash is not None and hashlib.sha256(content).hexdigest() != expected_hash:
        raise UsageError(f"{path} does not match its hash: {remedy}")
    try:
        return load(content)
    except SafetensorError as error:
        raise UsageError(f"{path} is damaged ({error}): {remedy}") from None


def _of_kind(kind: type[Kind], rows: Sequence[Row]) -> list[Kind]:
    """The rows of one kind, by step; of two rows for one step the later one counts."""
    by_step = {row.step: row for row in rows if isinstance(row, kind)}
    return [by_step[step] for step in sorted(by_step)]
