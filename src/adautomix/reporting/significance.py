"""Which method is better, and what that can be said from: seeds, and test images.

The verdict is the seeds': the 95 % Student-t interval of the differences between runs of one seed.
Beside it stands a bootstrap over the test images, which cannot tell one seed from luck.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adautomix.errors import UsageError
from adautomix.reporting.figures import (
    MISSING,
    NETWORKS,
    EqualTime,
    Group,
    Interval,
    Reader,
    differing,
    equal_time,
    final,
    groups,
    t_interval,
)
from adautomix.runs.records import Run

MOST_SEEDS = 50  # beyond so many more, the number says nothing but "many"
RESAMPLES = 4000
DEFAULT_BASELINE = "vanilla"

Outcomes = tuple[NDArray[Any], NDArray[Any]]
"""Of one seed: which images `[n]`, and on each the one network right less the other, -1 to 1."""

_OF_SEEDS = (
    "Better and worse are said where the 95 % interval over seeds leaves out 0. Each sentence "
    "stands alone: of twenty between equal methods, one would be wrong by chance."
)
_OF_IMAGES = (
    "Bootstrap: the test images drawn anew, 95 % of the differences; it says what other test "
    "images might have shown of these very networks, and nothing about other seeds."
)
_NOT_OF_IMAGES = (
    "No bootstrap over test images where a run kept no predictions (older ones did not; resuming "
    "a finished run adds them), or where two runs of one seed were tested on different images."
)


@dataclass(frozen=True)
class Verdict:
    """How one network of a method stands to that of the baseline: top-1 on the test images.

    Attributes:
        method: the method, by the label of its group.
        baseline: what it is held against.
        network: "student" or "teacher".
        differences: after the last epoch, one a seed that both have.
        at_equal_time: the same when the fastest method's run of the seed had ended.
        on_images: 95 % of the bootstrap over test images; None without predictions of one set.
        apart: settings, besides those of the methods, in which two methods differ.
    """

    method: str
    baseline: str
    network: str
    differences: tuple[float, ...]
    at_equal_time: tuple[float, ...]
    on_images: tuple[float, float] | None
    apart: tuple[str, ...]

    @property
    def interval(self) -> Interval | None:
        """The mean difference over seeds; None where there is no common seed."""
        return t_interval(self.differences) if self.differences else None

    @property
    def word(self) -> str:
        """Better, worse, or what it would take to tell."""
        interval = self.interval
        if interval is None:
            return "no finished seed in common, nothing can be said"
        if interval.half_width is None:
            return (
                "one seed says nothing about other seeds; on these test images the difference is "
                f"{points(interval.mean)} points"
            )
        if abs(interval.mean) > interval.half_width:
            return "better" if interval.mean > 0 else "worse"
        return f"cannot tell yet: {told_seeds(more_seeds(self.differences))} would decide"

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        parts = [f"{self.method} against {self.baseline}, {self.network}: {self.word}"]
        if len(self.differences) > 1:
            parts.append(f"{difference(self.interval)} points over {len(self.differences)} seeds")
        if self.apart:
            parts.append(f"they differ in {', '.join(self.apart)} too")
        return f"{'; '.join(parts)}."


def significance(runs: Sequence[Run], baseline: str | None = None) -> list[Verdict]:
    """Every group of finished runs against the baseline's, student and teacher apart.

    Raises:
        UsageError: no finished run has the name `baseline`.
    """
    found = [group for group in groups(runs) if group.seeds]
    if not found:
        return []
    name = pick_baseline([group.runs[0].label for group in found], baseline)
    clock = equal_time(found)
    pairs = [(group, rival_of(group, found, name)) for group in found]
    return [
        judge(group, rival, network, clock)
        for group, rival in pairs
        if rival is not None and rival is not group
        for network in NETWORKS
    ]


def how_to_read(found: Sequence[Verdict]) -> list[str]:
    """What the verdicts rest on, in a sentence or two each; nothing without a verdict."""
    notes = [_OF_SEEDS] if found else []
    if any(verdict.on_images for verdict in found):
        notes.append(_OF_IMAGES)
    if not all(verdict.on_images for verdict in found):
        notes.append(_NOT_OF_IMAGES)
    return notes


def pick_baseline(methods: Sequence[str], asked: str | None = None) -> str:
    """The baseline asked for, else vanilla where it is there, else the first method or variant.

    Raises:
        UsageError: it is not among them.
    """
    if asked is None:
        return DEFAULT_BASELINE if DEFAULT_BASELINE in methods else methods[0]
    if asked not in methods:
        there = ", ".join(dict.fromkeys(methods))
        raise UsageError(f"--baseline: {asked!r} is not among {there}")
    return asked


def rival_of(group: Group, found: Sequence[Group], baseline: str) -> Group | None:
    """The group of the baseline whose settings are nearest, the first where only it was run."""
    rivals = [rival for rival in found if rival.runs[0].label == baseline]
    if len(rivals) == len(found):
        return rivals[0]
    if group in rivals:
        return group
    return min(rivals, key=lambda rival: len(set_apart(group, rival)), default=None)


def set_apart(group: Group, rival: Group) -> tuple[str, ...]:
    """The settings, besides those of the methods, in which two methods differ."""
    one, other = group.runs[0], rival.runs[0]
    if one.method == other.method:
        return ()  # their labels say it
    own = {"method", "label", "seed", one.method, other.method}
    return tuple(name for name in differing([one, other]) if name.partition(".")[0] not in own)


def judge(group: Group, rival: Group, network: str, clock: EqualTime | None) -> Verdict:
    """One network of two groups."""
    return Verdict(
        group.label,
        rival.label,
        network,
        paired(group, rival, final(network, "top1")),
        paired(group, rival, clock.figure(network, "top1")) if clock else (),
        bootstrap(outcomes(group, rival, network)),
        set_apart(group, rival),
    )


def paired(group: Group, rival: Group, value: Reader) -> tuple[float, ...]:
    """The differences of `value` between runs of one seed."""
    mine, theirs = group.figures(value), rival.figures(value)
    return tuple(mine[seed] - theirs[seed] for seed in mine if seed in theirs)


def more_seeds(differences: Sequence[float]) -> int | None:
    """The fewest further seeds that leave 0 out, if mean and spread stay; None: over the most."""
    from scipy.stats import t

    total = len(differences) + np.arange(1, MOST_SEEDS + 1)
    half_widths = t.ppf(0.975, total - 1) * stdev(differences) / np.sqrt(total)
    enough = np.flatnonzero(abs(fmean(differences)) > half_widths)
    return int(enough[0]) + 1 if len(enough) else None


# ---------------------------------------------------------------------- test images


def outcomes(group: Group, rival: Group, network: str) -> list[Outcomes]:
    """Image by image differences of each common seed; none where one seed cannot be paired."""
    mine, theirs = (one.by_seed(lambda run: run.predictions) for one in (group, rival))
    pairs = [(mine[seed][0], theirs[seed][0]) for seed in mine if seed in theirs]
    if len(pairs) < len(paired(group, rival, final(network, "top1"))):
        return []
    if not all(np.array_equal(one["images"], other["images"]) for one, other in pairs):
        return []
    return [
        (one["images"], one[network].astype(float) - other[network].astype(float))
        for one, other in pairs
    ]


def bootstrap(seeds: Sequence[Outcomes]) -> tuple[float, float] | None:
    """95 % of the mean differences under resampling of the test images; None without seeds."""
    if not seeds:
        return None
    low, high = np.nanpercentile(resampled(seeds), [2.5, 97.5])
    return float(low), float(high)


def resampled(seeds: Sequence[Outcomes], count: int = RESAMPLES) -> NDArray[Any]:
    """`[count]` mean differences, each on as many images drawn with replacement.

    An image counts in every seed that tested on it: hard for one, it is hard for the others. The
    mean is taken within each seed, then over seeds.
    """
    names = np.unique(np.concatenate([images for images, _ in seeds]))
    tallies = np.zeros((len(names), 2, len(seeds)))  # of each image: sum of differences, times
    for i, (images, differences) in enumerate(seeds):
        at = np.searchsorted(names, images)
        np.add.at(tallies[:, 0, i], at, differences)
        np.add.at(tallies[:, 1, i], at, 1)
    # Images with equal tallies are interchangeable: only how often each kind is drawn matters.
    kinds, sizes = np.unique(tallies.reshape(len(names), -1), axis=0, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(names), sizes / len(names), size=count)
    sums, times = np.moveaxis((draws @ kinds).reshape(count, 2, len(seeds)), 1, 0)
    with np.errstate(invalid="ignore"):  # a draw without any image of some seed tells nothing
        return np.asarray((sums / times).mean(axis=1))


# ---------------------------------------------------------------------- words


def points(share: float) -> str:
    """A signed difference of shares in percentage points; zero without a minus."""
    return f"{100 * share:+z.2f}"


def difference(interval: Interval | None) -> str:
    """A signed mean difference in points with its interval."""
    if interval is None:
        return MISSING
    if interval.half_width is None:
        return points(interval.mean)
    space = "\N{NO-BREAK SPACE}"
    return f"{points(interval.mean)}{space}±{space}{100 * interval.half_width:.2f}"


def span(ends: tuple[float, float] | None) -> str:
    """Both ends of an interval of differences in points."""
    return MISSING if ends is None else f"{points(ends[0])} to {points(ends[1])}"


def told_seeds(count: int | None) -> str:
    """So many more seeds, in words."""
    if count is None:
        return f"more than {MOST_SEEDS} more seeds"
    return f"about {count} more seed{'' if count == 1 else 's'}"
