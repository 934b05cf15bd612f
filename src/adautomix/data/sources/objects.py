"""PyTorch data sets given as Python objects: `train(config, data=(train_set, test_set))`."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adautomix.data.sources.listing import Listing, from_splits
from adautomix.data.sources.stored import Item, png_bytes, store_items
from adautomix.errors import UsageError

PREFIX = "python:"
"""How `config.yaml` names a data set that was given as an object."""


def read_objects(given: Any, cache_dir: Path | None) -> Listing:
    """List the images of PyTorch data sets.

    Items are (image, label) pairs. An image is a PIL image, or a tensor or array of pixels: uint8,
    or float in [0, 1]; `[C, H, W]` or `[H, W]`, for arrays also `[H, W, C]`. Images are written to
    the cache once. For a torchvision `DatasetFolder` without a transform, the original files are
    read instead.

    Args:
        given: one data set, which will be split, or (train, test), or (train, val, test).
        cache_dir: see `load_data`.

    Raises:
        UsageError: there are more than three data sets, or an item is not an (image, label) pair.
        RunError: the cache cannot be written.
    """
    parts = _by_split(given)
    classes = _classes(parts)
    name = data_set_name(given)
    if all(_has_files(part) for part in parts.values()):
        pairs = {split: part.samples for split, part in parts.items()}
        root = Path(next(iter(parts.values())).root)
        return from_splits(root, classes or _numbers(pairs), pairs, name)
    items = {split: list(_items(part, split)) for split, part in parts.items()}
    if classes is None:
        classes = _numbers(items)
    return store_items(f"objects-{_digest(items)}", name, classes, items, cache_dir)


def data_set_name(given: Any) -> str:
    """Return the class name of the first data set."""
    first = given[0] if isinstance(given, tuple | list) else given
    return type(first).__name__


def object_source(given: Any) -> str:
    """Return the name that a run's settings use for data sets given as objects."""
    return f"{PREFIX}{data_set_name(given)}"


def _by_split(given: Any) -> dict[str, Any]:
    parts = list(given) if isinstance(given, tuple | list) else [given]
    names: dict[int, Sequence[str]] = {
        1: ("all",),
        2: ("train", "test"),
        3: ("train", "val", "test"),
    }
    if len(parts) not in names:
        raise UsageError(
            f"data holds {len(parts)} data sets: give one, (train, test) or (train, val, test)"
        )
    for part in parts:
        if not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
            raise UsageError(
                f"data holds a {type(part).__name__}: give data sets with a length and (image, "
                "label) items, such as those of torchvision"
            )
    return dict(zip(names[len(parts)], parts, strict=True))


def _has_files(part: Any) -> bool:
    """Return whether a data set is a `DatasetFolder` that returns its files unchanged."""
    plain = (
        getattr(part, "transform", None) is None and getattr(part, "target_transform", None) is None
    )
    return plain and isinstance(getattr(part, "samples", None), list) and hasattr(part, "root")


def _classes(parts: dict[str, Any]) -> list[str] | None:
    """Return the class names stated by the data sets, which must agree."""
    stated = {split: getattr(part, "classes", None) for split, part in parts.items()}
    first = next(iter(stated.values()))
    if any(classes != first for classes in stated.values()):
        raise UsageError(
            "the data sets have different `classes`: give them the same classes in the same order"
        )
    return None if first is None else [str(name) for name in first]


def _numbers(parts: dict[str, Any]) -> list[str]:
    """Return numbers as class names, up to the largest label."""
    return [str(k) for k in range(1 + max(label for some in parts.values() for _, label in some))]


def _items(part: Any, split: str) -> Iterator[Item]:
    for row in range(len(part)):
        item = part[row]
        try:
            image, label = item
            yield Item(png_bytes(_picture(image)), int(label))
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"item {row} of the {split} data set is not an (image, label) pair: {error}"
            ) from None


def _picture(image: Any) -> Image.Image:
    """Convert an item's image to a PIL image.

    Raises:
        ValueError: the values are not pixels, for example because a transform normalized them.
    """
    if isinstance(image, Image.Image):
        return image if image.mode in ("L", "RGB", "RGBA", "I;16") else image.convert("RGB")
    pixels = np.asarray(image)
    channels_first = not isinstance(image, np.ndarray) or pixels.shape[0] in (1, 3)
    if pixels.ndim == 3 and channels_first and pixels.shape[-1] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype != np.uint8:
        if pixels.min() < 0 or pixels.max() > 1:
            raise ValueError("floating-point pixels must be between 0 and 1, not normalized")
        pixels = (pixels * 255).round().astype(np.uint8)
    return Image.fromarray(pixels)


def _digest(items: dict[str, list[Item]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for split, some in items.items():
        digest.update(split.encode())
        for item in some:
            digest.update(hashlib.blake2b(item.content, digest_size=16).digest())
            digest.update(str(item.label).encode())
    return digest.hexdigest()
