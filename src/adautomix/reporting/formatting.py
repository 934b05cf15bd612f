"""How reports write numbers: digits, units, intervals and missing values."""

from collections.abc import Callable
from dataclasses import dataclass

from adautomix.reporting.statistics import Interval

MISSING = "–"
NETWORKS = ("student", "teacher")
MEMORY_NOTE = (
    "Memory is the peak memory of the GPU, or of the whole process on the CPU, which can include "
    "earlier runs of the same process."
)
_NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"

Writer = Callable[[float | None], str]
"""A function that formats a number, and `MISSING` for None."""


@dataclass(frozen=True)
class Metric:
    """A score of a network.

    Attributes:
        key: a field of `Scores`.
        title: name in the head of a column.
        unit: unit in the head of a column, or "".
        show: formats a value.
    """

    key: str
    title: str
    unit: str
    show: Writer


def decimals(places: int, scale: float = 1.0) -> Writer:
    """Return a function that formats `scale` times a number with a fixed number of decimals."""
    return lambda value: MISSING if value is None else f"{scale * value:.{places}f}"


def six_digits(value: float | None) -> str:
    """Return a number with up to six significant digits."""
    return MISSING if value is None else f"{value:.6g}"


percent = decimals(2, scale=100.0)
mebibytes = decimals(0)


def seconds(value: float | None) -> str:
    """Return seconds with one decimal and a separator of thousands."""
    return MISSING if value is None else f"{value:,.1f}"


def plus_minus(interval: Interval | None, show: Writer) -> str:
    """Return "mean ± half-width", or only the mean if there is a single seed."""
    if interval is None:
        return MISSING
    if interval.half_width is None:
        return show(interval.mean)
    return f"{show(interval.mean)} ±{_NO_BREAK_SPACE}{show(interval.half_width)}"


def points(difference: float) -> str:
    """Return a signed difference of fractions in percentage points; zero has a plus sign."""
    return f"{100 * difference:+z.2f}"


def points_plus_minus(interval: Interval | None) -> str:
    """Return a signed mean difference in percentage points with its half-width."""
    return difference_plus_minus(interval, "top1")


def difference_plus_minus(interval: Interval | None, metric: str) -> str:
    """Return a signed mean difference with its half-width, in points except for NLL."""
    if interval is None:
        return MISSING
    scale, places = (1, 3) if metric == "nll" else (100, 2)
    mean = f"{scale * interval.mean:+z.{places}f}"
    if interval.half_width is None:
        return mean
    space = _NO_BREAK_SPACE
    return f"{mean}{space}±{space}{scale * interval.half_width:.{places}f}"


def difference_unit(metric: str) -> str:
    """Return what follows a difference of a metric: " points", or nothing for NLL."""
    return "" if metric == "nll" else " points"


def points_range(bounds: tuple[float, float] | None) -> str:
    """Return the lower and upper bound of a difference in percentage points."""
    return MISSING if bounds is None else f"{points(bounds[0])} to {points(bounds[1])}"


METRICS = (
    Metric("top1", "top-1", "%", percent),
    Metric("top5", "top-5", "%", percent),
    Metric("nll", "NLL", "", decimals(3)),
    Metric("ece", "ECE", "%", percent),
)
