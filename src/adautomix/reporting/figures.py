"""Figures of runs: what is shown, how it is written, and means over seeds with intervals."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, TypeVar

from adautomix.runs.records import Run, number_at
from adautomix.runs.schema import EpochRow

MISSING = "–"
MEMORY = "memory: the peak of the GPU, or of the whole process, which may have trained before"
NETWORKS = ("student", "teacher")

# Settings that say where a run was computed, not what was computed.
_PLACES = frozenset({"out", "name", "data_root", "device", "workers", "recipe", "config"})
_MOST_TOLD = 3

T = TypeVar("T")
Reader = Callable[[Run], float | None]
"""Of one figure of a run, None where there is none."""


@dataclass(frozen=True)
class Metric:
    """A measured quantity: its key in a run's files, its name, and how a value is written."""

    key: str
    title: str
    unit: str
    show: Callable[[float | None], str]


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds with its 95 % Student-t half-width, None where there is one seed."""

    mean: float
    half_width: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """Runs of one method, or variant, that differ in nothing but seed (and the place they ran)."""

    label: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> int:
        """How many different seeds have a finished run."""
        return len({run.fact("seed") for run in self.runs if run.finished})

    def by_seed(self, value: Callable[[Run], T | None]) -> dict[Any, list[T]]:
        """`value` of the finished runs that have it, by seed."""
        found: dict[Any, list[T]] = defaultdict(list)
        for run in self.runs:
            if run.finished and (figure := value(run)) is not None:
                found[run.fact("seed")].append(figure)
        return found

    def figures(self, value: Reader) -> dict[Any, float]:
        """`value` of each seed: two runs of one seed are one draw of the randomness, not two."""
        return {seed: fmean(values) for seed, values in self.by_seed(value).items()}

    def interval(self, value: Reader) -> Interval | None:
        """Mean of `value` over the seeds of the finished runs; None where none has a value."""
        figures = self.figures(value)
        return t_interval(list(figures.values())) if figures else None


@dataclass(frozen=True)
class EqualTime:
    """For each seed, how long the run of the fastest method took to its last epoch."""

    fastest: str
    ends: dict[Any, float]

    def row(self, run: Run) -> EpochRow | None:
        """The last tested epoch of `run` by then, None where the fastest has no such seed."""
        end = self.ends.get(run.fact("seed"))
        return None if end is None else run.reached_by(end)

    def figure(self, *path: str) -> Reader:
        """A reader of a figure of that epoch, such as ("teacher", "top1")."""
        return lambda run: number_at(self.row(run), path)


def equal_time(found: Sequence[Group]) -> EqualTime | None:
    """When the fastest of several groups had ended, None where fewer than two have."""
    ends = [(group.label, group.figures(last_epoch("seconds"))) for group in found]
    ended = [(label, seconds) for label, seconds in ends if seconds]
    if len(ended) < 2:
        return None
    return EqualTime(*min(ended, key=lambda end: fmean(end[1].values())))


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % Student-t half-width of independent values, at least one."""
    mean, n = fmean(values), len(values)
    if n == 1:
        return Interval(mean, None, n)
    from scipy.stats import t

    return Interval(mean, float(t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n), n)


def groups(runs: Sequence[Run]) -> list[Group]:
    """Gather the runs that are seeds of one another, in the order of their first run."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(repr(sorted(_substance(run).items())), []).append(run)
    members = list(found.values())
    return [Group(_label(own, members), tuple(own)) for own in members]


def _substance(run: Run) -> dict[str, str]:
    settings = flatten(run.config)
    # An older run does not have a setting that came later; where it is none, that is the same.
    known = {k: v for k, v in settings.items() if v is not None}
    kept = {k: repr(v) for k, v in known.items() if k not in _PLACES and k != "seed"}
    return kept | {"method": run.method}


def _label(own: list[Run], members: list[list[Run]]) -> str:
    """Its name, with the settings that tell this group from others of the same name."""
    label = own[0].label
    rivals = [runs[0] for runs in members if runs[0].label == label]
    apart = [name for name in differing(rivals) if name not in ("seed", "label")]
    settings = flatten(own[0].config)
    text = [f"{name} {settings.get(name, MISSING)}" for name in apart[:_MOST_TOLD]]
    if len(apart) > _MOST_TOLD:
        text.append(f"{len(apart) - _MOST_TOLD} more")
    return f"{label} ({', '.join(text)})" if text else label


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def differing(runs: Sequence[Run]) -> list[str]:
    """Dotted names of the settings that are not the same in all runs, places left out."""
    settings = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for one in settings for name in one if name not in _PLACES)
    return [name for name in names if len({repr(one.get(name)) for one in settings}) > 1]


def decimals(places: int, scale: float = 1.0) -> Callable[[float | None], str]:
    """A writer of numbers: `scale` times the value with so many places, "–" where missing."""
    return lambda value: MISSING if value is None else f"{scale * value:.{places}f}"


def significant(value: float | None) -> str:
    """A number to six significant digits, "–" where missing."""
    return MISSING if value is None else f"{value:.6g}"


percent = decimals(2, scale=100.0)
mebibytes = decimals(0)


def duration(seconds: float | None) -> str:
    """Seconds to a tenth, thousands set apart, "–" where missing."""
    return MISSING if seconds is None else f"{seconds:,.1f}"


def plus_minus(interval: Interval | None, show: Callable[[float | None], str]) -> str:
    """`mean ± half-width` written with `show`; the mean alone where there is one seed."""
    if interval is None:
        return MISSING
    if interval.half_width is None:
        return show(interval.mean)
    return f"{show(interval.mean)} ±\N{NO-BREAK SPACE}{show(interval.half_width)}"


METRICS = (
    Metric("top1", "top-1", "%", percent),
    Metric("top5", "top-5", "%", percent),
    Metric("nll", "NLL", "", decimals(3)),
    Metric("ece", "ECE", "%", percent),
)


def final(network: str, key: str) -> Reader:
    """A reader of one network's final figure, such as ("teacher", "top1")."""
    return lambda run: run.figure(network, key)


def at_best(network: str, *path: str) -> Reader:
    """A reader of a figure of the network's best epoch, such as ("top1") on the test images."""
    return lambda run: number_at(run.best_row(network), path)


def last_epoch(key: str) -> Reader:
    """A reader of a figure of the last tested epoch, such as "seconds" when it had ended."""
    return lambda run: number_at(run.evaluated[-1], key) if run.evaluated else None


def seconds_an_epoch(run: Run) -> float | None:
    """Seconds of an epoch with its evaluation and checkpoint, None before the first was tested."""
    seconds, epochs = last_epoch("seconds")(run), last_epoch("epoch")(run)
    return seconds / epochs if seconds is not None and epochs else None


def peak_memory(run: Run) -> float | None:
    """Peak memory of the run in MiB, None where it was not measured."""
    return number_at(run.summary, "peak_memory_mib")
