"""Paired tests of methods against a baseline: over seeds, and over test images.

Significance is decided over seeds: by the 95 % Student-t interval of the differences between runs
with the same seed. A bootstrap over the test images is reported in addition; it does not cover the
variation between seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adautomix.errors import UsageError
from adautomix.reporting.formatting import NETWORKS, points_plus_minus
from adautomix.reporting.groups import Group, differing_settings
from adautomix.reporting.snapshots import RunSnapshots, Snapshot
from adautomix.reporting.statistics import (
    MAX_SEEDS_NEEDED,
    ImageDifferences,
    Interval,
    bootstrap_interval,
    seeds_needed,
    t_interval,
)
from adautomix.runs.records import Run, number_at

DEFAULT_BASELINE = "vanilla"

_SEED_NOTE = (
    "A difference is called significant if the 95 % Student-t interval of the paired differences "
    "over seeds excludes 0. There is no correction for multiple comparisons: among twenty tests of "
    "equally good methods, one is expected to be significant by chance."
)
_SEEDS_NEEDED_NOTE = (
    "The number of seeds that would be needed assumes that the mean and the spread of the "
    "differences stay the same."
)
_BOOTSTRAP_NOTE = (
    "Bootstrap: 95 % interval of the difference when the test images are resampled. It covers the "
    "choice of test images for these trained networks, but not the variation between seeds."
)
_NO_BOOTSTRAP_NOTE = (
    "There is no bootstrap interval if a run has no recorded predictions (resuming a finished run "
    "records them), or if two runs with the same seed were tested on different images."
)

Take = Callable[[RunSnapshots], Snapshot | None]


@dataclass(frozen=True)
class PairedTest:
    """Top-1 accuracy of one network of a method, compared with the baseline seed by seed.

    Attributes:
        method: label of the group of the method.
        baseline: label of the group of the baseline.
        network: "student" or "teacher".
        differences: accuracy of the method minus that of the baseline after the last epoch, one
            per seed that both have, -1 to 1.
        equal_time_differences: the same at equal training time.
        bootstrap: bounds of the bootstrap interval over test images; None if predictions of the
            same images are not available for every seed.
        other_settings: settings that differ in addition to those of the two methods.
    """

    method: str
    baseline: str
    network: str
    differences: tuple[float, ...]
    equal_time_differences: tuple[float, ...]
    bootstrap: tuple[float, float] | None
    other_settings: tuple[str, ...]

    @property
    def interval(self) -> Interval | None:
        """The mean difference over seeds; None if there is no common seed."""
        return t_interval(self.differences) if self.differences else None

    @property
    def equal_time_interval(self) -> Interval | None:
        """The mean difference at equal training time; None if there is no common seed."""
        return t_interval(self.equal_time_differences) if self.equal_time_differences else None

    @property
    def conclusion(self) -> str:
        """What the test says about the method, in a few words."""
        interval = self.interval
        if interval is None:
            return "no finished runs with the same seed"
        if interval.half_width is None:
            return "only one common seed, so significance cannot be tested"
        if not interval.excludes_zero:
            return "no significant difference"
        return "significantly better" if interval.mean > 0 else "significantly worse"

    @property
    def inconclusive(self) -> bool:
        """Whether several seeds were compared without a significant difference."""
        interval = self.interval
        return interval is not None and interval.n > 1 and not interval.excludes_zero

    @property
    def seeds_needed(self) -> int | None:
        """How many more seeds an inconclusive test would need, see `statistics.seeds_needed`.

        None if the test is not inconclusive, or if the number is very large.
        """
        return seeds_needed(self.differences) if self.inconclusive else None

    @property
    def sentence(self) -> str:
        """The result of the test in one sentence."""
        n = len(self.differences)
        parts = [f"{self.method} vs. {self.baseline}, {self.network}: {self.conclusion}"]
        if n:
            seeds = f", {n} seeds" if n > 1 else ""
            parts[0] += f" ({points_plus_minus(self.interval)} points{seeds})"
        if self.inconclusive:
            parts.append(f"{_more_seeds(self.seeds_needed)} would be needed")
        if self.other_settings:
            parts.append(f"other settings differ too: {', '.join(self.other_settings)}")
        return f"{'; '.join(parts)}."


def paired_tests(
    groups: Sequence[Group], snapshots: Mapping[str, RunSnapshots], baseline: str
) -> list[PairedTest]:
    """Test both networks of every group against the baseline.

    Args:
        groups: groups that have a finished run.
        snapshots: the snapshots of finished runs, by the name of the run.
        baseline: label of the baseline's runs; of several groups with this label, each method is
            compared with the one whose settings are most similar to its own.
    """
    pairs = [(group, find_reference(group, groups, baseline)) for group in groups]
    return [
        compare_groups(group, reference, network, snapshots)
        for group, reference in pairs
        if reference is not None and reference is not group
        for network in NETWORKS
    ]


def explain_tests(tests: Sequence[PairedTest]) -> list[str]:
    """Return sentences that explain the tests; none if there are no tests."""
    notes = [_SEED_NOTE] if tests else []
    if any(test.inconclusive for test in tests):
        notes.append(_SEEDS_NEEDED_NOTE)
    if any(test.bootstrap for test in tests):
        notes.append(_BOOTSTRAP_NOTE)
    if not all(test.bootstrap for test in tests):
        notes.append(_NO_BOOTSTRAP_NOTE)
    return notes


def pick_baseline(labels: Sequence[str], requested: str | None = None) -> str:
    """Return the requested label; by default "vanilla" if it is there, else the first label.

    Raises:
        UsageError: the requested label is not among `labels`.
    """
    if requested is None:
        return DEFAULT_BASELINE if DEFAULT_BASELINE in labels else labels[0]
    if requested not in labels:
        known = ", ".join(dict.fromkeys(labels))
        raise UsageError(f"--baseline: {requested!r} is not among {known}")
    return requested


def find_reference(group: Group, groups: Sequence[Group], baseline: str) -> Group | None:
    """Return the group of the baseline that a group is compared with.

    It is the one with the fewest differing settings; if only the baseline was run, the first.
    """
    candidates = [one for one in groups if one.runs[0].label == baseline]
    if len(candidates) == len(groups):
        return candidates[0]
    if group in candidates:
        return group
    return min(candidates, key=lambda one: len(other_settings(group, one)), default=None)


def other_settings(group: Group, reference: Group) -> tuple[str, ...]:
    """Return the settings that differ between two methods, those of the methods left out."""
    one, other = group.runs[0], reference.runs[0]
    if one.method == other.method:
        return ()  # The labels of the groups name the differing settings.
    ignored = {"method", "label", "seed", one.method, other.method}
    names = differing_settings([one, other])
    return tuple(name for name in names if name.partition(".")[0] not in ignored)


def compare_groups(
    group: Group, reference: Group, network: str, snapshots: Mapping[str, RunSnapshots]
) -> PairedTest:
    """Compare one network of two groups."""

    def differences(take: Take) -> tuple[float, ...]:
        def top1(run: Run) -> float | None:
            return number_at(take(snapshots[run.name]), ("scores", network, "top1"))

        first, second = group.seed_means(top1), reference.seed_means(top1)
        return tuple(first[seed] - second[seed] for seed in first if seed in second)

    final = differences(lambda run: run.final)
    images = image_differences(group, reference, network)
    return PairedTest(
        group.label,
        reference.label,
        network,
        final,
        differences(lambda run: run.equal_time),
        bootstrap_interval(images) if len(images) == len(final) else None,
        other_settings(group, reference),
    )


def image_differences(group: Group, reference: Group, network: str) -> list[ImageDifferences]:
    """Return the differences per test image, one entry per common seed with the same images."""
    first, second = (one.by_seed(lambda run: run.predictions) for one in (group, reference))
    pairs = [(first[seed][0], second[seed][0]) for seed in first if seed in second]
    return [
        (one["images"], one[network].astype(float) - other[network].astype(float))
        for one, other in pairs
        if np.array_equal(one["images"], other["images"])
    ]


def _more_seeds(count: int | None) -> str:
    if count is None:
        return f"more than {MAX_SEEDS_NEEDED} more seeds"
    return f"about {count} more seed{'' if count == 1 else 's'}"
