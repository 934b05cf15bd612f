"""Run folders, read back."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from numpy.typing import NDArray

from adautomix.errors import UsageError

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run folder: its settings, what it logged, and its summary once it is finished.

    Rows are those of `metrics.jsonl`, in the order of their steps; accuracies are fractions.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    train_rows: list[Row]
    epoch_rows: list[Row]
    summary: dict[str, Any] | None
    samples: list[Path]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end and wrote its summary."""
        return self.summary is not None

    @property
    def method(self) -> str:
        """The name of the mixing method, "–" where the settings do not say."""
        return str(self.fact("method") or "–")

    @property
    def label(self) -> str:
        """What tables call it: the name of its variant in a sweep, else that of its method."""
        return str(self.config.get("label") or self.method)

    def fact(self, name: str) -> Any:
        """What the summary says of `name`, else what the settings say, else None."""
        value = (self.summary or {}).get(name)
        return self.config.get(name) if value is None else value

    def figure(self, network: str, key: str) -> float | None:
        """The last figure of "student" or "teacher": of the summary, else of the latest epoch."""
        latest = self.epoch_rows[-1] if self.epoch_rows else {}
        final = latest if self.summary is None else self.summary.get("final")
        return number_at(final, (network, key))

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds of the run, so far where it is unfinished."""
        if self.summary is not None:
            return number_at(self.summary, "seconds")
        logged = (number_at(row, "seconds") for row in (*self.train_rows, *self.epoch_rows))
        return max((seconds for seconds in logged if seconds is not None), default=None)

    @property
    def evaluated(self) -> list[Row]:
        """Rows of the epochs after which the networks were tested."""
        return [row for row in self.epoch_rows if "student" in row]

    def reached_by(self, seconds: float) -> Row | None:
        """The last tested epoch that had ended after so much training time, None before one had."""
        reached = (row for row in self.evaluated if row.get("seconds", math.inf) <= seconds)
        return max(reached, key=lambda row: row["seconds"], default=None)

    @property
    def picked_on(self) -> str:
        """The split that best epochs are picked on: "val" where images were held out."""
        return "val" if any("val" in row for row in self.evaluated) else "test"

    def best_row(self, network: str) -> Row | None:
        """The epoch at which `network` was best on `picked_on`, the first of equals."""
        place = ("val", network, "top1") if self.picked_on == "val" else (network, "top1")
        return max(self.evaluated, key=lambda row: number_at(row, place) or 0.0, default=None)

    @cached_property
    def predictions(self) -> dict[str, NDArray[Any]] | None:
        """Which test images each network got right in the end, and which "images" these are.

        None where the run is unfinished or older than this record.
        Raises UsageError where it cannot be read.
        """
        path = self.folder / "predictions.safetensors"
        return _read_predictions(path) if self.finished and path.is_file() else None


def number_at(tree: Any, path: str | Iterable[str]) -> float | None:
    """The number found by following the keys of `path`, None where there is none."""
    for key in (path,) if isinstance(path, str) else path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return float(tree) if isinstance(tree, (int, float)) else None


def read_run(folder: Path | str) -> Run:
    """Read one run folder, finished or not.

    Raises UsageError where the folder is no run, or its settings or summary cannot be read.
    """
    folder = Path(folder).resolve()
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder} is not a run folder: it has no config.yaml")
    rows = _read_rows(folder / "metrics.jsonl")
    return Run(
        name=folder.name,
        folder=folder,
        config=_read_config(folder / "config.yaml"),
        train_rows=_of_kind("train", rows),
        epoch_rows=_of_kind("epoch", rows),
        summary=_read_summary(folder / "summary.json"),
        samples=sorted((folder / "samples").glob("*.png")),
    )


def read_runs(folders: Sequence[Path | str]) -> list[Run]:
    """Read several run folders, each once, under names that tell them apart.

    Raises UsageError where there is none, or one of them is no run.
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
        raise UsageError(f"{path} is not valid YAML: write the run's settings anew") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} holds no settings: expected `name: value` lines")
    return config


def _read_summary(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: remove it to report the run so far") from error
    if not isinstance(summary, dict):
        raise UsageError(f"{path} is not a JSON object: remove it to report the run so far")
    return summary


def _read_predictions(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path} is damaged: remove it to report without it") from error


def _read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file; a line cut off by a crash is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _of_kind(kind: str, rows: Sequence[Row]) -> list[Row]:
    """Rows of one kind by step: a step trained again after a resume replaces its first trace."""
    by_step = {row.get("step", 0): row for row in rows if row.get("kind") == kind}
    return [by_step[step] for step in sorted(by_step)]
