"""Scores at the moments that methods are compared at: last epoch, equal time, best epoch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from adautomix.reporting.formatting import MAP, METRICS, NETWORKS
from adautomix.reporting.groups import Group
from adautomix.reporting.statistics import Interval
from adautomix.runs.records import Run, number_at
from adautomix.runs.schema import EpochRow, NetworkName, ScoreFields, SplitName

# ---------------------------------------------------------------------- one run


@dataclass(frozen=True)
class Snapshot:
    """Test scores of one run at one moment.

    Attributes:
        epochs: the epoch of each network.
        scores: the test scores of each network.
        seconds: training time at that moment; None if it differs between networks.
    """

    epochs: dict[NetworkName, int]
    scores: dict[NetworkName, ScoreFields]
    seconds: float | None = None


@dataclass(frozen=True)
class RunSnapshots:
    """Snapshots of one finished run.

    Attributes:
        final: after the last epoch.
        equal_time: after the last evaluated epoch that fits into the time of the fastest method;
            None if there is none.
        best: each network at its own best epoch; None if the run recorded no evaluated epoch.
        best_split: the split on which best epochs were chosen.
    """

    final: Snapshot
    equal_time: Snapshot | None = None
    best: Snapshot | None = None
    best_split: SplitName | None = None


@dataclass(frozen=True)
class EqualTime:
    """The training time that the fastest method needed for its last epoch.

    Attributes:
        fastest: label of the group with the shortest mean time.
        limits: its training time in seconds for each seed.
    """

    fastest: str
    limits: dict[int, float]

    @property
    def seconds(self) -> float:
        """The mean over seeds."""
        return fmean(self.limits.values())


def find_equal_time(groups: Sequence[Group]) -> EqualTime | None:
    """Return the time of the fastest group; None if fewer than two groups have a finished run."""
    times = [(group.label, group.seed_means(last_epoch_seconds)) for group in groups]
    finished = [(label, limits) for label, limits in times if limits]
    if len(finished) < 2:
        return None
    return EqualTime(*min(finished, key=lambda one: fmean(one[1].values())))


def last_epoch_seconds(run: Run) -> float | None:
    """Return the training time up to the last evaluated epoch, its evaluation included."""
    return run.evaluated[-1].seconds if run.evaluated else None


def seconds_per_epoch(run: Run) -> float | None:
    """Return the mean time of an epoch, with its evaluation and checkpoint."""
    return run.evaluated[-1].seconds / run.evaluated[-1].epoch if run.evaluated else None


def peak_memory(run: Run) -> float | None:
    """Return the peak memory of a run in MiB; None if it is unfinished."""
    return None if run.summary is None else run.summary.peak_memory_mib


def take_snapshots(run: Run, equal_time: EqualTime | None) -> RunSnapshots | None:
    """Return the snapshots of a run; None if it is unfinished."""
    if run.summary is None:
        return None
    summary = run.summary
    final = Snapshot(dict.fromkeys(summary.final, summary.epochs), summary.final, summary.seconds)
    limit = None if equal_time is None else equal_time.limits.get(summary.seed)
    row = None if limit is None else run.reached_by(limit)
    reached = None if row is None else _snapshot_of(dict.fromkeys(NETWORKS, row), row.seconds)
    best = {name: row for name in NETWORKS if (row := run.best_row(name))}
    if not best:
        return RunSnapshots(final, reached)
    return RunSnapshots(final, reached, _snapshot_of(best), run.picked_on)


def _snapshot_of(rows: Mapping[Any, EpochRow], seconds: float | None = None) -> Snapshot:
    """Return a snapshot of networks at evaluated epochs."""
    scores = {name: getattr(row, name) for name, row in rows.items()}
    return Snapshot({name: row.epoch for name, row in rows.items()}, scores, seconds)


# ---------------------------------------------------------------------- one group


@dataclass(frozen=True)
class GroupSnapshot:
    """Means over the seeds of a group at one moment.

    Attributes:
        scores: the interval of each (network, metric); missing if no run has a value.
        epochs: the interval of the epoch of each network.
        seconds: the interval of the training time.
    """

    scores: Mapping[tuple[str, str], Interval] = field(default_factory=dict)
    epochs: Mapping[str, Interval] = field(default_factory=dict)
    seconds: Interval | None = None

    def score(self, network: str, metric: str) -> Interval | None:
        """Return the mean of a metric, such as ("teacher", "top1"); None if there is none."""
        return self.scores.get((network, metric))


@dataclass(frozen=True)
class GroupSummary:
    """All means over the seeds of a group that reports show.

    Attributes:
        label: label of the group.
        seeds: number of seeds with a finished run.
        final: after the last epoch; empty if no run is finished.
        equal_time: at the time of the fastest method; None if no run has such a snapshot.
        best: each network at its own best epoch; None if no run has such a snapshot.
        best_splits: the splits on which best epochs were chosen.
        memory: peak memory in MiB.
        seconds_per_epoch: time of an epoch, with its evaluation and checkpoint.
    """

    label: str
    seeds: int
    final: GroupSnapshot
    equal_time: GroupSnapshot | None
    best: GroupSnapshot | None
    best_splits: tuple[str, ...]
    memory: Interval | None
    seconds_per_epoch: Interval | None


def summarize_group(group: Group, snapshots: Mapping[str, RunSnapshots]) -> GroupSummary:
    """Return the means over the seeds of a group.

    Args:
        group: the group.
        snapshots: the snapshots of finished runs, by the name of the run.
    """
    found = [snapshots[run.name] for run in group.runs if run.name in snapshots]
    return GroupSummary(
        group.label,
        group.seeds,
        _mean_snapshot(group, lambda run: snapshots[run.name].final) or GroupSnapshot(),
        _mean_snapshot(group, lambda run: snapshots[run.name].equal_time),
        _mean_snapshot(group, lambda run: snapshots[run.name].best),
        tuple(sorted({one.best_split for one in found if one.best_split})),
        group.interval(peak_memory),
        group.interval(seconds_per_epoch),
    )


def _mean_snapshot(group: Group, pick: Callable[[Run], Snapshot | None]) -> GroupSnapshot | None:
    """Return the mean of one snapshot per run; None if no run has it."""

    def mean(*path: str) -> Interval | None:
        return group.interval(lambda run: number_at(pick(run), path))

    scores = {
        (network, metric.key): interval
        for network in NETWORKS
        for metric in (*METRICS, MAP)
        if (interval := mean("scores", network, metric.key))
    }
    epochs = {network: one for network in NETWORKS if (one := mean("epochs", network))}
    return GroupSnapshot(scores, epochs, mean("seconds")) if epochs else None
