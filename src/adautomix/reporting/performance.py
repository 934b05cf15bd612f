"""What was measured of speed: tables for the terminal, and a page of Markdown with a picture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adautomix.bench.growth import AXES
from adautomix.bench.phases import PHASES, REST
from adautomix.bench.rows import read
from adautomix.bench.workload import Row
from adautomix.errors import UsageError
from adautomix.pictures.thin import thin
from adautomix.reporting.drawing import drawing, look
from adautomix.reporting.figures import MISSING, NETWORKS, decimals, percent, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INTRODUCTION = """\
# Performance

Written by `python benchmarks/write_performance.py` from the rows of data in `benchmarks/results/`,
the newest of each kind and machine; nothing here is typed. Times are medians, with quartiles.
"""
NO_GPU = "No row comes from a GPU so far: every figure below is that of a CPU.\n"
PICTURE = "images/growth.svg"  # beside the page
MOST_POINTS = 11  # that a table shows of a long series


def show_time(value: Any) -> str:
    """Seconds, or a range of them, with the unit that suits."""
    if isinstance(value, Sequence):
        return " to ".join(show_time(end) for end in value)
    if value < 0.01:
        return f"{1000 * value:.3f} ms"
    if value < 1:
        return f"{1000 * value:.1f} ms"
    return f"{value:.2f} s" if value < 600 else f"{value / 3600:.2f} h"


def show_plain(value: Any) -> str:
    """A number to six digits, anything else as it is."""
    return significant(value) if isinstance(value, int | float) else str(value)


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "asked": ("", lambda asked: "← asked for" if asked else ""),
    "seconds": ("time", show_time),
    "quartiles": ("quartiles", show_time),
    "apart_seconds": ("time apart", show_time),
    "library_seconds": ("library's time", show_time),
    "times": ("× {first}", decimals(2)),
    "mean_times": ("× {first}, means", decimals(2)),
    "to_first": ("× the first", decimals(2)),
    "times_ours": ("× adautomix's", decimals(2)),
    "images_per_second": ("images/s", decimals(0)),
    "peak_memory_mib": ("peak MiB", decimals(0)),
    "memory_mib": ("MiB", decimals(1)),
    "flops": ("GFLOP a step", decimals(3, scale=1e-9)),
    "flops_per_second": ("GFLOP/s", decimals(1, scale=1e-9)),
    "peak_flops_per_second": ("machine's GFLOP/s", decimals(1, scale=1e-9)),
    "share_of_peak": ("share of it, %", percent),
    "seconds_an_epoch": ("an epoch", show_time),
    "hours": ("to the end", lambda hours: show_time(3600 * hours)),
    "efficiency": ("efficiency, %", percent),
    **{name: (f"{name}, %", percent) for name in (*PHASES, REST, "student")},
    **{f"{network}_half_width": (f"± {network}", percent) for network in NETWORKS},
}
"""Of each measured figure: the title of its column and how a value is written."""

SECTIONS = {
    "steps": (
        "A step",
        "The trainer's own step: reading, augmentation, losses, optimizer, teacher. Methods take "
        "turns, step by step, in one process.",
    ),
    "peers": (
        "Beside other libraries",
        "Steps of the same network, batch and classes in fp32, in the same turns. The other "
        "library's batch lies ready in memory; ours is read and augmented within the time.",
    ),
    "phases": (
        "Where a step goes",
        "Share of each part in the real step, timed inside it; nested parts count once, as the "
        "innermost. The device is waited for between parts, so the sum may exceed a step's time.",
    ),
    "work": (
        "Arithmetic",
        "Floating-point operations of matrix products, convolutions and attention in a real step, "
        "and their rate as a share of what a large matrix product or convolution reaches on this "
        "machine.",
    ),
    "mixing": (
        "Mixing alone",
        "One call on a batch in memory: the draw, the images and the labels. Libraries take turns.",
    ),
    "growth": ("As the work grows", "One step while one thing grows and the others stay."),
    "memory": (
        "Memory over a long run",
        "Held between two steps: by tensors on a GPU, by the whole process on a CPU.",
    ),
    "epochs": ("Time an epoch over a run", "Whole epochs, evaluation and checkpoints included."),
    "seeds": (
        "Several seeds of a small network",
        "One step of each of several networks: in turns with all cores, in a process a core (what "
        "`compare` does on a CPU), or as one step of stacked weights by `torch.func.vmap`, which "
        "has no data and no teacher to see to.",
    ),
    "scaling": (
        "Over processes",
        "Steps of processes with one thread and a batch each, which share batch statistics, mixes "
        "and gradients; apart: as many at the same time that share nothing but the machine.",
    ),
    "schedules": (
        "A generator that learns less often",
        "AdAutoMix whose generator learns at every k-th step only; top-1 accuracies of student and "
        "teacher are means over seeds with 95 % intervals.",
    ),
}
"""The parts of the page by kind of row: title, and what was measured how."""


def table_of(figures: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells: what was measured after what it was measured of; no empty columns."""
    known = list(COLUMNS)
    names = dict.fromkeys(name for figure in figures for name in figure)
    full = [name for name in names if any(figure.get(name) is not None for figure in figures)]
    full.sort(key=lambda name: known.index(name) if name in known else -1)
    columns = [COLUMNS.get(name, (name.replace("_", " "), show_plain)) for name in full]
    titles = [title.format(first=figures[0].get("method", "vanilla")) for title, _ in columns]
    cells = [
        [
            MISSING if figure.get(name) is None else show(figure[name])
            for name, (_, show) in zip(full, columns, strict=True)
        ]
        for figure in figures
    ]
    return titles, cells


