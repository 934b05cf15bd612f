"""The comparison of runs as a table: for the terminal, for Markdown, and as rows of data."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from adautomix.reporting.figures import Group, duration, final, groups, percent, plus_minus
from adautomix.reporting.runs import Run

_FIGURES = (("student", "top1"), ("teacher", "top1"), ("student", "ece"), ("teacher", "ece"))
_TITLES = {"top1": "top-1 (%)", "ece": "ECE (%)"}


def comparison_table(runs: Sequence[Run]) -> Table:
    """A row a run, grouped by method; under several seeds their mean ± 95 % interval."""
    table = Table(caption=_caption(runs), caption_justify="left")
    for title in ("method", "run", "seed"):
        table.add_column(title)
    for network, key in _FIGURES:
        table.add_column(f"{network}\n{_TITLES[key]}", justify="right")
    table.add_column("time (s)", justify="right")
    for group in groups(runs):
        for run in group.runs:
            table.add_row(*_run_cells(group, run))
        if group.seeds > 1:
            table.add_row(*_mean_cells(group), style="bold")
        table.add_section()
    return table


def markdown_table(runs: Sequence[Run]) -> str:
    """The same table in Markdown; a method of several seeds is one row, mean ± interval."""
    titles = [f"{network} {_TITLES[key]}" for network, key in _FIGURES]
    lines = [["method", "run", "seed", *titles, "time (s)"], ["---"] * 3 + ["---:"] * 5]
    for group in groups(runs):
        if group.seeds > 1:
            cells = [group.label, *(cell.plain for cell in _mean_cells(group)[1:])]
            lines.append(cells)
        else:
            lines += [[cell.plain for cell in _run_cells(group, run)] for run in group.runs]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def result_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What stands behind the table: the summary of each finished run, without its class list."""
    return [
        {"run": run.name, **{n: v for n, v in run.summary.items() if n != "classes"}}
        for run in runs
        if run.summary is not None
    ]


def _run_cells(group: Group, run: Run) -> list[Text]:
    name = run.name if run.finished else f"{run.name} (unfinished)"
    seed = run.fact("seed")
    return [
        # Text, unlike str, is not read as markup: names may hold brackets.
        Text(group.label if run is group.runs[0] else ""),
        Text(name),
        Text("–" if seed is None else str(seed)),
        *(Text(percent(run.figure(network, key))) for network, key in _FIGURES),
        Text(duration(run.seconds)),
    ]


def _mean_cells(group: Group) -> list[Text]:
    intervals = [group.interval(final(network, key)) for network, key in _FIGURES]
    return [
        Text(""),
        Text(f"mean of {group.seeds} seeds"),
        Text(""),
        *(Text(plus_minus(interval, percent)) for interval in intervals),
        Text(plus_minus(group.interval(lambda run: run.seconds), duration)),
    ]


def _caption(runs: Sequence[Run]) -> str:
    text = "student: the trained network; teacher: its moving average; ±: 95 % Student-t interval"
    return text if all(run.finished for run in runs) else f"{text}; unfinished runs in no mean"
