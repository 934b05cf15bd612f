"""Charts of results per class: bars with intervals, and the confusion matrix."""

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from adautomix.class_results import ClassResult, ClassResults, main_score
from adautomix.reporting.drawing import INK, PALETTE, Chart, drawing, inline_svg, shorten
from adautomix.reporting.formatting import MISSING, percent
from adautomix.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BARS = 20
MAX_CELLS = 16  # classes in a confusion matrix; more would not be legible on a phone
MAX_ROWS = 200  # rows in a table of numbers
_DARKEST = 0.55  # opacity of a full cell, which keeps its number legible on light and dark pages
_NAME = 18  # characters of a class name beside a chart
OTHER = "other classes"

BARS = (
    "Fraction of the test photos of each class that is right, with its 95 % interval; the weakest "
    "class comes first. Where two intervals overlap widely, the photos do not tell which class is "
    "harder."
)
BARS_SEVERAL = (
    "Average precision of each class: 100 % if every photo with the label ranks above every photo "
    "without it. The weakest class comes first."
)
CONFUSIONS = (
    "Each row is a true class, and the numbers say as what its photos are predicted. Right ones "
    "are on the diagonal. A dark cell beside it is a pair of classes to tell apart with more "
    "photos, or to merge if their labels are not certain."
)
COLUMNS = ("class", "photos", "right", "recall (%)", "95 % interval", "precision (%)", "F1 (%)")
AP_COLUMN = "average precision (%)"


def class_columns(results: ClassResults) -> tuple[str, ...]:
    """Return the titles of the table of classes."""
    return (*COLUMNS, AP_COLUMN) if results.multi_label else COLUMNS


def class_rows(results: ClassResults, limit: int = MAX_ROWS) -> list[tuple[str, ...]]:
    """Return one row per class, the weakest first and those without test photos last."""
    absent = [one for one in results.classes if not one.images]
    rows = [class_cells(one) for one in (*results.weakest_first, *absent)[:limit]]
    return [row if results.multi_label else row[:-1] for row in rows]


def class_cells(one: ClassResult) -> tuple[str, ...]:
    """Return the cells of one class."""
    between = MISSING
    if one.interval is not None:
        low, high = one.interval
        between = f"{100 * low:.0f} to {100 * high:.0f}"
    return (
        one.name,
        f"{one.images:,}",
        f"{one.correct:,}",
        percent(one.recall),
        between,
        percent(one.precision),
        percent(one.f1),
        percent(one.average_precision),
    )


def axis_name(name: str) -> str:
    """Return the name of a class for an axis, of characters that a drawing can hold."""
    return shorten(printable(name, None), _NAME)


def class_bars(slug: str, title: str, results: ClassResults) -> Chart:
    """Return horizontal bars of the classes that occur, the weakest first, at most `MAX_BARS`."""
    from matplotlib.figure import Figure

    shown = results.weakest_first[:MAX_BARS]
    caption = BARS_SEVERAL if results.multi_label else BARS
    if len(results.present) > len(shown):
        caption += f" The {len(shown)} weakest of {len(results.present)} classes are shown."
    with drawing(slug):
        figure = Figure(figsize=(4.4, 0.7 + 0.24 * len(shown)), layout="constrained")
        axes = figure.subplots()
        draw_bars(axes, shown, results.multi_label)
        svg = inline_svg(figure, slug, title)
    return Chart(slug, title, caption, svg, class_columns(results), class_rows(results))


def draw_bars(axes: "Axes", shown: list[ClassResult], several: bool) -> None:
    """Draw one bar per class, with its interval and its counts."""
    for place, one in enumerate(shown):
        score = 100 * main_score(one)
        axes.barh(place, score, height=0.62, color=PALETTE[0], alpha=_DARKEST)
        if one.interval is not None and not several:
            low, high = (100 * bound for bound in one.interval)
            axes.plot([low, high], [place, place], color=INK, linewidth=1)
        text = f"{score:.0f} %" if several else f"{one.correct:,}/{one.images:,}"
        axes.annotate(
            text, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8
        )
    axes.set_yticks(range(len(shown)), [axis_name(one.name) for one in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("average precision (%)" if several else "right (%)")
    axes.grid(visible=False, axis="y")


class Matrix(NamedTuple):
    """A confusion matrix as it is drawn.

    Attributes:
        names: classes of the rows, and of the columns but the last one for other classes.
        counts: images, one list per row.
    """

    names: list[str]
    counts: list[list[int]]


def matrix_of(results: ClassResults, limit: int = MAX_CELLS) -> Matrix:
    """Return the confusion matrix: of all classes, or of those that are confused most.

    Of more than `limit` classes, those with the most confused images are rows and columns, and a
    last column counts what is predicted as any other class.
    """
    errors = Counter[int]()
    for one in results.confusions:
        errors[one.label] += one.images
        errors[one.predicted] += one.images
    kept = list(range(len(results.classes)))
    if len(kept) > limit:
        kept = sorted(k for k, _ in errors.most_common(limit))
    place = {k: i for i, k in enumerate(kept)}
    counts = [[0] * (len(kept) + 1) for _ in kept]
    for k in kept:
        counts[place[k]][place[k]] = results.classes[k].correct
    for one in results.confusions:
        if one.label in place:
            counts[place[one.label]][place.get(one.predicted, len(kept))] += one.images
    names = [results.classes[k].name for k in kept]
    if not any(row[-1] for row in counts):
        return Matrix(names, [row[:-1] for row in counts])
    return Matrix([*names, OTHER], counts)


def confusion_chart(slug: str, title: str, results: ClassResults) -> Chart:
    """Return the confusion matrix as a drawing, with every confusion in its table of numbers."""
    from matplotlib.figure import Figure

    matrix = matrix_of(results)
    caption = CONFUSIONS
    if len(matrix.counts) < len(results.classes):
        caption += (
            f" The {len(matrix.counts)} classes that are confused most are shown, of "
            f"{len(results.classes)}."
        )
    side = 1.6 + 0.25 * len(matrix.counts)
    with drawing(slug):
        figure = Figure(figsize=(max(3.6, side + 0.4), max(2.8, side)), layout="constrained")
        draw_matrix(figure.subplots(), matrix)
        svg = inline_svg(figure, slug, title)
    names = [one.name for one in results.classes]
    rows: list[tuple[str, ...]] = [
        (names[one.label], names[one.predicted], f"{one.images:,}")
        for one in results.confusions[:MAX_ROWS]
    ]
    return Chart(slug, title, caption, svg, ("true class", "predicted as", "photos"), rows)


def draw_matrix(axes: "Axes", matrix: Matrix) -> None:
    """Draw one cell per pair with images: the darker, the larger its fraction of the row."""
    from matplotlib.patches import Rectangle

    for y, row in enumerate(matrix.counts):
        for x, count in enumerate(row):
            if not count:
                continue
            color = PALETTE[0] if x == y else PALETTE[1]
            opacity = _DARKEST * (0.15 + 0.85 * count / sum(row))
            axes.add_patch(
                Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, alpha=opacity, linewidth=0)
            )
            axes.text(x, y, str(count), ha="center", va="center", fontsize=7)
    names = [axis_name(name) for name in matrix.names]
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(matrix.counts)), names[: len(matrix.counts)])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(matrix.counts) - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_xlabel("predicted as")
    axes.set_ylabel("true class")
