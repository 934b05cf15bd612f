"""Data sets by name, or a folder, as decoded splits."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from adautomix.data import cifar
from adautomix.data.augment import resize
from adautomix.data.balance import count_classes
from adautomix.data.color import image_moments, mean_and_std
from adautomix.data.dataset import Collection, ImageData, InMemory, default_crop
from adautomix.data.image_folder import ImageFolder
from adautomix.data.partition import partition
from adautomix.errors import UsageError, nearest_name, unknown_name

_BY_NAME = {
    "digits": "1,797 handwritten digits, 8x8 enlarged to 32x32; comes with scikit-learn",
    "cifar10": "60,000 photographs of 10 kinds of things, 32x32; downloaded on request",
    "cifar100": "60,000 photographs of 100 kinds of things, 32x32; downloaded on request",
}
DATASETS = _BY_NAME | {
    "a folder of images": "train/<class>/* with test/ or val/, or one tree <class>/* that is split"
}
"""What `load_data` accepts, one line each."""


def load_data(
    source: str,
    *,
    root: Path | None = None,
    download: bool = False,
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
) -> ImageData:
    """Load a data set by name ("digits", "cifar10", "cifar100") or a folder of images.

    A name wins over a folder of the same name (`./digits` is the folder).

    - `root`: where CIFAR's own folder is or is downloaded to with `download`; default `data`.
    - `image_size`: side of what the network sees. Default: the images' own where all are squares
      of one size up to 96, else 224. Images for more than 96 are kept 8/7 as large.
    - `per_class`: at most so many training images per class, chosen by `seed`. The others are
      tested on where the source has no test images of its own, else left out.
    - `test_fraction`: share of each class tested on, where the source has no test images.
    - `val_fraction`: share of the remaining training images held out as `val`.
    - `skip_bad`: leave out unreadable images and list them, instead of stopping at them.
    - `workers`: decoding processes; default one a processor.
    - `cache_dir`: where decoded folders are kept; default $ADAUTOMIX_CACHE, else
      ~/.cache/adautomix.
    - `memory_limit`: bytes of decoded pixels above which files are decoded at each reading, and
      mean and deviation are measured on a sample of 2048 training images.
    - `progress`: show a bar on standard error while decoding.

    Raises UsageError where a setting, folder or file is not as it should be, RunError where a
    download or writing the cache fails.
    """
    if image_size is not None and image_size < 1:
        raise UsageError(f"image_size is {image_size}: use the side in pixels, such as 32 or 224")
    if source == "digits":
        collection = _digits(image_size)
    elif source in _BY_NAME:
        collection = _cifar(source, root or Path("data"), download, image_size)
    else:
        folder = ImageFolder(
            _folder_path(source),
            image_size=image_size,
            workers=workers,
            cache_dir=cache_dir,
            progress=progress,
        )
        collection = folder.read(skip_bad=skip_bad, memory_limit=memory_limit)
        source = folder.listing.root.name
    splits = partition(
        collection.images.labels,
        collection.given,
        per_class=per_class,
        test_fraction=test_fraction,
        val_fraction=val_fraction,
        seed=seed,
    )
    _check_trained(collection, splits["train"])
    mean, std = collection.measure(splits["train"])
    images = collection.images
    return ImageData(
        name=source,
        classes=collection.classes,
        image_size=collection.image_size,
        train=images.subset(splits["train"]),
        val=images.subset(splits["val"]) if "val" in splits else None,
        test=images.subset(splits["test"]),
        mean=mean,
        std=std,
        crop=default_crop(collection.image_size),
        pad=collection.pad,
        flip=collection.flip,
        bad_files=collection.bad_files,
    )


def _digits(image_size: int | None) -> Collection:
    from sklearn.datasets import load_digits  # late: it takes a second

    digits = load_digits()
    gray = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    large = F.interpolate(gray, (32, 32), mode="bilinear").round().to(torch.uint8)
    images = _at_most(large.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous(), image_size)
    moments = image_moments(images.numpy())
    return Collection(
        classes=tuple(str(name) for name in digits.target_names),
        images=_in_memory(images, torch.from_numpy(digits.target).long()),
        given={"all": torch.arange(len(images))},
        image_size=image_size or 32,
        measure=lambda rows: mean_and_std(moments[rows.numpy()]),
        pad=round(images.shape[1] / 16),
        flip=False,  # a mirrored digit is none, or another
    )


def _cifar(name: str, root: Path, download: bool, image_size: int | None) -> Collection:
    classes, images, labels, given = cifar.read_cifar(name, root, download)
    images = _at_most(images, image_size)
    return Collection(
        classes=classes,
        images=_in_memory(images, labels),
        given=given,
        image_size=image_size or 32,
        measure=lambda _: (cifar.MEAN, cifar.STD),
        pad=round(images.shape[1] / 8),
    )


def _at_most(images: Tensor, image_size: int | None) -> Tensor:
    """Shrink `[n, S, S, 3]` to what the network sees; enlarging is left to the device."""
    if image_size is None or image_size >= images.shape[1]:
        return images
    small = resize(images.permute(0, 3, 1, 2), image_size).round().to(torch.uint8)
    return small.permute(0, 2, 3, 1).contiguous()


def _in_memory(images: Tensor, labels: Tensor) -> InMemory:
    return InMemory(images, torch.arange(len(images)), labels)


def _folder_path(source: str) -> Path:
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        return path
    if path.exists():
        raise UsageError(f"{source} is a file: name the folder that holds the class folders")
    names = ", ".join(_BY_NAME)
    if nearest_name(source, _BY_NAME):
        raise UsageError(unknown_name("data set", source, _BY_NAME, names))
    raise UsageError(f"no folder {source} and no data set of that name: give a folder or {names}")


def _check_trained(collection: Collection, train: Tensor) -> None:
    counts = count_classes(collection.images.labels[train], len(collection.classes))
    for name, count in zip(collection.classes, counts.tolist(), strict=True):
        if not count:
            raise UsageError(f"class {name!r} has no readable training image: add some")
