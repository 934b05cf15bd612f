"""Statistics over seeds and over test images; nothing here knows about runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SEEDS_NEEDED = 50  # Larger numbers of seeds are only reported as "more than 50".
RESAMPLES = 4000

ImageDifferences = tuple[NDArray[Any], NDArray[Any]]
"""For one seed: int64 ids `[n]` of the test images, and for each image whether the first network
is correct minus whether the second one is, a float in {-1, 0, 1}, `[n]`."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % Student-t interval.

    Attributes:
        mean: the mean.
        half_width: half the width of the interval; None for a single seed.
        n: number of seeds.
    """

    mean: float
    half_width: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval; False for a single seed."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def t_interval(values: Sequence[float]) -> Interval:
    """Return the mean of one or more independent values with its 95 % Student-t interval."""
    mean, n = fmean(values), len(values)
    if n == 1:
        return Interval(mean, None, n)
    from scipy.stats import t

    return Interval(mean, float(t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n), n)


def seeds_needed(differences: Sequence[float]) -> int | None:
    """Return how many more seeds would make the 95 % Student-t interval exclude 0.

    This assumes that the mean and the standard deviation of the differences stay as they are.

    Args:
        differences: one difference per seed, at least two.

    Returns:
        The smallest such number, or None if it is larger than `MAX_SEEDS_NEEDED`.
    """
    from scipy.stats import t

    total = len(differences) + np.arange(1, MAX_SEEDS_NEEDED + 1)
    half_widths = t.ppf(0.975, total - 1) * stdev(differences) / np.sqrt(total)
    enough = np.flatnonzero(abs(fmean(differences)) > half_widths)
    return int(enough[0]) + 1 if len(enough) else None


def bootstrap_interval(seeds: Sequence[ImageDifferences]) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval of the mean difference over test images.

    Returns:
        The lower and upper bound, or None if there are no seeds.
    """
    if not seeds:
        return None
    low, high = np.nanpercentile(resample_means(seeds), [2.5, 97.5])
    return float(low), float(high)


def resample_means(seeds: Sequence[ImageDifferences], count: int = RESAMPLES) -> NDArray[Any]:
    """Return `[count]` mean differences, each over test images drawn with replacement.

    A drawn image counts for every seed that was tested on it, because an image that is hard for
    one seed is hard for the others. Means are taken within each seed, then over seeds.
    """
    ids = np.unique(np.concatenate([images for images, _ in seeds]))
    # Per image and seed: the sum of its differences, and how often it occurs.
    tallies = np.zeros((len(ids), 2, len(seeds)))
    for i, (images, differences) in enumerate(seeds):
        index = np.searchsorted(ids, images)
        np.add.at(tallies[:, 0, i], index, differences)
        np.add.at(tallies[:, 1, i], index, 1)
    # Images with equal tallies are interchangeable, so it is enough to draw how often each
    # distinct tally occurs.
    kinds, sizes = np.unique(tallies.reshape(len(ids), -1), axis=0, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(ids), sizes / len(ids), size=count)
    sums, times = np.moveaxis((draws @ kinds).reshape(count, 2, len(seeds)), 1, 0)
    with np.errstate(invalid="ignore"):  # A draw without any image of a seed gives NaN.
        return np.asarray((sums / times).mean(axis=1))
