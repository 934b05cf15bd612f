"""CUB-200-2011: 200 bird species, with the official split in `train_test_split.txt`."""

from pathlib import Path

from adautomix.data.sources.listing import Listing, from_splits
from adautomix.errors import UsageError

SPLIT = "train_test_split.txt"


def read_cub(folder: Path) -> Listing:
    """List the images with their official split.

    Class names keep their numbers ("001.Black_footed_Albatross"), as in the image folders and in
    published class lists.

    Args:
        folder: the folder `CUB_200_2011` of the unpacked archive.

    Raises:
        UsageError: a list is missing or damaged, or images are missing.
    """
    paths, labels, training = (
        _table(folder / name) for name in ("images.txt", "image_class_labels.txt", SPLIT)
    )
    names = _table(folder / "classes.txt")
    classes = [names[number] for number in sorted(names, key=int)]
    label_of = {number: label for label, number in enumerate(sorted(names, key=int))}
    splits: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    try:
        for number, path in paths.items():
            split = "train" if training[number] == "1" else "test"
            label = label_of[labels[number]]
            splits[split].append((str(folder / "images" / path), label))
    except KeyError as error:
        raise UsageError(
            f"the lists in {folder} disagree about {error}: unpack the archive again"
        ) from None
    return from_splits(folder, classes, splits)


def _table(path: Path) -> dict[str, str]:
    """Parse a file of lines "number value"."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return dict(line.split(maxsplit=1) for line in lines if line.strip())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path} ({error}): unpack the archive again") from None
