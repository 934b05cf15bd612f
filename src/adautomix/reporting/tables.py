"""A comparison as a table for the terminal, as Markdown, and as printed lines."""

from rich import box
from rich.table import Table
from rich.text import Text

from adautomix.class_results import ClassResults
from adautomix.reporting.comparison import Comparison
from adautomix.reporting.early_stops import early_stop_lines
from adautomix.reporting.formatting import (
    MEMORY_NOTE,
    MISSING,
    NETWORKS,
    mebibytes,
    percent,
    plus_minus,
    points_range,
    seconds,
    shown_metrics,
)
from adautomix.reporting.groups import Group
from adautomix.reporting.significance import explain_tests, summarize_tests
from adautomix.reporting.snapshots import GroupSnapshot, GroupSummary, peak_memory
from adautomix.runs.records import Run
from adautomix.text import printable

_TITLES = {"top1": "top-1 (%)", "map": "mAP (%)", "ece": "ECE (%)"}

Cells = list[str]
Columns = tuple[tuple[str, str], ...]
"""The (network, metric) of each column of scores."""


def comparison_table(comparison: Comparison) -> Table:
    """Return one row per run, grouped by method, each group followed by its means."""
    table = Table(caption=_caption(comparison), caption_justify="left")
    for title in ("method", "run", "seed"):
        table.add_column(title)
    scores = _shown_scores(comparison)
    for network, key in scores:
        table.add_column(f"{network}\n{_TITLES[key]}", justify="right")
    table.add_column("time\n(s)", justify="right")
    table.add_column("memory\n(MiB)", justify="right")
    for group, summary in zip(comparison.groups, comparison.summaries, strict=True):
        for run in group.runs:
            _add(table, _run_cells(group, run, scores))
        for cells in _mean_rows(summary, scores):
            _add(table, ["", *cells], style="bold")
        table.add_section()
    return table


def run_table(run: Run) -> Table:
    """Return the scores of a single run, one row per network, within 80 columns."""
    final = run.summary.final if run.summary else {}
    metrics = shown_metrics(final.values())
    known = (run.summary.results or {}) if run.summary else {}
    results: dict[str, ClassResults] = dict(known.items())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("network")
    for metric in metrics:
        table.add_column(f"{metric.title}\n({metric.unit})" if metric.unit else metric.title)
    for title in ("balanced\naccuracy (%)", "macro-F1\n(%)"):
        table.add_column(title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in NETWORKS:
        found = results.get(name)
        classes = [found.balanced_accuracy, found.macro_f1] if found else [None, None]
        scores = [metric.show(run.figure(name, metric.key)) for metric in metrics]
        _add(table, [name, *scores, *map(percent, classes)])
    return table


def run_notes(run: Run) -> list[str]:
    """Return what the table of a run does not say: its terms, the best epoch, time and memory."""
    lines = [
        "NLL: negative log-likelihood of the true class. ECE: mean distance of confidence and "
        "accuracy. Lower is better for both."
    ]
    best = None if run.summary is None else run.summary.best
    if best is not None:
        chosen = ", which is optimistic" if best.split == "test" else ""
        lines.append(
            f"Best epoch: {best.epoch}, {best.network} {best.main:.2%}, chosen on the {best.split} "
            f"images{chosen}."
        )
    lines += early_stop_lines([run])
    memory = mebibytes(peak_memory(run))
    return [*lines, f"Time {seconds(run.seconds)} s, peak memory {memory} MiB."]


def markdown_table(comparison: Comparison) -> str:
    """Return the table in Markdown; of methods with several seeds it shows only the means."""
    scores = _shown_scores(comparison)
    titles = [f"{network} {_TITLES[key]}" for network, key in scores]
    lines = [["method", "run", "seed", *titles, "time (s)", "memory (MiB)"]]
    lines.append(["---"] * 3 + ["---:"] * (len(lines[0]) - 3))
    for group, summary in zip(comparison.groups, comparison.summaries, strict=True):
        single = [_run_cells(group, run, scores)[1:] for run in group.runs]
        rows = [*(single if group.seeds < 2 else []), *_mean_rows(summary, scores)]
        labels = [group.label, *[""] * len(rows)]
        lines += [[label, *cells] for label, cells in zip(labels, rows, strict=False)]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def significance_lines(comparison: Comparison) -> list[str]:
    """Return what the tests decide, one line per test, and what they mean; none without tests."""
    lines = [
        test.sentence
        + (f" Bootstrap: {points_range(test.bootstrap)} points." if test.bootstrap else "")
        for test in comparison.tests
    ]
    summary = summarize_tests(comparison.tests)
    return [f"- {line}" for line in (*summary, *lines, *explain_tests(comparison.tests))]


def _add(table: Table, cells: Cells, style: str = "") -> None:
    # Text, unlike str, is not read as markup: names may hold brackets.
    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)


def _shown_scores(comparison: Comparison) -> Columns:
    """Return the scores of the table: mAP in place of top-1 where images have several labels."""
    several = any(
        run.figure(name, "map") is not None for run in comparison.runs for name in NETWORKS
    )
    keys = ("map" if several else "top1", "ece")
    return tuple((network, key) for key in keys for network in NETWORKS)


def _run_cells(group: Group, run: Run, scores: Columns) -> Cells:
    seed = run.fact("seed")
    return [
        group.label if run is group.runs[0] else "",
        run.name if run.finished else f"{run.name} (unfinished)",
        MISSING if seed is None else str(seed),
        *(percent(run.figure(network, key)) for network, key in scores),
        seconds(run.seconds),
        mebibytes(peak_memory(run)),
    ]


def _mean_rows(summary: GroupSummary, scores: Columns) -> list[Cells]:
    """Return the cells to the right of the method: last epoch, equal time, and best epochs."""
    rows = []
    if summary.seeds > 1:
        memory = plus_minus(summary.memory, mebibytes)
        rows.append(_mean_cells(f"mean of {summary.seeds} seeds", summary.final, scores, memory))
    if summary.equal_time:
        rows.append(_mean_cells("at equal time", summary.equal_time, scores))
    if summary.best:
        rows.append(
            _mean_cells(f"best by {' or '.join(summary.best_splits)}", summary.best, scores)
        )
    return rows


def _mean_cells(title: str, snapshot: GroupSnapshot, scores: Columns, memory: str = "") -> Cells:
    means = [plus_minus(snapshot.score(*score), percent) for score in scores]
    time = plus_minus(snapshot.seconds, seconds) if snapshot.seconds else ""
    return [title, "", *means, time, memory]


def _caption(comparison: Comparison) -> str:
    lines = [
        "Student: the trained network. Teacher: the moving average of its weights.",
        "±: 95 % Student-t interval over seeds.",
    ]
    if comparison.equal_time:
        lines.append(
            "At equal time: the last epoch evaluated before the run of "
            f"{comparison.equal_time.fastest} with the same seed ended."
        )
    if any("test" in summary.best_splits for summary in comparison.summaries):
        lines.append(
            "Best by test: each network at its best epoch, chosen on the test images, "
            "so these values are optimistic."
        )
    lines.append(MEMORY_NOTE)
    if not all(run.finished for run in comparison.runs):
        lines.append("Means do not include unfinished runs.")
    return "\n".join(lines)
