"""What all evaluation suites share: settings, typed results, and a cache of partial results."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from adautomix.errors import UsageError
from adautomix.evaluation.target import EvalTarget
from adautomix.validation import split_commas


class NotApplicableError(UsageError):
    """A suite cannot evaluate this target, or cannot run on this machine; the text says why.

    When all suites were requested, the reason is recorded and the other suites still run.
    """


class SuiteSettings(BaseModel):
    """Base class for the settings of a suite."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SuiteResult(BaseModel):
    """Base class for the result of a suite, as stored in `evaluation.json`.

    Accuracies, errors and other fractions are between 0 and 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


def split_list(value: Any) -> Any:
    """Return a setting as a list: comma-separated text, one value, or None for an empty list.

    For use as a pydantic `BeforeValidator`.
    """
    if isinstance(value, str):
        return list(split_commas(value.strip("()[] ")))
    if value is None:
        return []
    return value if isinstance(value, list | tuple) else [value]


_OLD_KEYS = {"of": "key", "part": "task"}

SuiteProgress = Callable[[str, int, int], None]
"""Progress callback, called with (name of the next task, tasks done, tasks in total)."""


def no_progress(task: str, done: int, total: int) -> None:
    """Ignore the progress of a suite."""


@dataclass
class ResultCache:
    """The partial results of one suite, each written to disk as soon as it is computed.

    A suite that was interrupted continues after its last stored result, provided that the weights,
    the images and the settings are unchanged.

    Args:
        path: JSON Lines file with one result per line, shared by all suites.
        key: identifies the suite, its settings and its target (see `cache_key`); results stored
            under other keys are ignored.
        folder: folder for pictures and other files of the suite, created on first use.
        on_progress: called before each task.
        total: number of tasks, for the progress display.
    """

    path: Path
    key: str
    folder: Path
    on_progress: SuiteProgress = no_progress
    total: int = 1
    values: dict[str, Any] = field(default_factory=dict)
    done: int = 0

    def __post_init__(self) -> None:
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                row = parse_row(line)
                if row.get("key") == self.key:
                    self.values[row["task"]] = row["value"]

    def set_total(self, count: int) -> None:
        """Set the number of tasks before the first one starts."""
        self.total = count

    def get(self, task: str, compute: Callable[[], Any]) -> Any:
        """Return the stored result of a task, or compute and store it.

        Args:
            task: name of the task, unique within the suite; shown as progress.
            compute: returns the result as plain JSON data.
        """
        self.on_progress(task, self.done, self.total)
        if task not in self.values:
            value = compute()
            self.values[task] = value
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": self.key, "task": task, "value": value}) + "\n")
        self.done += 1
        return self.values[task]

    def output_path(self, name: str) -> Path:
        """Return the path for a file of the suite, and create its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    @property
    def digest(self) -> str:
        """The part of the key that changes with settings, weights and images; for file names."""
        return self.key.rpartition("/")[2]


def parse_row(line: str) -> dict[str, Any]:
    """Parse a line of the cache file; return an empty dict if a crash left it incomplete.

    Lines written before version 3 of `evaluation.json` have other keys, which are translated.
    """
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(row, dict):
        return {}
    return {_OLD_KEYS.get(str(name), str(name)): value for name, value in row.items()}


@dataclass(frozen=True)
class Suite:
    """An evaluation that can be run by name.

    Attributes:
        name: name on the command line and in `evaluation.json`.
        summary: one line for the listing of suites.
        run: `run(target, settings, cache)` returns a `Result`; `settings` is a `Settings`.
        Result: the type of the result.
        Settings: the type of the settings.
        multi_label: whether the suite is defined for images with several labels too.
    """

    name: str
    summary: str
    run: Callable[[EvalTarget, Any, ResultCache], Any]
    Result: type[SuiteResult]
    Settings: type[SuiteSettings] = SuiteSettings
    multi_label: bool = False

    def check_target(self, target: EvalTarget) -> None:
        """Check that the suite is defined for the labels of a target.

        Raises:
            NotApplicableError: images have several labels, and the suite needs one class per image.
        """
        if target.data.multi_label and not self.multi_label:
            raise NotApplicableError(
                f"{target.name}: the suite {self.name} is defined for one class per image, and "
                "these images have several labels: use --suites accuracy"
            )


def cache_key(suite: Suite, settings: SuiteSettings, fingerprint: str) -> str:
    """Return a key that is equal whenever two runs of a suite must give equal results."""
    content = f"{suite.name}/{settings.model_dump_json()}/{fingerprint}"
    return f"{suite.name}/{blake2b(content.encode(), digest_size=8).hexdigest()}"
