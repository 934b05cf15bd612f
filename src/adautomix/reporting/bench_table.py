"""Benchmark results as a table: order, titles and units of its columns."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adautomix.bench.phases import PHASES, REST
from adautomix.reporting.formatting import MISSING, NETWORKS, decimals, percent, six_digits


def show_time(value: Any) -> str:
    """Return a duration in seconds, or a range of durations, in ms, s or h."""
    if isinstance(value, Sequence):
        return " to ".join(show_time(end) for end in value)
    if value < 0.01:
        return f"{1000 * value:.3f} ms"
    if value < 1:
        return f"{1000 * value:.1f} ms"
    return f"{value:.2f} s" if value < 600 else f"{value / 3600:.2f} h"


def show_plain(value: Any) -> str:
    """Return a number with up to six significant digits, and anything else as text."""
    return six_digits(value) if isinstance(value, int | float) else str(value)


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "asked": ("", lambda asked: "← requested" if asked else ""),
    "seconds": ("time", show_time),
    "quartiles": ("quartiles", show_time),
    "apart_seconds": ("time apart", show_time),
    "library_seconds": ("library's time", show_time),
    "times": ("× {first}", decimals(2)),
    "mean_times": ("× {first}, means", decimals(2)),
    "to_first": ("× first", decimals(2)),
    "times_ours": ("× adautomix's", decimals(2)),
    "images_per_second": ("images/s", decimals(0)),
    "times_torchvision": ("× as fast as torchvision", decimals(2)),
    "processor_ms_per_image": ("processor ms per image", decimals(2)),
    "processor_times_torchvision": ("× less than torchvision", decimals(2)),
    "share_waiting": ("waiting, %", percent),
    "peak_memory_mib": ("peak MiB", decimals(0)),
    "memory_mib": ("MiB", decimals(1)),
    "flops": ("GFLOP per step", decimals(3, scale=1e-9)),
    "flops_per_second": ("GFLOP/s", decimals(1, scale=1e-9)),
    "peak_flops_per_second": ("peak GFLOP/s", decimals(1, scale=1e-9)),
    "share_of_peak": ("of peak, %", percent),
    "seconds_an_epoch": ("per epoch", show_time),
    "hours": ("whole run", lambda hours: show_time(3600 * hours)),
    "efficiency": ("efficiency, %", percent),
    **{name: (f"{name}, %", percent) for name in (*PHASES, REST, "student")},
    **{f"{network}_half_width": (f"± {network}", percent) for network in NETWORKS},
}
"""The title of the column of each measured value, and a function that formats the value."""


def table_of(figures: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the titles and cells of a table, without empty columns.

    Columns that describe what was measured come first, then the measured values.
    """
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
