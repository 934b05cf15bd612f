"""Curves of runs for the page, each with the numbers behind it."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, nan
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from adautomix.metrics import Scores
from adautomix.reporting.drawing import (
    DASHED,
    DOTTED,
    INK,
    SOLID,
    Chart,
    LineStyle,
    drawing,
    inline_svg,
    look,
    shorten,
)
from adautomix.reporting.figures import (
    NETWORKS,
    Group,
    Interval,
    decimals,
    final,
    groups,
    percent,
    plus_minus,
    seconds_an_epoch,
    significant,
)
from adautomix.runs.records import Run, number_at
from adautomix.runs.schema import EpochRow, Row
from adautomix.subsample import subsample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_MAX_POINTS = 400
_MAX_TABLE_ROWS = 60
_AXES = {"epoch": "epoch", "seconds": "training time (s)"}
_NETWORK_TITLES = {
    "teacher": "teacher (moving average)",
    "student": "student (trained network)",
}


@dataclass(frozen=True)
class Line:
    """One line per run: a dotted key into its rows, and how it is drawn and written."""

    key: str
    title: str
    style: LineStyle
    show: Callable[[float | None], str] = significant
    scale: float = 1.0

    def value(self, row: Row) -> float | None:
        """The number this line shows of one row, in the unit of the file."""
        return number_at(row, self.key.split("."))


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    label: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Plan:
    """What one chart shows: rows of one kind, in panels that share the epochs, or the seconds."""

    slug: str
    title: str
    caption: str
    kind: str
    panels: tuple[Panel, ...]
    along: Literal["epoch", "seconds"] = "epoch"

    @property
    def lines(self) -> list[Line]:
        """The lines of all panels."""
        return [line for panel in self.panels for line in panel.lines]

    def rows(self, run: Run) -> list[Row]:
        """The rows of `run` in which at least one line has a value."""
        rows: Sequence[Row] = run.epoch_rows if self.kind == "epoch" else run.train_rows
        return [row for row in rows if any(line.value(row) is not None for line in self.lines)]

    def place(self, row: Row) -> float | None:
        """Where along the axis a row is drawn."""
        return number_at(row, self.along)


_ACCURACY = Panel(
    "top-1 on test (%)",
    (
        Line("teacher.top1", _NETWORK_TITLES["teacher"], SOLID, percent, 100),
        Line("student.top1", _NETWORK_TITLES["student"], DASHED, percent, 100),
    ),
)

PLANS = (
    Plan(
        "accuracy",
        "Test accuracy",
        "Top-1 accuracy on the test images after each epoch. The distance from dashed to solid "
        "is what the moving average gives; compare methods line style by line style.",
        "epoch",
        (_ACCURACY,),
    ),
    Plan(
        "training-accuracy",
        "Training accuracy under mixing",
        "Two readings of the student. The share of the true mixture that its prediction captures "
        "stays well below 100 % even for a good network; the probe, unmixed training images, "
        "says whether the network has learnt them. A probe far above the test accuracy is "
        "over-fitting.",
        "epoch",
        (
            Panel(
                "student, training (%)",
                (
                    Line("probe", "unmixed training images", DASHED, percent, 100),
                    Line("mixture_accuracy", "share of mixture captured", DOTTED, percent, 100),
                ),
            ),
        ),
    ),
    Plan(
        "loss",
        "Training loss",
        "The student's loss as it was minimized. Methods sum different terms on differently "
        "hard images: look at the shape of one line, not at the height of one against another.",
        "train",
        (Panel("training loss", (Line("loss", "student (trained network)", DASHED),)),),
    ),
    Plan(
        "schedule",
        "Learning rate and teacher momentum",
        "What the run was told to do. The learning rate moves the student; the momentum is the "
        "share of itself that the teacher keeps at each step.",
        "train",
        (
            Panel("learning rate", (Line("lr", "learning rate (student)", DASHED),)),
            Panel("momentum", (Line("teacher_momentum", "momentum (teacher)", SOLID),)),
        ),
    ),
)

TIME_PLAN = Plan(
    "time",
    "Test accuracy against training time",
    "Top-1 accuracy on the test images after so many seconds of training, evaluation and "
    "checkpoints included. One line per method; accuracies and seconds are means over its seeds.",
    "epoch",
    (_ACCURACY,),
    along="seconds",
)


_EFFICIENCY = (
    "Top-1 accuracy on the test images after the last epoch against the seconds of an epoch, "
    "evaluation and checkpoint included: a point a method, mean over its finished seeds, with bars "
    "of the 95 % interval where there are several. Further up is better, further left cheaper."
)


def curves(runs: Sequence[Run]) -> list[Chart]:
    """Draw every chart for which at least one run has logged numbers.

    Student lines are dashed and teacher lines solid throughout. Runs that are seeds of one another
    share a color and marker; where there are no others, each run has its own.
    """
    return [_chart(plan, runs) for plan in PLANS if any(plan.rows(run) for run in runs)]


def time_chart(runs: Sequence[Run]) -> list[Chart]:
    """Accuracy against training time, one line per method; None if fewer than two finished."""
    courses = [mean_course(group) for group in groups(runs)]
    enough = sum(bool(TIME_PLAN.rows(course)) for course in courses) > 1
    return [_chart(TIME_PLAN, courses)] if enough else []


def efficiency_chart(runs: Sequence[Run]) -> list[Chart]:
    """Final accuracy against the seconds of an epoch, a point a method; none for fewer than two."""
    slug, title = "efficiency", "Test accuracy against the time of an epoch"
    found = {i: g for i, g in enumerate(groups(runs)) if g.figures(seconds_an_epoch)}
    if len(found) < 2:
        return []
    with drawing(slug):
        svg = inline_svg(_scatter(found), slug, title)
    rows = [
        (
            group.label,
            plus_minus(group.interval(seconds_an_epoch), decimals(2)),
            *(plus_minus(group.interval(final(n, "top1")), percent) for n in _NETWORK_TITLES),
        )
        for group in found.values()
    ]
    columns = ("method", "seconds per epoch", *_NETWORK_TITLES.values())
    return [Chart(slug, title, _EFFICIENCY, svg, columns, rows)]


def _scatter(found: Mapping[int, Group]) -> "Figure":
    """A point a group and network: the teacher's filled, the student's hollow."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    fills: dict[str, dict[str, Any]] = {"teacher": {}, "student": {"markerfacecolor": "none"}}
    handles = _swatches({i: group.label for i, group in found.items()})
    handles += [
        Line2D([], [], label=_NETWORK_TITLES[n], linestyle="none", marker="o", color=INK, **fill)
        for n, fill in fills.items()
    ]
    columns = _columns(handles)
    height = 2.3 + 0.16 * ceil(len(handles) / columns)
    figure = Figure(figsize=(4.4, height), layout="constrained")
    axes = figure.subplots()
    for i, group in found.items():
        x, x_error = _with_error(group.interval(seconds_an_epoch))
        for network, fill in fills.items():
            y, y_error = _with_error(group.interval(final(network, "top1")), scale=100)
            axes.errorbar(
                x, y, y_error, x_error, linestyle="none", elinewidth=0.8, **look(i), **fill
            )
    axes.set_xlabel("time of an epoch (s)")
    axes.set_ylabel("final top-1 on test (%)")
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _with_error(interval: Interval | None, scale: float = 1.0) -> tuple[float, float | None]:
    """Where a point is drawn, and how long its bar is; none where there is one seed."""
    if interval is None:
        return nan, None
    half_width = interval.half_width
    return scale * interval.mean, None if half_width is None else scale * half_width


