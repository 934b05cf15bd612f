"""The comparison of runs as a table for the terminal."""

from collections.abc import Sequence

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
