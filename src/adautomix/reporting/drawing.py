"""Figures as inline SVG, each with the words and the numbers behind it.

Colors are written as CSS variables (`--series-1` … with a fallback) and the ink as
`currentColor`, so that one picture serves a light page, a dark page and a printer.
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

# Eight hues that stay apart under the common kinds of color blindness (after Okabe and Ito),
# darkened to at least 3:1 on white; the page lightens them for dark mode.
PALETTE = ("#0a67a3", "#c4500a", "#0a7d5a", "#a94c86", "#7a6a00", "#2b8fb8", "#8c2f39", "#5d5d72")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#123456"  # stands for currentColor while matplotlib, which does not know it, draws

LineStyle = Literal["-"] | tuple[float, tuple[float, ...]]
SOLID: LineStyle = "-"
DASHED: LineStyle = (0, (4, 1.6))
DOTTED: LineStyle = (0, (1, 1.4))
NETWORK_STYLES: dict[str, LineStyle] = {"teacher": SOLID, "student": DASHED}
"""Teacher lines are solid and student lines dashed wherever lines are drawn."""

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
"""Of every figure, as matplotlib's settings."""


@dataclass(frozen=True)
class Chart:
    """A drawn chart: inline SVG, the words around it, and its numbers as a thinned table."""

    slug: str
    title: str
    caption: str
    svg: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class Series:
    """One line: its name in the legend, its points, and how it is drawn (see `look`)."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: int = 0
    style: LineStyle = SOLID


def look(index: int) -> dict[str, Any]:
    """Color and marker of the line number `index`."""
    return {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}


@contextmanager
def drawing(slug: str) -> Iterator[None]:
    """Within it matplotlib draws in the house style, the same bytes for the same numbers."""
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
    """Lines over a common axis.

    Args:
        slug: names the chart within its page.
        title: what is drawn.
        caption: what to see in it.
        series: the lines.
        x_label: of the horizontal axis, with its unit.
        y_label: of the vertical axis, with its unit.
        columns: titles of the table of numbers behind it.
        rows: its cells, written out.
        marks: vertical lines at some x, each with its text.
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
                **look(line.color),
            )
        for place, text in marks:
            mark(axes, place, text)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        legend(figure, axes)
        return Chart(slug, title, caption, inline_svg(figure, slug, title), columns, rows)


def mark(axes: "Axes", place: float, text: str) -> None:
    """A vertical line with its text at the top."""
    axes.axvline(place, color=INK, linewidth=0.8, linestyle=DOTTED)
    axes.annotate(
        text, (place, 1), xycoords=("data", "axes fraction"), ha="left", va="bottom", fontsize=8
    )


def legend(figure: "Figure", axes: "Axes") -> None:
    """The lines of `axes` by name, below the figure."""
    handles, names = axes.get_legend_handles_labels()
    columns = 2 if all(len(name) <= 26 for name in names) else 1
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.6
    )


def shorten(text: str, limit: int = 50) -> str:
    """Cut the middle out of a long name: runs tell themselves apart at both ends."""
    # matplotlib leaves labels that begin with an underscore out of the legend.
    text = " ".join(text.split()).lstrip("_")
    if len(text) <= limit:
        return text
    half = (limit - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def inline_svg(figure: "Figure", slug: str, title: str) -> str:
    """A figure's SVG for use inside a page: titled, free to grow, its ids unique to its slug."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():
        # The reader's browser sets the text, so letters that matplotlib's font lacks are no loss.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    width, height = 72 * figure.get_size_inches()
    body = buffer.getvalue().partition("<svg")[2].partition(">")[2]
    for before in (' id="', "url(#", 'href="#'):
        body = body.replace(before, f"{before}{slug}-")
    body = re.sub(r"(\d\.\d\d)\d+", r"\1", body)  # a hundredth of a point is enough
    body = body.replace(INK, "currentColor")
    for i, color in enumerate(PALETTE, start=1):
        body = body.replace(f": {color}", f": var(--series-{i}, {color})")
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{slug}-title">'
    )
    return f'{head}<title id="{slug}-title">{escape(title)}</title>{body}'
