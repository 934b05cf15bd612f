"""Groups of runs that differ only in the seed, and the settings that distinguish groups."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from adautomix.reporting.formatting import MISSING
from adautomix.reporting.statistics import Interval, t_interval
from adautomix.runs.records import Run

LOCATION_SETTINGS = frozenset({"out", "name", "data_root", "device", "workers", "recipe", "config"})
"""Settings that state where and how a run was computed, not what was computed."""

_MAX_LABEL_SETTINGS = 3

T = TypeVar("T")
RunValue = Callable[[Run], float | None]
"""A function that reads one number from a run, None if the run does not have it."""


@dataclass(frozen=True)
class Group:
    """Runs of one method, or of one variant of a sweep, that differ only in the seed.

    Attributes:
        label: name of the method or variant, with the settings that distinguish it from other
            groups of that name.
        runs: the runs, finished or not.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> int:
        """The number of different seeds that have a finished run."""
        return len({run.fact("seed") for run in self.runs if run.finished})

    def by_seed(self, value: Callable[[Run], T | None]) -> dict[Any, list[T]]:
        """Return the values of the finished runs that have one, by seed."""
        found: dict[Any, list[T]] = defaultdict(list)
        for run in self.runs:
            if run.finished and (one := value(run)) is not None:
                found[run.fact("seed")].append(one)
        return found

    def seed_means(self, value: RunValue) -> dict[Any, float]:
        """Return one value per seed: two runs with one seed are not independent samples."""
        return {seed: fmean(values) for seed, values in self.by_seed(value).items()}

    def interval(self, value: RunValue) -> Interval | None:
        """Return the mean over the seeds of finished runs; None if no run has a value."""
        means = self.seed_means(value)
        return t_interval(list(means.values())) if means else None


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group the runs that differ only in the seed; groups are in the order of their first run."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(repr(sorted(_identity(run).items())), []).append(run)
    members = list(found.values())
    return [Group(_label(group, members), tuple(group)) for group in members]


def _identity(run: Run) -> dict[str, str]:
    """Return the settings that all runs of a group have in common."""
    settings = flatten(run.config)
    # A run written before a setting existed lacks it, which means the same as None.
    known = {name: value for name, value in settings.items() if value is not None}
    ignored = LOCATION_SETTINGS | {"seed"}
    return {k: repr(v) for k, v in known.items() if k not in ignored} | {"method": run.method}


def _label(group: list[Run], members: list[list[Run]]) -> str:
    label = group[0].label
    namesakes = [runs[0] for runs in members if runs[0].label == label]
    names = [name for name in differing_settings(namesakes) if name not in ("seed", "label")]
    settings = flatten(group[0].config)
    text = [f"{name} {settings.get(name, MISSING)}" for name in names[:_MAX_LABEL_SETTINGS]]
    if len(names) > _MAX_LABEL_SETTINGS:
        text.append(f"{len(names) - _MAX_LABEL_SETTINGS} more")
    return f"{label} ({', '.join(text)})" if text else label


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one dictionary with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Return the dotted names of settings that are not equal in all runs, locations left out."""
    settings = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for one in settings for name in one if name not in LOCATION_SETTINGS)
    return [name for name in names if len({repr(one.get(name)) for one in settings}) > 1]
