"""What all evaluations share: settings, typed results, and parts that are kept once computed."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from adautomix.errors import UsageError
from adautomix.evaluation.target import EvalTarget


class NotApplicableError(UsageError):
    """A suite has nothing to say of this subject, or cannot here; the text says why.

    Where all suites were asked for, that is put on record and the others go on.
    """


class SuiteSettings(BaseModel):
    """The settings of one suite; each suite declares its own below this."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SuiteResult(BaseModel):
    """What one suite found, as it stands in `evaluation.json`; shares are 0 to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Progress = Callable[[str, int, int], None]
"""Hears of the parts of a suite: (the part that comes next, how many are done, of how many)."""


def silent(part: str, done: int, of: int) -> None:
    """Tell nobody."""


@dataclass
class ResultCache:
    """The parts of a suite's work, each kept on disk as soon as it is computed.

    A suite that was stopped finds the parts again that it had, as long as the weights, the
    images and its settings are the same.

    Args:
        path: JSON lines, one a part.
        name: of the suite, its settings and what it is run on; other names' parts are not seen.
        folder: for the pictures of the suite; made when asked for.
        expected: how many parts there will be, for the progress.
    """

    path: Path
    name: str
    pictures: Path
    progress: Progress = silent
    expected: int = 1
    kept: dict[str, Any] = field(default_factory=dict)
    done: int = 0

    def __post_init__(self) -> None:
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                row = read_line(line)
                if row.get("of") == self.name:
                    self.kept[row["part"]] = row["value"]

    def expect(self, count: int) -> None:
        """Say how many parts there will be, before the first."""
        self.expected = count

    def get(self, part: str, compute: Callable[[], Any]) -> Any:
        """The value of a part, plain JSON: kept, or else computed now and kept."""
        self.progress(part, self.done, self.expected)
        if part not in self.kept:
            value = compute()
            self.kept[part] = value
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"of": self.name, "part": part, "value": value}) + "\n")
        self.done += 1
        return self.kept[part]

    def picture(self, name: str) -> Path:
        """Where a picture of this suite goes, in a folder that is there."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        return self.pictures / name


def read_line(line: str) -> dict[str, Any]:
    """A line of the parts' file; nothing where a crash cut it off."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


@dataclass(frozen=True)
class Suite:
    """One evaluation: its name, what it says in a line, its settings, and how it is run.

    `run(subject, settings, parts)` gives a `Result`; `settings` are `Settings`.
    """

    name: str
    summary: str
    run: Callable[[EvalTarget, Any, ResultCache], Any]
    Result: type[SuiteResult]
    Settings: type[SuiteSettings] = SuiteSettings


def name_of(suite: Suite, settings: SuiteSettings, fingerprint: str) -> str:
    """Names a suite's work: equal where its results must be equal."""
    what = f"{suite.name}/{settings.model_dump_json()}/{fingerprint}"
    return f"{suite.name}/{blake2b(what.encode(), digest_size=8).hexdigest()}"
