"""Data sets by name, by path or as objects, as decoded splits."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from adautomix.data.augment import resize
from adautomix.data.balance import count_classes
from adautomix.data.checks import plain_warnings, split_warnings
from adautomix.data.color import Color, image_moments, mean_and_std
from adautomix.data.dataset import Collection, ImageData, InMemory
from adautomix.data.image_folder import ImageFolder
from adautomix.data.partition import partition
from adautomix.data.preparation import PictureOptions, array_preparation, default_crop
from adautomix.data.sources.content import with_hashes
from adautomix.data.sources.listing import Arrays, Found, Label, Listing
from adautomix.data.sources.objects import object_source
from adautomix.data.sources.open import DATASETS, SourceOptions, open_source
from adautomix.data.split_record import SplitRecord, record_of, recorded_source
from adautomix.errors import UsageError

__all__ = ["DATASETS", "load_data"]


def load_data(
    source: Any,
    *,
    root: Path | None = None,
    download: bool = False,
    class_level: Literal["auto", "top", "leaf"] = "auto",
    class_names: Path | None = None,
    image_size: int | None = None,
    per_class: int | None = None,
    test_fraction: float = 0.2,
    val_fraction: float = 0.0,
    seed: int = 0,
    skip_bad: bool = False,
    workers: int | None = None,
    cache_dir: Path | None = None,
    memory_limit: int = 4 * 2**30,
    progress: bool = True,
    record: SplitRecord | None = None,
    evaluate_classes: Sequence[str] | None = None,
    pictures: PictureOptions | None = None,
) -> ImageData:
    """Load a data set by name, by the path of a folder or list, or given as PyTorch data sets.

    `adautomix datasets` lists the names. A name wins over a folder of the same name (`./digits`
    is the folder).

    Args:
        source: name, path, or data sets: one, (train, test) or (train, val, test).
        root: folder that holds published archives, or that one is downloaded to; default: `data`.
            The paths of a list start from it.
        download: download a missing archive that has a public address.
        class_level: which folders are classes: "top", the first level with all images below it;
            "leaf", every folder that holds images; "auto", the classes of the list files in the
            folder if there are some, else "top".
        class_names: file with the names of the numbered classes of a list.
        image_size: side of what the network sees. Default: the images' own where all are squares
            of one size up to 96, else 224.
        per_class: maximum number of training images per class, chosen by `seed`. The others are
            tested on where the source has no test images of its own, else left out.
        test_fraction: fraction of each class tested on, where the source has no test images.
        val_fraction: fraction of the remaining training images held out as `val`.
        seed: random seed of the splits.
        skip_bad: leave out unreadable images and list them, instead of stopping at them.
        workers: decoding processes; default: one per processor.
        cache_dir: where decoded images are kept; default: $ADAUTOMIX_CACHE, else
            ~/.cache/adautomix.
        memory_limit: bytes of decoded pixels above which files are decoded at each reading, and
            mean and deviation are measured on a sample of 2048 training images.
        progress: show a bar on standard error while decoding.
        record: the splits of an earlier run, which are used as they are.
        evaluate_classes: load for evaluation by a network of these classes, which are unknown if
            empty. Every file of a source without splits is a test image, and training images are
            not needed.
        pictures: how picture files are read and kept, and how images are normalized.

    Raises:
        UsageError: a setting, folder or file is not as it should be.
        RunError: a download or writing the cache failed.
    """
    pictures = pictures or PictureOptions()
    if image_size is not None and image_size < 1:
        raise UsageError(f"image_size is {image_size}: use the side in pixels, such as 32 or 224")
    options = SourceOptions(root, download, class_level, class_names, cache_dir)
    found = _find(source, options, record)
    if isinstance(found, Listing):
        found = with_hashes(found, cache_dir)
    if evaluate_classes is not None:
        found = _for_evaluation(found, evaluate_classes)
    if isinstance(found, Arrays):
        collection = _collect_arrays(found, image_size, pictures)
    else:
        folder = ImageFolder(
            found,
            image_size=image_size,
            workers=workers,
            cache_dir=cache_dir,
            progress=progress,
            options=pictures,
        )
        collection = folder.read(skip_bad=skip_bad, memory_limit=memory_limit)
    if record is not None:
        rows = dict(collection.given)
    else:
        rows = partition(
            collection.images.labels,
            collection.given,
            per_class=per_class,
            test_fraction=test_fraction,
            val_fraction=val_fraction,
            seed=seed,
            need_train=evaluate_classes is None,
        )
    if evaluate_classes is None:
        _check_trained(collection, rows["train"])
    name = source if isinstance(source, str) else object_source(source)
    return _image_data(name, found, collection, rows, record, pictures)


def _find(source: Any, options: SourceOptions, record: SplitRecord | None) -> Found:
    """What the source gives; of recorded files, what the record lists."""
    if record is None:
        return open_source(source, options)
    found = None if record.listing is not None else open_source(source, options)
    return recorded_source(record, found)


def _for_evaluation(found: Found, classes: Sequence[str]) -> Found:
    """Make every image of a source without splits a test image, and take the network's classes.

    Classes are matched by name; numbered ones are taken for the network's if they are as many.
    """
    if isinstance(found, Listing) and set(found.given) == {"all"}:
        found = replace(found, given={"test": found.given["all"]}).noting(
            f"it has no test split, so all of its {len(found.files):,} images are evaluated"
        )
    numbers = tuple(str(number) for number in range(len(classes)))
    if classes and found.classes == numbers:
        return replace(found, classes=tuple(classes))
    if not classes or found.classes == tuple(classes) or not set(found.classes) <= set(classes):
        return found
    label_of = [list(classes).index(name) for name in found.classes]
    if isinstance(found, Listing):
        if not all(isinstance(label, int) for label in found.labels):
            return found
        labels: list[Label] = [label_of[label] for label in found.labels if isinstance(label, int)]
        return replace(found, classes=tuple(classes), labels=labels)
    return replace(found, classes=tuple(classes), labels=torch.tensor(label_of)[found.labels])


def _collect_arrays(arrays: Arrays, image_size: int | None, pictures: PictureOptions) -> Collection:
    images = _at_most(arrays.images, image_size)
    return Collection(
        classes=arrays.classes,
        images=InMemory(images, torch.arange(len(images)), arrays.labels),
        given=arrays.given,
        image_size=image_size or images.shape[1],
        measure=_color_of(arrays, images),
        pad=round(images.shape[1] * arrays.padding),
        flip=arrays.flip,
        preparation=array_preparation(image_size or images.shape[1], pictures),
    )


def _color_of(arrays: Arrays, images: Tensor) -> Callable[[Tensor], tuple[Color, Color]]:
    """How mean and standard deviation are found: as published, or measured on some rows."""
    if arrays.mean is not None and arrays.std is not None:
        published = arrays.mean, arrays.std
        return lambda _: published
    moments = image_moments(images.numpy())
    return lambda rows: mean_and_std(moments[rows.numpy()])


def _at_most(images: Tensor, image_size: int | None) -> Tensor:
    """Shrink `[n, S, S, 3]` to what the network sees; enlarging is left to the device."""
    if image_size is None or image_size >= images.shape[1]:
        return images
    small = resize(images.permute(0, 3, 1, 2), image_size).round().to(torch.uint8)
    return small.permute(0, 2, 3, 1).contiguous()


def _image_data(
    source: str,
    found: Found,
    collection: Collection,
    rows: dict[str, Tensor],
    record: SplitRecord | None,
    pictures: PictureOptions,
) -> ImageData:
    # A set for evaluation alone has no training images to measure colors on.
    mean, std = pictures.normalization or collection.measure(
        rows["train"] if len(rows["train"]) else rows["test"]
    )
    images = collection.images
    listing = found if isinstance(found, Listing) else None
    return ImageData(
        name=found.name or source,
        classes=collection.classes,
        image_size=collection.image_size,
        train=images.subset(rows["train"]),
        val=images.subset(rows["val"]) if "val" in rows else None,
        test=images.subset(rows["test"]),
        mean=mean,
        std=std,
        crop=default_crop(collection.image_size),
        pad=collection.pad,
        flip=collection.flip,
        bad_files=collection.bad_files,
        plain_files=collection.plain_files,
        preparation=collection.preparation,
        interpolation=pictures.interpolation,
        record=record or record_of(source, found, rows),
        notes=found.notes,
        warnings=(
            *found.warnings,
            *split_warnings(collection.classes, images.labels, rows, listing),
            *plain_warnings(collection.plain_files),
        ),
    )


def _check_trained(collection: Collection, train: Tensor) -> None:
    counts = count_classes(collection.images.labels[train], len(collection.classes))
    for name, count in zip(collection.classes, counts.tolist(), strict=True):
        if not count:
            raise UsageError(f"class {name!r} has no readable training image: add some")
