"""A comparison as a file of rows (JSON Lines): small enough to commit, and enough for a report.

The first line describes the comparison, then comes one line per finished run and one line per
significance test. This is the only module that reads or writes such files. Pictures, training
curves and the predictions of single images stay in the run folders.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from adautomix.errors import UsageError
from adautomix.files import atomic_write
from adautomix.reporting.comparison import Comparison, build_comparison
from adautomix.reporting.groups import LOCATION_SETTINGS, group_runs
from adautomix.reporting.significance import PairedTest
from adautomix.reporting.snapshots import EqualTime, RunSnapshots
from adautomix.reporting.statistics import Interval
from adautomix.runs.records import Run
from adautomix.runs.schema import EpochRow, Summary

ROWS_VERSION: Final = 1


class _Row(BaseModel):
    # NaN and infinity are written as Python's json does; the default would turn them into null.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class ComparisonRow(_Row):
    """The first line.

    Attributes:
        rows_version: version of this layout.
        baseline: see `Comparison`.
        equal_time: see `Comparison`.
    """

    kind: Literal["comparison"] = "comparison"
    rows_version: Literal[1] = ROWS_VERSION
    baseline: str | None
    equal_time: EqualTime | None


class RunRow(_Row):
    """The line of a finished run.

    Attributes:
        run: name of the run.
        config: its settings, without those that state where it was computed.
        summary: its summary without class names and results per class.
        snapshots: its scores after the last epoch, at equal time, and at the best epochs.
        epochs: the epochs after which it was evaluated; empty if they were not recorded.
    """

    kind: Literal["run"] = "run"
    run: str
    config: dict[str, Any]
    summary: Summary
    snapshots: RunSnapshots
    epochs: list[EpochRow] = []


class SignificanceRow(_Row):
    """The line of a significance test; all fields but `test` are computed from it.

    Attributes:
        test: the test.
        interval: the mean difference over seeds with its 95 % interval.
        seeds_needed: see `PairedTest`.
        sentence: the result in words.
    """

    kind: Literal["test"] = "test"
    test: PairedTest
    interval: Interval | None
    seeds_needed: int | None
    sentence: str


ComparisonRows = ComparisonRow | RunRow | SignificanceRow
_adapter: TypeAdapter[ComparisonRows] = TypeAdapter(
    Annotated[ComparisonRows, Field(discriminator="kind")]
)


def comparison_rows(comparison: Comparison) -> list[ComparisonRows]:
    """Return the rows of a comparison; unfinished runs are left out."""
    runs = [
        RunRow(
            run=run.name,
            config={k: v for k, v in run.config.items() if k not in LOCATION_SETTINGS},
            summary=run.summary.model_copy(update={"classes": [], "results": None}),
            snapshots=comparison.snapshots[run.name],
            epochs=run.evaluated,
        )
        for run in comparison.runs
        if run.summary is not None
    ]
    tests = [
        SignificanceRow(
            test=test,
            interval=test.interval,
            seeds_needed=test.seeds_needed,
            sentence=test.sentence,
        )
        for test in comparison.tests
    ]
    first = ComparisonRow(baseline=comparison.baseline, equal_time=comparison.equal_time)
    return [first, *runs, *tests]


def write_rows(comparison: Comparison, path: Path) -> None:
    """Write a comparison to a file of rows."""
    lines = (row.model_dump_json() + "\n" for row in comparison_rows(comparison))
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def read_rows(path: Path, baseline: str | None = None) -> Comparison:
    """Read a comparison from a file of rows.

    Args:
        path: a file written by `write_rows`.
        baseline: see `compare_runs`; by default that of the file. With another baseline there are
            no bootstrap intervals, because the file holds no predictions.

    Raises:
        UsageError: the file cannot be read, or holds no finished run with this baseline.
    """
    rows = _parse(path)
    first = rows[0] if rows else None
    if not isinstance(first, ComparisonRow):
        raise UsageError(f"{path} is not a file of rows: write one with `adautomix report --rows`")
    run_rows = [row for row in rows if isinstance(row, RunRow)]
    runs = [_to_run(row, path) for row in run_rows]
    comparison = build_comparison(
        group_runs(runs),
        runs,
        {row.run: row.snapshots for row in run_rows},
        first.equal_time,
        first.baseline if baseline is None else baseline,
    )
    if comparison.baseline == first.baseline:
        stored = tuple(row.test for row in rows if isinstance(row, SignificanceRow))
        comparison = replace(comparison, tests=stored)
    return replace(comparison, source=path)


def _to_run(row: RunRow, path: Path) -> Run:
    return Run(
        name=row.run,
        folder=path,
        config=row.config,
        train_rows=[],
        epoch_rows=row.epochs,
        summary=row.summary,
        samples=[],
    )


def _parse(path: Path) -> Sequence[ComparisonRows]:
    """Parse all lines of a file of rows.

    Raises:
        UsageError: the file cannot be read, or a line is not a valid row.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_adapter.validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"]))
            place = f"{path}, line {number}" + (f", {field}" if field else "")
            remedy = "write the file again with `adautomix report --rows`"
            raise UsageError(f"{place}: {problem['msg']}: {remedy}") from None
    return rows
