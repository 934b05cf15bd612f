"""How reports write numbers: digits, units, intervals and missing values."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from adautomix.reporting.statistics import Interval
from adautomix.runs.records import number_at

MISSING = "–"
NETWORKS = ("student", "teacher")
MEMORY_NOTE = (
    "Memory is the peak memory of the GPU, or of the whole process on the CPU, which can include "
    "earlier runs of the same process."
)
METRIC_NOTE = (
    "Top-1 is the fraction of the images whose most likely class is right, top-5 counts the five "
    "most likely classes. NLL, the negative log-likelihood, is low if the true class gets a high "
    "probability. ECE, the expected calibration error, is the mean distance between confidence and "
    "accuracy: with 5 %, a network that says 80 % is right in about 75 or 85 % of the cases. mAP, "
    "for images with several labels, is the mean average precision over the classes that occur."
)
MIXTURE_NOTE = (
    "Mixture accuracy is the fraction of the label of a mixed training image that the student's "
    "most likely classes get. Mixed images are hard on purpose, so that it stays far below the "
    "test accuracy; that is no fault."
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
MAP = Metric("map", "mAP", "%", percent)
"""Mean average precision, which only images with several labels have."""


def shown_metrics(scores: Iterable[object]) -> tuple[Metric, ...]:
    """Return the metrics to show: those of all networks, and mAP if at least one has it.

    Args:
        scores: `Scores` or their fields by name; None for a missing score.
    """
    has_map = any(number_at(one, "map") is not None for one in scores)
    return (MAP, *METRICS) if has_map else METRICS


def shorten_list(items: Iterable[str], limit: int = 8) -> str:
    """Return a list in words: "a", "a and b", "a, b and c"; "a, b and 7 more" beyond `limit`."""
    words = list(items) or [MISSING]
    if len(words) > limit:
        words = [*words[: limit - 1], f"{len(words) - limit + 1} more"]
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last
