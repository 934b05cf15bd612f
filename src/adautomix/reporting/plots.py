"""Charts of a comparison, each with its numbers as a table."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, nan
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from adautomix.metrics import Scores
from adautomix.reporting.comparison import Comparison
from adautomix.reporting.drawing import (
    DASHED,
    DOTTED,
    INK,
    SOLID,
    Chart,
    LineStyle,
    drawing,
    inline_svg,
    series_style,
    shorten,
)
from adautomix.reporting.formatting import (
    NETWORKS,
    Writer,
    decimals,
    percent,
    plus_minus,
    six_digits,
)
from adautomix.reporting.groups import Group
from adautomix.reporting.snapshots import GroupSummary
from adautomix.reporting.statistics import Interval
from adautomix.runs.records import Run, number_at
from adautomix.runs.schema import EpochRow, Row
from adautomix.subsample import subsample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_MAX_POINTS = 400  # per line
_MANY_RUNS = 20  # with more of them on a page, lines have fewer points, and markers at their ends
_MAX_TABLE_ROWS = 60
_X_LABELS = {"epoch": "epoch", "seconds": "training time (s)"}
_NETWORK_TITLES = {
    "teacher": "teacher (moving average)",
    "student": "student (trained network)",
}

Family = tuple[str, list[Run]]
"""Runs that share a color, with their name in the legend."""


@dataclass(frozen=True)
class Line:
    """One line per run.

    Attributes:
        key: dotted name of a field of the rows.
        title: name in the legend.
        style: line style.
        show: formats a value for the table of numbers.
        scale: factor between the value in the row and the value in the chart.
    """

    key: str
    title: str
    style: LineStyle
    show: Writer = six_digits
    scale: float = 1.0

    def value(self, row: Row) -> float | None:
        """Return the value in one row, not scaled; None if the row lacks it."""
        return number_at(row, self.key.split("."))


@dataclass(frozen=True)
class Panel:
    """One pair of axes: the label of the y axis, and its lines."""

    label: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class ChartSpec:
    """What one chart shows.

    Attributes:
        slug: identifies the chart within the page.
        title: heading of the chart.
        caption: explains what to look for in the chart.
        kind: kind of the rows, "train" or "epoch".
        panels: axes, one above the other, with a common x axis.
        along: field of the rows on the x axis.
    """

    slug: str
    title: str
    caption: str
    kind: Literal["train", "epoch"]
    panels: tuple[Panel, ...]
    along: Literal["epoch", "seconds"] = "epoch"

    @property
    def lines(self) -> list[Line]:
        """The lines of all panels."""
        return [line for panel in self.panels for line in panel.lines]

    def rows(self, run: Run) -> list[Row]:
        """Return the rows of a run in which at least one line has a value."""
        rows: Sequence[Row] = run.epoch_rows if self.kind == "epoch" else run.train_rows
        return [row for row in rows if any(line.value(row) is not None for line in self.lines)]

    def x(self, row: Row) -> float | None:
        """Return the position of a row on the x axis."""
        return number_at(row, self.along)


_ACCURACY = Panel(
    "top-1 on test (%)",
    (
        Line("teacher.top1", _NETWORK_TITLES["teacher"], SOLID, percent, 100),
        Line("student.top1", _NETWORK_TITLES["student"], DASHED, percent, 100),
    ),
)

CHARTS = (
    ChartSpec(
        "accuracy",
        "Test accuracy",
        "Top-1 accuracy on the test images after each evaluated epoch. The gap between the dashed "
        "and the solid line is the gain from averaging the weights. Compare methods on the same "
        "network.",
        "epoch",
        (_ACCURACY,),
    ),
    ChartSpec(
        "training-accuracy",
        "Training accuracy under mixing",
        "The accuracy of the student on a sample of unmixed training images, and its mixture "
        "accuracy, the fraction of the true label mixture that it predicts on mixed images. The "
        "mixture accuracy stays well below 100 % even for a good network. An accuracy on unmixed "
        "training images far above the test accuracy indicates overfitting.",
        "epoch",
        (
            Panel(
                "student, training (%)",
                (
                    Line("probe", "unmixed training images", DASHED, percent, 100),
                    Line("mixture_accuracy", "mixture accuracy", DOTTED, percent, 100),
                ),
            ),
        ),
    ),
    ChartSpec(
        "loss",
        "Training loss",
        "The training loss of the student. Methods have different loss terms and mixes of "
        "different difficulty, so compare the shapes of the lines, not their heights.",
        "train",
        (Panel("training loss", (Line("loss", "student (trained network)", DASHED),)),),
    ),
    ChartSpec(
        "schedule",
        "Learning rate and teacher momentum",
        "Schedules of the run. The learning rate is that of the student. The teacher momentum is "
        "the weight of the old teacher in each update of the moving average.",
        "train",
        (
            Panel("learning rate", (Line("lr", "learning rate (student)", DASHED),)),
            Panel("teacher momentum", (Line("teacher_momentum", "teacher momentum", SOLID),)),
        ),
    ),
)

TIME_CHART = ChartSpec(
    "time",
    "Test accuracy over training time",
    "Top-1 accuracy on the test images over training time, which includes evaluation and "
    "checkpoints. One line per method; accuracies and times are means over its seeds.",
    "epoch",
    (_ACCURACY,),
    along="seconds",
)


_EFFICIENCY = (
    "Top-1 accuracy on the test images after the last epoch, over the mean time of an epoch with "
    "its evaluation and checkpoint. One point per method and network: the mean over finished "
    "seeds, with 95 % intervals if there are several. Higher is more accurate, further left is "
    "cheaper."
)


def curves(comparison: Comparison) -> list[Chart]:
    """Return every chart for which at least one run has logged values.

    Student lines are dashed and teacher lines solid throughout. The runs of a group share a color
    and a marker; if there is only one group, each run has its own.
    """
    families = _families(comparison)
    runs = comparison.runs
    return [_chart(spec, families, runs) for spec in CHARTS if any(spec.rows(run) for run in runs)]


def time_chart(comparison: Comparison) -> list[Chart]:
    """Return accuracy over training time, one line per method; none for fewer than two methods."""
    means = [mean_run(group) for group in comparison.groups]
    if sum(bool(TIME_CHART.rows(mean)) for mean in means) < 2:
        return []
    return [_chart(TIME_CHART, [(mean.name, [mean]) for mean in means], means)]


def efficiency_chart(comparison: Comparison) -> list[Chart]:
    """Return final accuracy over time per epoch, one point per method; none for fewer than two."""
    slug, title = "efficiency", "Test accuracy over time per epoch"
    timed = {i: one for i, one in enumerate(comparison.summaries) if one.seconds_per_epoch}
    if len(timed) < 2:
        return []
    with drawing(slug):
        svg = inline_svg(_scatter(timed), slug, title)
    rows = [
        (
            summary.label,
            plus_minus(summary.seconds_per_epoch, decimals(2)),
            *(plus_minus(summary.final.score(n, "top1"), percent) for n in _NETWORK_TITLES),
        )
        for summary in timed.values()
    ]
    columns = ("method", "seconds per epoch", *_NETWORK_TITLES.values())
    return [Chart(slug, title, _EFFICIENCY, svg, columns, rows)]


def _scatter(summaries: Mapping[int, GroupSummary]) -> "Figure":
    """Return one point per group and network, filled for teachers and hollow for students.

    Args:
        summaries: the groups, by the index of their color.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    fills: dict[str, dict[str, Any]] = {"teacher": {}, "student": {"markerfacecolor": "none"}}
    handles = _color_handles({i: summary.label for i, summary in summaries.items()})
    handles += [
        Line2D([], [], label=_NETWORK_TITLES[n], linestyle="none", marker="o", color=INK, **fill)
        for n, fill in fills.items()
    ]
    columns = _legend_columns(handles)
    height = 2.3 + 0.16 * ceil(len(handles) / columns)
    figure = Figure(figsize=(4.4, height), layout="constrained")
    axes = figure.subplots()
    for i, summary in summaries.items():
        x, x_error = _with_error(summary.seconds_per_epoch)
        for network, fill in fills.items():
            y, y_error = _with_error(summary.final.score(network, "top1"), scale=100)
            style = series_style(i) | fill
            axes.errorbar(x, y, y_error, x_error, linestyle="none", elinewidth=0.8, **style)
    # With few seeds, intervals can extend to negative times and beyond 0 or 100 %.
    axes.set_xlim(left=max(0, axes.get_xlim()[0]))
    low, high = axes.get_ylim()
    axes.set_ylim(max(-1, low), min(101, high))
    axes.set_xlabel("time per epoch (s)")
    axes.set_ylabel("final top-1 on test (%)")
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _with_error(interval: Interval | None, scale: float = 1.0) -> tuple[float, float | None]:
    """Return the position of a point and the length of its error bar, None for one seed."""
    if interval is None:
        return nan, None
    half_width = interval.half_width
    return scale * interval.mean, None if half_width is None else scale * half_width


