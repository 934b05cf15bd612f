"""Paired tests of methods against a baseline: over seeds, and over test images.

Significance is decided over seeds: by the 95 % Student-t interval of the differences between runs
with the same seed. A bootstrap over the test images is reported in addition; it does not cover the
variation between seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adautomix.errors import UsageError
from adautomix.reporting.formatting import (
    METRICS,
    NETWORKS,
    difference_plus_minus,
    difference_unit,
)
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
TESTED = {"top1": 1, "nll": -1, "ece": -1}
"""The metrics that are tested: 1 if higher is better, else -1."""
TITLES = {metric.key: metric.title for metric in METRICS}

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
    """A metric of one network of a method, compared with the baseline seed by seed.

    Attributes:
        method: label of the group of the method.
        baseline: label of the group of the baseline.
        network: "student" or "teacher".
        differences: the method's value minus that of the baseline after the last epoch, one per
            seed that both have.
        equal_time_differences: the same at equal training time.
        bootstrap: bounds of the bootstrap interval of top-1 over test images; None if predictions
            of the same images are not available for every seed.
        other_settings: settings that differ in addition to those of the two methods.
        metric: "top1", "nll" or "ece".
    """

    method: str
    baseline: str
    network: str
    differences: tuple[float, ...]
    equal_time_differences: tuple[float, ...]
    bootstrap: tuple[float, float] | None
    other_settings: tuple[str, ...]
    metric: str = "top1"

    @property
    def subject(self) -> str:
        """What is compared: the network for top-1 accuracy, else network and metric."""
        return self.network if self.metric == "top1" else f"{self.network} {TITLES[self.metric]}"

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
        better = TESTED[self.metric] * interval.mean > 0
        return "significantly better" if better else "significantly worse"

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
        parts = [f"{self.method} vs. {self.baseline}, {self.subject}: {self.conclusion}"]
        if n:
            seeds = f", {n} seeds" if n > 1 else ""
            difference = difference_plus_minus(self.interval, self.metric)
            parts[0] += f" ({difference}{difference_unit(self.metric)}{seeds})"
        if self.inconclusive:
            parts.append(f"{_more_seeds(self.seeds_needed)} would be needed")
        if self.other_settings:
            parts.append(f"other settings differ too: {', '.join(self.other_settings)}")
        return f"{'; '.join(parts)}."


def paired_tests(
    groups: Sequence[Group], snapshots: Mapping[str, RunSnapshots], baseline: str
) -> list[PairedTest]:
    """Test both networks of every group against the baseline, in each metric.

    Args:
        groups: groups that have a finished run.
        snapshots: the snapshots of finished runs, by the name of the run.
        baseline: label of the baseline's runs; of several groups with this label, each method is
            compared with the one whose settings are most similar to its own.
    """
    pairs = [(group, find_reference(group, groups, baseline)) for group in groups]
    return [
        compare_groups(group, reference, network, metric, snapshots)
        for group, reference in pairs
        if reference is not None and reference is not group
        for metric in TESTED
        for network in NETWORKS
    ]


def summarize_tests(tests: Sequence[PairedTest]) -> list[str]:
    """Return one sentence per method about what the seeds decide; none for single seeds."""
    several = [test for test in tests if len(test.differences) > 1]
    pairs = dict.fromkeys((test.method, test.baseline) for test in several)
    return [
        _summary([test for test in several if (test.method, test.baseline) == pair])
        for pair in pairs
    ]


def _summary(tests: Sequence[PairedTest]) -> str:
    """Summarize the tests of one method."""
    first = tests[0]
    found = {
        conclusion: [
            f"{TITLES[test.metric]} of the {test.network} "
            f"({difference_plus_minus(test.interval, test.metric)})"
            for test in tests
            if test.conclusion == conclusion
        ]
        for conclusion in ("significantly better", "significantly worse")
    }
    parts = [f"{word} in {', '.join(names)}" for word, names in found.items() if names]
    seeds = f"{first.method} vs. {first.baseline} over {len(first.differences)} seeds"
    if not parts:
        return f"{seeds}: no significant difference in accuracy, NLL or ECE."
    rest = sum(test.inconclusive for test in tests)
    return (
        f"{seeds}: {'; '.join(parts)}; no significant difference in {rest} of {len(tests)} tests."
    )


def explain_tests(tests: Sequence[PairedTest]) -> list[str]:
    """Return sentences that explain the tests; none if there are no tests."""
    notes = [_SEED_NOTE] if tests else []
    if any(test.inconclusive for test in tests):
        notes.append(_SEEDS_NEEDED_NOTE)
    of_accuracy = [test for test in tests if test.metric == "top1"]
    if any(test.bootstrap for test in of_accuracy):
        notes.append(_BOOTSTRAP_NOTE)
    if not all(test.bootstrap for test in of_accuracy):
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
    group: Group,
    reference: Group,
    network: str,
    metric: str,
    snapshots: Mapping[str, RunSnapshots],
) -> PairedTest:
    """Compare one metric of one network of two groups."""

    def differences(take: Take) -> tuple[float, ...]:
        def value(run: Run) -> float | None:
            return number_at(take(snapshots[run.name]), ("scores", network, metric))

        first, second = group.seed_means(value), reference.seed_means(value)
        return tuple(first[seed] - second[seed] for seed in first if seed in second)

    final = differences(lambda run: run.final)
    images = image_differences(group, reference, network) if metric == "top1" else []
    return PairedTest(
        group.label,
        reference.label,
        network,
        final,
        differences(lambda run: run.equal_time),
        bootstrap_interval(images) if len(images) == len(final) else None,
        other_settings(group, reference),
        metric,
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