def mean_course(group: Group) -> Run:
    """A run that stands for its seeds: at each tested epoch, the means of the finished ones."""
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


def _chart(plan: Plan, runs: Sequence[Run]) -> Chart:
    with drawing(plan.slug):
        svg = inline_svg(_draw(plan, runs), plan.slug, plan.title)
    columns = ("run", plan.along, *(line.title for line in plan.lines))
    return Chart(plan.slug, plan.title, plan.caption, svg, columns, _numbers(plan, runs))


def _numbers(plan: Plan, runs: Sequence[Run]) -> list[tuple[str, ...]]:
    share = max(1, _MAX_TABLE_ROWS // len(runs))
    return [
        (
            run.name,
            significant(plan.place(row)),
            *(line.show(line.value(row)) for line in plan.lines),
        )
        for run in subsample(runs, _MAX_TABLE_ROWS)
        for row in subsample(plan.rows(run), share)
    ]


def _draw(plan: Plan, runs: Sequence[Run]) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    families = _families(runs)
    handles = _legend(plan, [name for name, _ in families])
    columns = _columns(handles)
    height = 1.5 + 0.8 * len(plan.panels) + 0.16 * ceil(len(handles) / columns)
    figure = Figure(figsize=(4.4, height), layout="constrained")
    all_axes = figure.subplots(len(plan.panels), sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(all_axes, plan.panels, strict=True):
        for i, (_, members) in enumerate(families):
            for run in members:
                _plot(axes, panel, plan, run, look(i))
        axes.set_ylabel(panel.label)
    figure.align_ylabels()
    all_axes[-1].set_xlabel(_AXES[plan.along])
    whole = plan.along == "epoch"
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=whole, steps=[1, 2, 5, 10]))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.6
    )
    return figure


def _plot(axes: "Axes", panel: Panel, plan: Plan, run: Run, look: dict[str, Any]) -> None:
    rows = plan.rows(run)
    for line in panel.lines:
        points = [
            (x, line.scale * y)
            for row in rows
            if (x := plan.place(row)) is not None and (y := line.value(row)) is not None
        ]
        points = subsample(points, _MAX_POINTS)
        every = max(1, len(points) // 8)
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.plot(xs, ys, linestyle=line.style, markevery=every, **look)


def _families(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """The runs that share a color: seeds of one another, or each its own where all are."""
    found = groups(runs)
    if len(found) == 1:
        return [(run.name, [run]) for run in runs]
    return [(group.label, list(group.runs)) for group in found]


def _legend(plan: Plan, families: Sequence[str]) -> "list[Line2D]":
    """Handles: a color and marker for each family, then a line style for each line."""
    from matplotlib.lines import Line2D

    colors = _swatches(dict(enumerate(families)))
    styles = [Line2D([], [], label=s.title, linestyle=s.style, color=INK) for s in plan.lines]
    return colors + styles


def _columns(handles: "Sequence[Line2D]") -> int:
    """Of a legend: two where every name is short."""
    return 2 if all(len(str(handle.get_label())) <= 26 for handle in handles) else 1


def _swatches(names: Mapping[int, str]) -> "list[Line2D]":
    """Handles of the legend: for each name its color and marker."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], label=shorten(name), linestyle="none", **look(i))
        for i, name in names.items()
    ]
