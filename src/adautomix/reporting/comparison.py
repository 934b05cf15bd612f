"""The comparison of runs, computed once: tables, pages and printed lines all read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adautomix.reporting.groups import Group, group_runs
from adautomix.reporting.significance import PairedTest, paired_tests, pick_baseline
from adautomix.reporting.snapshots import (
    EqualTime,
    GroupSummary,
    RunSnapshots,
    find_equal_time,
    summarize_group,
    take_snapshots,
)
from adautomix.runs.records import Run


@dataclass(frozen=True)
class Comparison:
    """Everything that reports show about a set of runs.

    Attributes:
        runs: the runs, finished or not.
        groups: the runs in groups that differ only in the seed.
        summaries: the means over seeds of each group, in the order of `groups`.
        snapshots: the snapshots of the finished runs, by the name of the run.
        equal_time: the training time of the fastest method; None for fewer than two groups.
        baseline: label of the method that the others are tested against; None if no run is
            finished.
        tests: significance tests of the other groups against the baseline.
        source: the file of rows that the comparison was read from; None for run folders.
    """

    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    summaries: tuple[GroupSummary, ...]
    snapshots: Mapping[str, RunSnapshots]
    equal_time: EqualTime | None
    baseline: str | None
    tests: tuple[PairedTest, ...]
    source: Path | None = None


def compare_runs(runs: Sequence[Run], baseline: str | None = None) -> Comparison:
    """Compare runs with each other.

    Args:
        runs: runs with different names.
        baseline: label of the method or variant that the others are tested against; by default
            "vanilla" if it is there, else the first.

    Raises:
        UsageError: no finished run has the label `baseline`.
    """
    groups = group_runs(runs)
    equal_time = find_equal_time(groups)
    taken = {run.name: take_snapshots(run, equal_time) for run in runs}
    snapshots = {name: one for name, one in taken.items() if one is not None}
    return build_comparison(groups, runs, snapshots, equal_time, baseline)


def build_comparison(
    groups: Sequence[Group],
    runs: Sequence[Run],
    snapshots: Mapping[str, RunSnapshots],
    equal_time: EqualTime | None,
    baseline: str | None,
) -> Comparison:
    """Compute means and tests from the snapshots of runs; for the errors see `compare_runs`."""
    finished = [group for group in groups if group.seeds]
    picked, tests = None, []
    if finished:
        picked = pick_baseline([group.runs[0].label for group in finished], baseline)
        tests = paired_tests(finished, snapshots, picked)
    return Comparison(
        tuple(runs),
        tuple(groups),
        tuple(summarize_group(group, snapshots) for group in groups),
        snapshots,
        equal_time,
        picked,
        tuple(tests),
    )
