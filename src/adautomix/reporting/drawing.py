"""Charts as inline SVG, each with a caption and a table of its numbers.

Colors of lines are CSS variables (`--series-1`, …) with a fallback, and text is `currentColor`, so
that the same chart is readable on a light page, on a dark page and in print.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Eight hues that are distinguishable with the common kinds of color blindness (after Okabe and
# Ito), darkened to a contrast of at least 3:1 on white; the page lightens them for dark mode.
PALETTE = ("#0a67a3", "#c4500a", "#0a7d5a", "#a94c86", "#7a6a00", "#2b8fb8", "#8c2f39", "#5d5d72")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#123456"  # Replaced by currentColor after drawing, because matplotlib does not know it.

LineStyle = Literal["-"] | tuple[float, tuple[float, ...]]
SOLID: LineStyle = "-"
DASHED: LineStyle = (0, (4, 1.6))
DOTTED: LineStyle = (0, (1, 1.4))
NETWORK_STYLES: dict[str, LineStyle] = {"teacher": SOLID, "student": DASHED}
"""Line style of each network in all charts: teachers are solid, students dashed."""

STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "legend.fontsize": 8,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "axes.formatter.useoffset": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    "grid.color": INK,
}
"""matplotlib settings of all charts."""


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        slug: identifies the chart within its page.
        title: heading.
        caption: explains what to look for in the chart.
        svg: the chart as inline SVG, with all text escaped.
        columns: titles of the table of numbers.
        rows: cells of the table of numbers, which may be thinned out.
    """

    slug: str
    title: str
    caption: str
    svg: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: name in the legend.
        xs: x coordinates of the points.
        ys: y coordinates of the points.
        color: index of the color and marker, see `series_style`.
        style: line style.
    """

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: int = 0
    style: LineStyle = SOLID


def series_style(index: int) -> dict[str, Any]:
    """Return the color and marker of a line as arguments of `Axes.plot`."""
    return {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}


@contextmanager
def drawing(slug: str) -> Iterator[None]:
    """Draw in the style of the reports inside a `with` block, with reproducible SVG bytes."""
    import matplotlib

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": slug}):
        yield


def line_chart(
    slug: str,
    title: str,
    caption: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    columns: tuple[str, ...],
    rows: list[tuple[str, ...]],
    marks: Sequence[tuple[float, str]] = (),
) -> Chart:
    """Return a chart of lines over a common x axis.

    Args:
        slug: see `Chart`.
        title: see `Chart`.
        caption: see `Chart`.
        series: the lines.
        x_label: label of the x axis, with its unit.
        y_label: label of the y axis, with its unit.
        columns: see `Chart`.
        rows: see `Chart`.
        marks: vertical lines, as (x, text).
    """
    from matplotlib.figure import Figure

    with drawing(slug):
        figure = Figure(figsize=(4.4, 2.6 + 0.16 * len(series) / 2), layout="constrained")
        axes = figure.subplots()
        for line in series:
            axes.plot(
                line.xs,
                line.ys,
                label=shorten(line.label),
                linestyle=line.style,
                **series_style(line.color),
            )
        for place, text in marks:
            mark(axes, place, text)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        legend(figure, axes)
        return Chart(slug, title, caption, inline_svg(figure, slug, title), columns, rows)


def mark(axes: "Axes", place: float, text: str) -> None:
    """Draw a vertical line with its text at the top."""
    axes.axvline(place, color=INK, linewidth=0.8, linestyle=DOTTED)
    axes.annotate(
        text, (place, 1), xycoords=("data", "axes fraction"), ha="left", va="bottom", fontsize=8
    )


def legend(figure: "Figure", axes: "Axes") -> None:
    """Draw the legend of `axes` below the figure."""
    handles, names = axes.get_legend_handles_labels()
    columns = 2 if all(len(name) <= 26 for name in names) else 1
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.6
    )


def shorten(text: str, limit: int = 50) -> str:
    """Return a long name without its middle: names of runs differ at their ends."""
    # matplotlib leaves labels that begin with an underscore out of legends.
    text = " ".join(text.split()).lstrip("_")
    if len(text) <= limit:
        return text
    half = (limit - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def inline_svg(figure: "Figure", slug: str, title: str) -> str:
    """Return a figure as scalable inline SVG with a title; its ids begin with `slug`."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():
        # The browser renders the text, so it does not matter if matplotlib's font lacks a glyph.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    width, height = 72 * figure.get_size_inches()
    body = buffer.getvalue().partition("<svg")[2].partition(">")[2]
    for before in (' id="', "url(#", 'href="#'):
        body = body.replace(before, f"{before}{slug}-")
    body = re.sub(r"(\d\.\d\d)\d+", r"\1", body)  # 0.01 pt is precise enough.
    body = body.replace(INK, "currentColor")
    for i, color in enumerate(PALETTE, start=1):
        body = body.replace(f": {color}", f": var(--series-{i}, {color})")
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{slug}-title">'
    )
    return f'{head}<title id="{slug}-title">{escape(title)}</title>{body}'
