"""Load a data set by name, by path or from Python objects, with its splits."""

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
    """Load a data set by name, from a folder or list file, or from PyTorch data sets.

    `adautomix datasets` lists the names. A name takes precedence over a folder of the same name;
    write `./digits` for the folder.

    Args:
        source: name, path, or PyTorch data sets: one, (train, test) or (train, val, test).
        root: folder that holds published archives and that they are downloaded to; default:
            `data`. Relative paths in a list file start from it.
        download: download a missing archive if it has a public address.
        class_level: which folders are classes. "top": the folders of the first level, with all
            images below them. "leaf": every folder that holds images. "auto": the list files in
            the folder define the classes; without list files, "top".
        class_names: file with the names of the numbered classes of a list.
        image_size: side of the network's input in pixels. Default: the size of the images if all
            are squares of the same size up to 96 pixels, else 224.
        per_class: maximum number of training images per class, selected at random. The others
            become test images if the source has no test split; otherwise they are dropped.
        test_fraction: fraction of each class used as test set if the source has no test split.
        val_fraction: fraction of the remaining training images held out for validation.
        seed: random seed of the splits.
        skip_bad: skip unreadable images and list them, instead of raising an error.
        workers: number of decoding processes; default: one per processor.
        cache_dir: folder of the cache of decoded images; default: $ADAUTOMIX_CACHE if it is set,
            else ~/.cache/adautomix.
        memory_limit: bytes of decoded pixels above which images are decoded each time they are
            read, and mean and standard deviation are measured on 2048 training images.
        progress: show a progress bar on standard error while decoding.
        record: splits of an earlier run to use instead of splitting again.
        evaluate_classes: classes of a network to evaluate; empty if they are unknown. All images
            of a source without splits become test images, and training images are not required.
            None loads the data set for training.
        pictures: how image files are decoded, cached and normalized.

    Raises:
        UsageError: a setting, folder or file is invalid.
        RunError: a download failed, or the cache cannot be written.
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
    """Open the source, or return the files that the record lists."""
    if record is None:
        return open_source(source, options)
    found = None if record.listing is not None else open_source(source, options)
    return recorded_source(record, found)


def _for_evaluation(found: Found, classes: Sequence[str]) -> Found:
    """Adapt a source to evaluation: use all images of a source without splits, map its classes.

    Classes are matched to the network's by name. Numbered classes are taken as the network's if
    there are equally many.
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
    """Return a function of rows that gives their mean and standard deviation, or published ones."""
    if arrays.mean is not None and arrays.std is not None:
        published = arrays.mean, arrays.std
        return lambda _: published
    moments = image_moments(images.numpy())
    return lambda rows: mean_and_std(moments[rows.numpy()])


def _at_most(images: Tensor, image_size: int | None) -> Tensor:
    """Downscale images `[n, S, S, 3]` to `image_size`; smaller ones are enlarged on the device."""
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
    # A data set loaded only for evaluation has no training images to measure.
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
