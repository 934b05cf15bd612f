"""The comparison of runs as a table: for the terminal, for Markdown, and as rows of data."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from adautomix.reporting.figures import (
    MEMORY,
    MISSING,
    NETWORKS,
    EqualTime,
    Group,
    Reader,
    at_best,
    duration,
    equal_time,
    final,
    groups,
    mebibytes,
    peak_memory,
    percent,
    plus_minus,
)
from adautomix.reporting.significance import Verdict, how_to_read, more_seeds, significance, span
from adautomix.runs.records import Run
from adautomix.text import printable

_FIGURES = (("student", "top1"), ("teacher", "top1"), ("student", "ece"), ("teacher", "ece"))
_TITLES = {"top1": "top-1 (%)", "ece": "ECE (%)"}

Cells = list[str]


def comparison_table(runs: Sequence[Run]) -> Table:
    """A row a run, grouped by method; under them means ± 95 % interval at several moments."""
    table = Table(caption=_caption(runs), caption_justify="left")
    for title in ("method", "run", "seed"):
        table.add_column(title)
    for network, key in _FIGURES:
        table.add_column(f"{network}\n{_TITLES[key]}", justify="right")
    table.add_column("time\n(s)", justify="right")
    table.add_column("memory\n(MiB)", justify="right")
    found = groups(runs)
    clock = equal_time(found)
    for group in found:
        for run in group.runs:
            _add(table, _run_cells(group, run))
        for cells in _moments(group, clock):
            _add(table, ["", *cells], style="bold")
        table.add_section()
    return table


def markdown_table(runs: Sequence[Run]) -> str:
    """The same table in Markdown; of a method of several seeds, only the means ± interval."""
    titles = [f"{network} {_TITLES[key]}" for network, key in _FIGURES]
    lines = [["method", "run", "seed", *titles, "time (s)", "memory (MiB)"]]
    lines.append(["---"] * 3 + ["---:"] * (len(lines[0]) - 3))
    found = groups(runs)
    clock = equal_time(found)
    for group in found:
        single = [_run_cells(group, run)[1:] for run in group.runs] if group.seeds < 2 else []
        labels = [group.label, *[""] * len(group.runs), *[""] * 3]
        rows = [*single, *_moments(group, clock)]
        lines += [[label, *cells] for label, cells in zip(labels, rows, strict=False)]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def verdict_lines(runs: Sequence[Run], baseline: str | None = None) -> list[str]:
    """A sentence a verdict with the bootstrap beside it, and how to read them; none without."""
    found = significance(runs, baseline)
    lines = [
        verdict.sentence + (f" Bootstrap: {span(verdict.on_images)}." if verdict.on_images else "")
        for verdict in found
    ]
    return [f"- {line}" for line in (*lines, *how_to_read(found))]


def result_rows(runs: Sequence[Run], baseline: str | None = None) -> list[dict[str, Any]]:
    """What stands behind it: a row a finished run, then a row a verdict.

    A run's row is its summary without the class list, what its networks had reached at equal time,
    and the best epoch of each.
    """
    clock = equal_time(groups(runs))
    rows = [_run_row(run, clock) for run in runs if run.finished]
    return rows + [_verdict_row(verdict) for verdict in significance(runs, baseline)]


def _run_row(run: Run, clock: EqualTime | None) -> dict[str, Any]:
    assert run.summary is not None
    shown = {"epoch", "seconds", "student", "teacher"}
    reached = clock and clock.row(run)
    best = {name: row for name in NETWORKS if (row := run.best_row(name))}
    return {
        "run": run.name,
        **run.summary.model_dump(mode="json", exclude={"schema_version", "classes"}),
        "equal_time": reached and reached.model_dump(mode="json", include=shown),
        "best_epochs": {
            name: {"epoch": row.epoch, "picked_on": run.picked_on, **row.model_dump()[name]}
            for name, row in best.items()
        },
    }


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    several = len(verdict.differences) > 1
    interval = verdict.interval
    return {
        **asdict(verdict),
        "mean": interval and interval.mean,
        "half_width": interval and interval.half_width,
        "more_seeds": more_seeds(verdict.differences) if several else None,
        "sentence": verdict.sentence,
    }


def _add(table: Table, cells: Cells, style: str = "") -> None:
    # Text, unlike str, is not read as markup: names may hold brackets.
    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)


def _run_cells(group: Group, run: Run) -> Cells:
    seed = run.fact("seed")
    return [
        group.label if run is group.runs[0] else "",
        run.name if run.finished else f"{run.name} (unfinished)",
        MISSING if seed is None else str(seed),
        *(percent(run.figure(network, key)) for network, key in _FIGURES),
        duration(run.seconds),
        mebibytes(peak_memory(run)),
    ]


def _moments(group: Group, clock: EqualTime | None) -> list[Cells]:
    """Cells right of the method: the last epoch, the one at equal time, and the best."""
    rows = []
    if group.seeds > 1:
        cells = _means(group, f"mean of {group.seeds} seeds", final)
        cells[-2] = plus_minus(group.interval(lambda run: run.seconds), duration)
        cells[-1] = plus_minus(group.interval(peak_memory), mebibytes)
        rows.append(cells)
    if clock and group.figures(clock.figure("epoch")):
        cells = _means(group, "at equal time", clock.figure)
        cells[-2] = plus_minus(group.interval(clock.figure("seconds")), duration)
        rows.append(cells)
    if group.figures(at_best("student", "epoch")):
        splits = {run.picked_on for run in group.runs if run.evaluated}
        title = f"best by {' or '.join(sorted(splits))}"
        rows.append(_means(group, title, lambda network, key: at_best(network, network, key)))
    return rows


def _means(group: Group, title: str, figure: Callable[[str, str], Reader]) -> Cells:
    intervals = [group.interval(figure(network, key)) for network, key in _FIGURES]
    return [title, "", *(plus_minus(interval, percent) for interval in intervals), "", ""]


def _caption(runs: Sequence[Run]) -> str:
    lines = ["student: the trained network; teacher: its average; ±: 95 % Student-t interval"]
    if clock := equal_time(groups(runs)):
        lines.append(
            f"at equal time: the last epoch before the run of {clock.fastest} with that seed ended"
        )
    if any(run.evaluated and run.picked_on == "test" for run in runs):
        lines.append("best by test: the best epoch of each network on the test images, flattering")
    lines.append(MEMORY)
    if not all(run.finished for run in runs):
        lines.append("unfinished runs are in no mean")
    return "\n".join(lines)
