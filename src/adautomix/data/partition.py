"""Which images train, which are held out: seeded, and the same share of every class."""

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
    """Rows (int64, ascending, disjoint) of "train", "test" and perhaps "val".

    `given` holds the rows of the splits that the source has itself ("train", "test" and perhaps
    "val"), or "all". Only of "all" is a test set made: `test_fraction` of each class, and what
    `per_class` leaves out of training. `val_fraction` is held out of the training images that
    are left. Every class keeps a training image. Without `need_train`, a source that has only
    "test" gets an empty "train". Images with several labels (`[n, K]`) are split as if they were
    all of one class.
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
    """Of the n rows of each class, `keep(n)` random ones, and the others."""
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
    """Hold out `fraction`, at least one image, but never the last one."""
    return lambda count: max(1, count - max(1, round(count * fraction)))


def _at_most(most: int) -> Callable[[int], int]:
    return lambda count: min(count, most)


def _check(
    given: dict[str, Tensor], per_class: int | None, test_fraction: float, val_fraction: float
) -> None:
    if per_class is not None and per_class < 1:
        raise UsageError(f"per_class is {per_class}: use at least 1 training image a class")
    if not 0 < test_fraction < 1:
        raise UsageError(f"test_fraction is {test_fraction}: use a share between 0 and 1")
    if not 0 <= val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}: use 0 or a share below 1")
    if val_fraction and "val" in given:
        raise UsageError("the data set has a val folder of its own: leave val_fraction at 0")
