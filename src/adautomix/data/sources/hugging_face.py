"""Data sets of the Hugging Face `datasets` library, by name on the hub or as a local folder."""

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adautomix.data.sources.listing import Listing
from adautomix.data.sources.splits import official, split_called
from adautomix.data.sources.stored import Item, store_items
from adautomix.errors import UsageError

PREFIX = "hf:"


def read_hugging_face(name: str, cache_dir: Path | None) -> Listing:
    """List the images of a data set; their files are written to the cache once.

    Splits, class names and the label column come from its features.

    Args:
        name: a name on the hub, or a folder with parquet files or images.
        cache_dir: see `load_data`.

    Raises:
        UsageError: the library is not installed, the data set does not exist, or it has no image
            column or no label column.
        RunError: the cache cannot be written.
    """
    parts = _load(name)
    splits = {split_called(split) or split: part for split, part in parts.items()}
    unknown = splits.keys() - {"train", "val", "test"}
    if "train" not in splits and len(splits) == 1:
        splits = {"all": next(iter(splits.values()))}
    elif unknown:
        raise UsageError(
            f"{name} has a split {min(unknown)!r}: only train, validation and test are read"
        )
    first = next(iter(splits.values()))
    image, label = _columns(name, first)
    classes, label_of = _classes(splits, label)
    serves = official(set(splits))
    items = {serves[split]: _items(part, image, label, label_of) for split, part in splits.items()}
    key = "/".join(f"{split}={part._fingerprint}" for split, part in splits.items())
    digest = hashlib.blake2b(f"{name}/{key}".encode(), digest_size=16).hexdigest()
    short = Path(name).name or name
    return store_items(f"hf-{digest}", short, classes, items, cache_dir)


def _load(name: str) -> Any:
    """Load all splits of a data set as a mapping by name."""
    if find_spec("datasets") is None:
        raise UsageError(
            f"reading {PREFIX}{name} needs the library datasets, which is not installed: "
            "pip install 'adautomix[huggingface]'"
        )
    import datasets  # late: it takes seconds

    folder = Path(name).expanduser()
    try:
        return datasets.load_dataset(str(folder) if folder.is_dir() else name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"cannot load the data set {name}: {reason}") from None


def _columns(name: str, part: Any) -> tuple[str, str]:
    """Return the names of the image column and the label column."""
    import datasets

    images = [key for key, kind in part.features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in part.features.items() if isinstance(kind, datasets.ClassLabel)]
    if not labels:
        labels = [key for key in ("label", "labels", "class", "target") if key in part.features]
    if not images or not labels:
        lacking = "images" if not images else "class labels"
        raise UsageError(
            f"{name} has no column with {lacking} (columns: {', '.join(part.features)}): give an "
            "image classification data set"
        )
    return images[0], labels[0]


def _classes(splits: dict[str, Any], label: str) -> tuple[list[str], dict[Any, int]]:
    """Return the class names, and a mapping from stored values to labels."""
    kind = next(iter(splits.values())).features[label]
    names = getattr(kind, "names", None)
    if names:
        return [str(name) for name in names], {number: number for number in range(len(names))}
    values = sorted({value for part in splits.values() for value in part.unique(label)})
    return [str(value) for value in values], {value: k for k, value in enumerate(values)}


def _items(part: Any, image: str, label: str, label_of: dict[Any, int]) -> Iterator[Item]:
    import datasets

    undecoded = part.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    for row in undecoded:
        content = row[image]["bytes"]
        if content is None:
            content = Path(row[image]["path"]).read_bytes()
        if row[label] not in label_of:  # -1 marks an unlabeled image
            raise UsageError(
                f"an image has the label {row[label]!r}, which is not a class: remove that split"
            )
        yield Item(content, label_of[row[label]])
