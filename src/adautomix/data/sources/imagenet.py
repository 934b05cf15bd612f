"""ImageNet-1K (ILSVRC 2012): class folders, or validation images with their ground truth."""

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adautomix.data.sources.folders import subfolders
from adautomix.data.sources.listing import Listing, from_splits
from adautomix.errors import UsageError

DEVKIT = "ILSVRC2012_devkit_t12"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SOLUTION = "LOC_val_solution.csv"
WORDS = "LOC_synset_mapping.txt"
_TRAIN_FOLDERS = (
    "train",
    "ILSVRC2012_img_train",
    "Data/CLS-LOC/train",
    "ILSVRC/Data/CLS-LOC/train",
)
_VAL_FOLDERS = ("val", "ILSVRC2012_img_val", "Data/CLS-LOC/val", "ILSVRC/Data/CLS-LOC/val")


def is_imagenet(folder: Path) -> bool:
    """Return whether a folder has training folders for all 1,000 classes, or the official lists."""
    if not any((folder / place).is_dir() for place in _VAL_FOLDERS):
        return False
    trees = [folder / place for place in _TRAIN_FOLDERS if (folder / place).is_dir()]
    lists = (f"{DEVKIT}/data/meta.mat", WORDS)
    listed = any((folder / name).is_file() for name in lists)
    return bool(trees) and (listed or sum(map(is_wnid, subfolders(trees[0]))) == 1000)


def read_imagenet(folder: Path) -> Listing:
    """List the images with their WordNet id as class; the validation images are the test set.

    Labels number the sorted WordNet ids. The validation images are either in class folders, or in
    one flat folder with the ground truth of the devkit (whose numbers are not labels) or of Kaggle
    (`LOC_val_solution.csv`).

    Args:
        folder: the folder that holds `train` and `val`.

    Raises:
        UsageError: a folder, or the ground truth of flat validation images, is missing.
    """
    train, val = _place(folder, _TRAIN_FOLDERS), _place(folder, _VAL_FOLDERS)
    wnids = [name for name in subfolders(train) if is_wnid(name)]
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    splits = {"train": _class_folders(train, label_of), "test": _validation(folder, val, label_of)}
    listing = from_splits(folder, unique_names(wnids, _words(folder)), splits)
    return listing.noting("the validation images are the test set, as in the papers")


def is_wnid(name: str) -> bool:
    """Return whether a name is a WordNet id, such as "n01440764"."""
    return len(name) == 9 and name[0] == "n" and name[1:].isdecimal()


def unique_names(wnids: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """Return the first word of each class, with the id added where two classes share a word."""
    first = {wnid: words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids}
    times = Counter(first.values())
    return [name if times[name] == 1 else f"{name} ({wnid})" for wnid, name in first.items()]


def _place(folder: Path, names: Sequence[str]) -> Path:
    found = next((folder / name for name in names if (folder / name).is_dir()), None)
    if found is None:
        raise UsageError(
            f"{folder} has no folder {names[0]}: unpack {names[1]}.tar into {folder / names[0]}"
        )
    return found


def _class_folders(tree: Path, label_of: Mapping[str, int]) -> list[tuple[str, int]]:
    return [
        (path, label)
        for wnid, label in label_of.items()
        if (tree / wnid).is_dir()
        for path in _jpegs(tree / wnid)
    ]


def _jpegs(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.path
            for entry in entries
            if entry.name.lower().endswith((".jpeg", ".jpg")) and entry.name[0] != "."
        )


def _validation(folder: Path, val: Path, label_of: Mapping[str, int]) -> list[tuple[str, int]]:
    images = _jpegs(val)
    if not images:
        return _class_folders(val, label_of)
    truth = _ground_truth(folder, images)
    unknown = next((wnid for wnid in truth if wnid not in label_of), None)
    if unknown is not None:
        raise UsageError(
            f"validation images belong to class {unknown}, which has no training folder: unpack "
            "the training archive again"
        )
    return [(path, label_of[wnid]) for path, wnid in zip(images, truth, strict=True)]


def _ground_truth(folder: Path, images: Sequence[str]) -> list[str]:
    """Return the WordNet id of each validation image, in the order of file names."""
    devkit = _file(folder, GROUND_TRUTH, (f"{DEVKIT}/data", "data", ""))
    solution = _file(folder, SOLUTION, ("", ".."))
    if devkit is not None:
        wnid_of = {number: wnid for number, wnid, _ in _synsets(devkit.parent / "meta.mat")}
        truth = [wnid_of[int(line)] for line in devkit.read_text().split()]
    elif solution is not None:
        with solution.open(newline="", encoding="utf-8") as file:
            rows = {row["ImageId"]: row["PredictionString"] for row in csv.DictReader(file)}
        truth = [rows[Path(path).stem].split()[0] for path in images if Path(path).stem in rows]
    else:
        raise UsageError(
            f"the validation images in {folder} are not in class folders: unpack "
            f"{DEVKIT}.tar.gz there, which contains their ground truth"
        )
    if len(truth) != len(images):
        raise UsageError(
            f"{folder} has {len(images)} validation images but {len(truth)} lines of ground truth: "
            "unpack the archives again"
        )
    return truth


def _file(folder: Path, name: str, places: Sequence[str]) -> Path | None:
    return next((folder / p / name for p in places if (folder / p / name).is_file()), None)


def _synsets(path: Path) -> list[tuple[int, str, str]]:
    """Read (number, WordNet id, words) of each leaf class from `meta.mat`."""
    from scipy.io import loadmat

    try:
        rows: Any = loadmat(path, squeeze_me=True)["synsets"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"cannot read {path} ({error}): unpack the devkit again") from None
    return [
        (int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"]))
        for row in rows
        if int(row["num_children"]) == 0
    ]


def _words(folder: Path) -> dict[str, str]:
    """Return the words for each WordNet id, from the release if present, else from timm."""
    meta = _file(folder, "meta.mat", (f"{DEVKIT}/data", "data"))
    if meta is not None:
        return {wnid: words for _, wnid, words in _synsets(meta)}
    mapping = _file(folder, WORDS, ("", ".."))
    if mapping is not None:
        lines = mapping.read_text(encoding="utf-8").splitlines()
        return dict(line.split(" ", 1) for line in lines if " " in line)
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return {wnid: info.label_name_to_description(wnid) for wnid in info.label_names()}  # type: ignore[no-untyped-call]
