"""Time a step against batch size, image size and N: one row of data and a picture.

python benchmarks/growth.py width=0.25 stem=cifar --rows benchmarks/results/cpu.jsonl
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common import add_settings, read_settings

from adautomix.bench.rows import append
from adautomix.bench.steps import time_steps
from adautomix.bench.workload import Row, Workload
from adautomix.config import merge
from adautomix.methods import find_method
from adautomix.reporting.drawing import drawing, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {
    "batch_size": "images per batch",
    "image_size": "image height and width, pixels",
    "n": "N, images per mix",
}
"""The quantities that can grow, and the axis labels of the picture."""
POINTS = {"batch_size": (25, 50, 100, 200), "image_size": (16, 32, 48, 64), "n": (2, 3, 4, 6, 8)}


def time_growth(
    work: Workload,
    points: Mapping[str, Sequence[int]] = POINTS,
    on_progress: Callable[[str], None] = lambda point: None,
) -> list[Row]:
    """Median step of each method while one kind of work grows and the rest stays as set.

    Args:
        work: what to measure; along "n" only the methods that have such a setting.
        points: along each of `AXES` the values to time at.
        on_progress: called with each point before it is timed.

    Returns:
        Rows with "axis", "value", "method" and "seconds".
    """
    rows = []
    for axis, value in ((axis, value) for axis, values in points.items() for value in values):
        if (grown := grow(work, axis, value)).methods:
            on_progress(f"{axis} {value}")
            point = {"axis": axis, "value": value}
            timings = time_steps(grown)
            rows += [point | {"method": t.method, "seconds": t.median} for t in timings]
    return rows


def grow(work: Workload, axis: str, value: int) -> Workload:
    """The work at one point of an axis; N is a setting of each method of its own."""
    if axis == "image_size":
        return replace(work, size=value)
    if axis == "batch_size":
        return replace(work, values=merge(work.values, {axis: value}))
    have = [name for name in work.methods if axis in find_method(name).Settings.model_fields]
    own = {name: {axis: value} for name in have}
    return replace(work, values=merge(work.values, own), methods=have)


def draw_growth(rows: Sequence[Row], path: Path) -> Path:
    """Write the rows of `time_growth` as an SVG with a panel an axis, and return its path."""
    from matplotlib.figure import Figure

    axes_there = [axis for axis in AXES if any(row["axis"] == axis for row in rows)]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with drawing("growth"):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        panels = figure.subplots(1, len(axes_there), squeeze=False)[0]
        for panel, axis in zip(panels, axes_there, strict=True):
            draw_panel(panel, axis, [row for row in rows if row["axis"] == axis], methods)
        panels[0].set_ylabel("one step, ms")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
    return path


def draw_panel(panel: "Axes", axis: str, rows: Sequence[Row], methods: Sequence[str]) -> None:
    """Step time along one axis, one line per method; scales are logarithmic except along N."""
    from matplotlib.ticker import LogLocator

    for i, method in enumerate(methods):
        points = [(row["value"], 1000 * row["seconds"]) for row in rows if row["method"] == method]
        if points:
            panel.plot(*zip(*points, strict=True), label=method, **series_style(i))
    panel.set_xlabel(AXES[axis])
    if axis == "n":
        panel.set_ylim(0, 1.1 * max(row["seconds"] * 1000 for row in rows))
    else:
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
    values = sorted({row["value"] for row in rows})
    panel.set_xticks(values, [str(value) for value in values])
    panel.minorticks_off()


def main() -> None:
    """Time, write a row and the picture."""
    arguments = parse_arguments()
    work = Workload(
        read_settings(arguments.settings), arguments.methods.split(","), arguments.steps
    )
    figures = time_growth(work, read_points(arguments.points) or POINTS, on_progress=print)
    append(arguments.rows, "growth", figures, device=work.device())
    print(f"Wrote {draw_growth(figures, arguments.picture)} and a row of {arguments.rows}")


def read_points(text: str) -> dict[str, list[int]]:
    """Points such as `batch_size=50:100,n=2:3` as lists of numbers by axis."""
    axes = (item.partition("=") for item in text.split(",") if item)
    return {axis: [int(value) for value in values.split(":")] for axis, _, values in axes}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_settings(parser)
    parser.add_argument("--methods", default="vanilla,mixup,adautomix", help="comma-separated")
    parser.add_argument("--steps", type=int, default=6, help="measured steps per point")
    parser.add_argument("--points", default="", help="such as batch_size=50:100,n=2:3")
    parser.add_argument("--rows", type=Path, default=Path("benchmarks/results/growth.jsonl"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/growth.svg"))
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
