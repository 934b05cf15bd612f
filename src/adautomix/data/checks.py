"""Warnings about probable problems in the splits of a data set, for the data summary."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor

from adautomix.data.balance import count_classes
from adautomix.data.sources.listing import Label, Listing, count

FEW = 10
"""Number of test images per class below which per-class accuracy is unreliable."""


def split_warnings(
    classes: tuple[str, ...], labels: Tensor, rows: Mapping[str, Tensor], listing: Listing | None
) -> tuple[str, ...]:
    """Return warnings about identical files and about classes with few test images."""
    tested = count_classes(labels[rows["test"]], len(classes)).tolist()
    found = [] if listing is None else _identical_files(listing, rows)
    untested = [name for name, images in zip(classes, tested, strict=True) if not images]
    if untested:
        number = count(len(untested), "class has", "classes have")
        found.append(f"{number} no test image: {_some(untested)}")
    few = [(images, name) for images, name in zip(tested, classes, strict=True) if 0 < images < FEW]
    if few:
        number = count(len(few), "class has", "classes have")
        fewest, name = min(few)
        found.append(f"{number} fewer than {FEW} test images; {name!r} has {fewest}")
    return tuple(found)


def plain_warnings(files: Sequence[str]) -> tuple[str, ...]:
    """Return a warning about pictures that decode to almost nothing, if there are any."""
    if not files:
        return ()
    pictures = count(len(files), "picture has", "pictures have")
    return (f"{pictures} fewer than five colors, as if misread: {_some(list(files))}",)


def _identical_files(listing: Listing, rows: Mapping[str, Tensor]) -> list[str]:
    """Return warnings about files with the same content in train and test, or in two classes."""
    if not listing.hashes:
        return []
    split_of = {row: split for split, some in rows.items() for row in some.tolist()}
    same: dict[str, list[int]] = defaultdict(list)
    for row in split_of:
        same[listing.hashes[row]].append(row)
    leaks: list[tuple[int, int]] = []
    clashes: list[tuple[int, int]] = []
    for group in same.values():
        if len(group) > 1:
            leaks += _differing(group, split_of, {"train", "test"})
            clashes += _differing(group, listing.labels, None)
    found = []
    if leaks:
        images = count(len(leaks), "image is", "images are")
        found.append(f"{images} in train and in test: {_pair(listing, leaks[0])}")
    if clashes:
        images = count(len(clashes), "image is", "images are")
        found.append(f"{images} in two classes: {_pair(listing, clashes[0])}")
    return found


def _differing(
    group: list[int], kind_of: Mapping[int, str] | Sequence[Label], among: set[str] | None
) -> list[tuple[int, int]]:
    """Return the first pair of rows of a group whose kinds differ, as a list that may be empty."""
    rows = [row for row in group if among is None or str(kind_of[row]) in among]
    other = next((row for row in rows if kind_of[row] != kind_of[rows[0]]), None)
    return [] if other is None else [(rows[0], other)]


def _pair(listing: Listing, rows: tuple[int, int]) -> str:
    first, second = (listing.files.paths[row] for row in rows)
    return f"{first} equals {second}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
