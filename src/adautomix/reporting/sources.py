"""Read what a report is written from: run folders, a file of rows, and evaluation records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adautomix.errors import UsageError
from adautomix.evaluation.record import Evaluation, read_evaluation_file
from adautomix.reporting.comparison import Comparison, compare_runs
from adautomix.reporting.rows import read_rows
from adautomix.runs.records import read_runs


@dataclass(frozen=True)
class Sources:
    """What a report is written from.

    Attributes:
        comparison: the compared runs; None if only evaluation records were named.
        evaluations: evaluation records that were named as files.
    """

    comparison: Comparison | None
    evaluations: list[Evaluation]


def read_sources(paths: Sequence[Path], baseline: str | None = None) -> Sources:
    """Read run folders or one file of rows (`.jsonl`), and evaluation records (`.json`).

    Args:
        paths: the folders and files; a folder of runs stands for its finished runs.
        baseline: see `compare_runs`.

    Raises:
        UsageError: a path cannot be read, rows are combined with other runs, or no finished run
            has the label `baseline`.
    """
    records = [path for path in paths if path.suffix == ".json"]
    rows = [path for path in paths if path.suffix == ".jsonl" and not path.is_dir()]
    named = [path for path in paths if path not in (*records, *rows)]
    folders = [run for path in named for run in runs_in(path)]
    evaluations = [read_evaluation_file(path) for path in dict.fromkeys(records)]
    if rows and len(rows) + len(folders) > 1:
        raise UsageError(f"{rows[0]} cannot be combined with other runs: name it alone")
    if rows:
        return Sources(read_rows(rows[0], baseline), evaluations)
    if folders or not evaluations:
        return Sources(compare_runs(read_runs(folders), baseline), evaluations)
    return Sources(None, evaluations)


def runs_in(path: Path) -> list[Path]:
    """Return the finished runs in a folder of runs, sorted by name; else the path itself."""
    if not path.is_dir() or (path / "config.yaml").exists():
        return [path]
    found = sorted(summary.parent for summary in path.glob("*/summary.json"))
    return [run for run in found if (run / "config.yaml").is_file()] or [path]