def a_column_a_method(figures: Sequence[Row]) -> list[Row]:
    """Rows of (axis, value, method, seconds) with the methods side by side."""
    points: dict[tuple[str, float], Row] = {}
    for figure in figures:
        place = {"grows": AXES[figure["axis"]], "to": figure["value"]}
        point = points.setdefault((figure["axis"], figure["value"]), place)
        point[figure["method"]] = show_time(figure["seconds"])
    return list(points.values())


def write_performance(folder: Path, page: Path) -> Path:
    """Write the page from the rows in `folder/*.jsonl`, and return its path.

    Raises:
        UsageError: there are no rows.
    """
    rows = [row for file in sorted(folder.glob("*.jsonl")) for row in read(file)]
    if not rows:
        raise UsageError(
            f"no rows in {folder}: make some, `adautomix bench --rows {folder}/x.jsonl`"
        )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts_of_page(rows, page.parent)), encoding="utf-8")
    return page


def parts_of_page(rows: Sequence[Row], beside: Path) -> Iterator[str]:
    """The introduction, then each part that has rows."""
    yield INTRODUCTION
    if not any(row["machine"]["gpu"] for row in rows):
        yield NO_GPU
    for kind, (title, text) in SECTIONS.items():
        found = newest([row for row in rows if row["kind"] == kind])
        if found:
            yield f"## {title}\n\n{text}\n"
        if found and kind == "growth" and (beside / PICTURE).exists():
            yield f"![{title}]({PICTURE})\n"
        for row in found:
            yield markdown(*table_of(shown(kind, row["figures"])))
            yield provenance(row)


def shown(kind: str, figures: Sequence[Row]) -> Sequence[Row]:
    """What a table has of the figures: methods side by side, a few of a long series."""
    if kind == "growth":
        return a_column_a_method(figures)
    return thin(figures, MOST_POINTS) if kind in ("memory", "epochs") else figures


def newest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each command on each machine."""
    by_day = sorted(rows, key=lambda row: str(row["date"]))
    return list({f"{row['machine']} {row['command']}": row for row in by_day}.values())


def markdown(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, all but the first column aligned to the right."""
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *cells]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def provenance(row: Row) -> str:
    """Where a table comes from: machine, versions, commit, day and command."""
    machine = row["machine"]
    plural = "" if machine["threads"] == 1 else "s"
    place = f"{machine['cpu']}, {machine['threads']} thread{plural}"
    if machine["gpu"]:
        place = f"{machine['gpu']} beside {place}"
    versions = ", ".join(f"{name} {value}" for name, value in row["versions"].items())
    commit = f"commit {row['commit']}" if row["commit"] else "outside of a checkout"
    return f"{place}; {versions}; {commit}; {row['date']}:\n\n    {row['command']}\n"


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
    """Step time along one axis, a line a method; scales are logarithmic except along N."""
    from matplotlib.ticker import LogLocator

    for i, method in enumerate(methods):
        points = [(row["value"], 1000 * row["seconds"]) for row in rows if row["method"] == method]
        if points:
            panel.plot(*zip(*points, strict=True), label=method, **look(i))
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