def mean_run(group: Group) -> Run:
    """Return a run with the mean scores of a group's finished runs at each evaluated epoch."""
    epochs = defaultdict(list)
    for run in group.runs:
        for row in run.evaluated if run.finished else []:
            epochs[row.epoch].append(row)
    rows = [_mean_row(rows) for _, rows in sorted(epochs.items())]
    return replace(group.runs[0], name=group.label, train_rows=[], epoch_rows=rows)


def _mean_row(rows: Sequence[EpochRow]) -> EpochRow:
    def mean(*path: str) -> float:
        return fmean(value for row in rows if (value := number_at(row, path)) is not None)

    scores = {
        name: Scores(**{key: mean(name, key) for key in getattr(rows[0], name).present()})
        for name in NETWORKS
    }
    return rows[0].model_copy(update={"seconds": mean("seconds"), **scores})


def _chart(spec: ChartSpec, families: Sequence[Family], runs: Sequence[Run]) -> Chart:
    with drawing(spec.slug):
        svg = inline_svg(_draw(spec, families), spec.slug, spec.title)
    columns = ("run", spec.along, *(line.title for line in spec.lines))
    return Chart(spec.slug, spec.title, spec.caption, svg, columns, _numbers(spec, runs))


def _numbers(spec: ChartSpec, runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return the table of numbers, thinned out to the same number of rows per run."""
    rows_per_run = max(1, _MAX_TABLE_ROWS // len(runs))
    return [
        (
            run.name,
            six_digits(spec.x(row)),
            *(line.show(line.value(row)) for line in spec.lines),
        )
        for run in subsample(runs, _MAX_TABLE_ROWS)
        for row in subsample(spec.rows(run), rows_per_run)
    ]


def _draw(spec: ChartSpec, families: Sequence[Family]) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    handles = _legend(spec, [name for name, _ in families])
    columns = _legend_columns(handles)
    height = 1.5 + 0.8 * len(spec.panels) + 0.16 * ceil(len(handles) / columns)
    figure = Figure(figsize=(4.4, height), layout="constrained")
    all_axes = figure.subplots(len(spec.panels), sharex=True, squeeze=False)[:, 0]
    crowd = max(1, sum(len(members) for _, members in families) / _MANY_RUNS)
    for axes, panel in zip(all_axes, spec.panels, strict=True):
        for i, (_, members) in enumerate(families):
            for run in members:
                _plot(axes, panel, spec, run, series_style(i), crowd)
        axes.set_ylabel(panel.label)
    figure.align_ylabels()
    all_axes[-1].set_xlabel(_X_LABELS[spec.along])
    whole = spec.along == "epoch"
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=whole, steps=[1, 2, 5, 10]))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.6
    )
    return figure


def _plot(
    axes: "Axes", panel: Panel, spec: ChartSpec, run: Run, style: dict[str, Any], crowd: float
) -> None:
    """Draw the lines of one run in one panel; with so many times `_MANY_RUNS` on the page."""
    rows = spec.rows(run)
    for line in panel.lines:
        points = [
            (x, line.scale * y)
            for row in rows
            if (x := spec.x(row)) is not None and (y := line.value(row)) is not None
        ]
        points = subsample(points, max(2, int(_MAX_POINTS / crowd)))
        every = max(1, len(points) // 8) if crowd == 1 else slice(-1, None)
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.plot(xs, ys, linestyle=line.style, markevery=every, **style)


def _families(comparison: Comparison) -> list[Family]:
    """Return the runs that share a color: the groups, or each run if there is only one group."""
    if len(comparison.groups) == 1:
        return [(run.name, [run]) for run in comparison.runs]
    return [(group.label, list(group.runs)) for group in comparison.groups]


def _legend(spec: ChartSpec, families: Sequence[str]) -> "list[Line2D]":
    """Return one handle per color, then one per line style."""
    from matplotlib.lines import Line2D

    colors = _color_handles(dict(enumerate(families)))
    styles = [Line2D([], [], label=s.title, linestyle=s.style, color=INK) for s in spec.lines]
    return colors + styles


def _legend_columns(handles: "Sequence[Line2D]") -> int:
    """Return the number of columns of a legend: two if all names are short."""
    return 2 if all(len(str(handle.get_label())) <= 26 for handle in handles) else 1


def _color_handles(names: Mapping[int, str]) -> "list[Line2D]":
    """Return a legend handle for each name, by the index of its color."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], label=shorten(name), linestyle="none", **series_style(i))
        for i, name in names.items()
    ]
