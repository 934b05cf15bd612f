"""Common names of splits."""

from pathlib import Path

from adautomix.errors import UsageError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
}
"""Split by its common names, in lower case."""


def split_called(name: str) -> str | None:
    """Return "train", "val" or "test" for the name of a split, and None for any other name."""
    return SPLIT_NAMES.get(name.strip().lower())


def one_per_split(paths: list[Path], called: dict[Path, str]) -> dict[str, Path]:
    """Return the path of each split, given the split of each path.

    Raises:
        UsageError: two paths stand for the same split.
    """
    found: dict[str, Path] = {}
    for path in sorted(paths):
        split = called[path]
        if split in found:
            raise UsageError(
                f"{found[split]} and {path} both stand for the {split} split: rename or remove one"
            )
        found[split] = path
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def official(splits: set[str]) -> dict[str, str]:
    """Return which split of a source is used as which split of a run.

    The validation split is the test set if there is no test split. A training split alone is split
    further.
    """
    if splits == {"train"}:
        return {"train": "all"}
    if "test" not in splits and "val" in splits:
        return {"train": "train", "val": "test"}
    return {split: split for split in ("train", "val", "test", "all") if split in splits}
