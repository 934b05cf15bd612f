"""Tiny-ImageNet-200: 64 × 64 pixels; its validation images are the test set of every paper."""

from pathlib import Path

from adautomix.data.sources.imagenet import unique_names
from adautomix.data.sources.listing import Listing, from_splits
from adautomix.errors import UsageError

ANNOTATIONS = "val_annotations.txt"


def read_tiny_imagenet(folder: Path) -> Listing:
    """List the images with their WordNet id as class; the unlabeled `test/` images are left out.

    Classes are sorted by id and named by their first word in `words.txt`.

    Args:
        folder: the folder `tiny-imagenet-200` of the unpacked archive.

    Raises:
        UsageError: a list is missing or damaged, or images are missing.
    """
    wnids = sorted(_lines(folder / "wnids.txt"))
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    train = [
        (str(path), label_of[wnid])
        for wnid in wnids
        for path in sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
    ]
    val = []
    for line in _lines(folder / "val" / ANNOTATIONS):
        name, wnid, *_ = line.split("\t")
        if wnid not in label_of:
            raise UsageError(
                f"{ANNOTATIONS} names {wnid!r}, which is not in wnids.txt: unpack the archive again"
            )
        val.append((str(folder / "val" / "images" / name), label_of[wnid]))
    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt") if "\t" in line)
    listing = from_splits(folder, unique_names(wnids, words), {"train": train, "test": val})
    return listing.noting("the labeled validation images are the test set, as in the papers")


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path} ({error}): unpack the archive again") from None
