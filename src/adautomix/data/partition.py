"""Split images into training, validation and test sets at random, stratified by class."""

from collections.abc import Callable

import torch
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.rng import generator_at


def partition(
    labels: Tensor,
    given: dict[str, Tensor],
    *,
    per_class: int | None,
    test_fraction: float,
    val_fraction: float,
    seed: int,
    need_train: bool = True,
) -> dict[str, Tensor]:
    """Return the rows of the "train", "test" and, if there is one, "val" split.

    A test set is only split off a source without official splits ("all"). Every class keeps at
    least one training image. Images with several labels are split as if all had the same class.

    Args:
        labels: class indices int64 `[n]`, or multi-hot labels `[n, K]`.
        given: rows of the source's official splits ("train", "test" and optionally "val"), or of
            "all" if it has none.
        per_class: maximum number of training images per class; None keeps all. For "all", the
            others become test images; otherwise they are dropped.
        test_fraction: fraction of each class that becomes the test set of "all".
        val_fraction: fraction of each class of the remaining training images that is held out for
            validation.
        seed: random seed.
        need_train: require training images; without it, "train" may be empty.

    Returns:
        Rows int64 per split, ascending and disjoint.

    Raises:
        UsageError: a setting is out of range or does not suit the source, or a split is empty.
    """
    _check(given, per_class, test_fraction, val_fraction)
    if need_train and not given.keys() & {"train", "all"}:
        raise UsageError("the data set has test images only: evaluate on it, or add a train split")
    if labels.ndim == 2:
        if per_class is not None:
            raise UsageError(
                "per_class needs one class per image, and these images have several labels: leave "
                "it out"
            )
        labels = torch.zeros(len(labels), dtype=torch.int64)
    splits = {"train": torch.zeros(0, dtype=torch.int64)} | dict(given)
    if "all" in splits:
        everything = splits.pop("all")
        keep = _all_but(test_fraction)
        splits["train"], splits["test"] = _take(everything, labels, keep, seed, "test split")
    if per_class is not None:
        keep = _at_most(per_class)
        splits["train"], rest = _take(splits["train"], labels, keep, seed, "per class")
        if "all" in given:
            splits["test"] = torch.cat([splits["test"], rest]).sort().values
    if val_fraction:
        keep = _all_but(val_fraction)
        splits["train"], splits["val"] = _take(splits["train"], labels, keep, seed, "val split")
    for name, rows in splits.items():
        if not len(rows) and (need_train or name != "train"):
            raise UsageError(f"no image is left for the {name} split: every class has too few")
    return splits


def _take(
    rows: Tensor, labels: Tensor, keep: Callable[[int], int], seed: int, stream: str
) -> tuple[Tensor, Tensor]:
    """Select `keep(n)` random rows of the n rows of each class; return them and the rest."""
    generator = generator_at(seed, 0, stream)
    taken, others = [rows[:0]], [rows[:0]]
    of_row = labels[rows]
    by_class = rows[of_row.argsort(stable=True)]
    for of_class in by_class.split(of_row.bincount().tolist()):
        if not len(of_class):
            continue
        shuffled = of_class[torch.randperm(len(of_class), generator=generator)]
        count = keep(len(of_class))
        taken.append(shuffled[:count])
        others.append(shuffled[count:])
    return torch.cat(taken).sort().values, torch.cat(others).sort().values


def _all_but(fraction: float) -> Callable[[int], int]:
    """Return how many of n images remain if `fraction`, at least one, is held out; at least 1."""
    return lambda count: max(1, count - max(1, round(count * fraction)))


def _at_most(most: int) -> Callable[[int], int]:
    return lambda count: min(count, most)


def _check(
    given: dict[str, Tensor], per_class: int | None, test_fraction: float, val_fraction: float
) -> None:
    if per_class is not None and per_class < 1:
        raise UsageError(f"per_class is {per_class}: use at least 1 training image per class")
    if not 0 < test_fraction < 1:
        raise UsageError(f"test_fraction is {test_fraction}: use a share between 0 and 1")
    if not 0 <= val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}: use 0 or a share below 1")
    if val_fraction and "val" in given:
        raise UsageError("the data set has a val folder of its own: leave val_fraction at 0")
