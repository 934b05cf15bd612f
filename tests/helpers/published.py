"""Writes data sets in the exact layouts of their published archives, in miniature or in full count.

Every `write_*` function unpacks one archive below a folder and returns what a reader must find:
path of an image -> (split, class name). `Pictures(linked=True)` makes every image a hard link to
another, so that even the published number of images is written in seconds.
"""

import csv
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

Truth = dict[str, tuple[str, str]]
"""Path of an image file -> (split, class name)."""
Counts = Mapping[str, int]
"""Images per split."""

MOST_LINKS = 30_000  # file systems bound the links to one file
MINIATURE = {"train": 12, "val": 6, "test": 6}


@dataclass
class Pictures:
    """Writes small JPEGs, each with noise of its own, or links them all to the first."""

    linked: bool = False
    side: int = 16
    first: Path | None = field(default=None, init=False)
    links: int = field(default=0, init=False)
    folders: set[Path] = field(default_factory=set, init=False)

    def write(self, path: Path) -> str:
        """Write an image, with the folders above it; returns its path."""
        if path.parent not in self.folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.folders.add(path.parent)
        if self.linked and self.first is not None and self.links < MOST_LINKS:
            path.hardlink_to(self.first)
            self.links += 1
            return str(path)
        noise = np.random.default_rng(list(str(path.name).encode()))
        pixels = noise.integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, "JPEG")
        self.first, self.links = path, 0
        return str(path)


def in_turn(names: list[str], number: int) -> Iterator[tuple[int, str]]:
    """`number` images, dealt to the classes in turn: (number of the image, class)."""
    return ((k, names[k % len(names)]) for k in range(number))


def text(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def wnids(number: int) -> list[str]:
    """WordNet ids in an order that is not theirs."""
    return [f"n{(k * 7919 + 1) % 100_000_000:08}" for k in range(number, 0, -1)]


# --- arrays ------------------------------------------------------------------------------------


def write_cifar(root: Path, name: str, classes: int = 10, per_part: int = 20) -> None:
    """`cifar-10-batches-py` with five training batches, or `cifar-100-python`."""
    ten = name == "cifar10"
    folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir(parents=True)
    parts = [f"data_batch_{k}" for k in range(1, 6)] if ten else ["train"]
    noise = np.random.default_rng(0)
    for part in [*parts, "test_batch" if ten else "test"]:
        content = {
            "data": noise.integers(0, 256, (per_part, 3072), dtype=np.uint8),
            "labels" if ten else "fine_labels": [k % classes for k in range(per_part)],
            "filenames": [f"{k}.png" for k in range(per_part)],
        }
        (folder / part).write_bytes(pickle.dumps(content, protocol=2))
    key = "label_names" if ten else "fine_label_names"
    meta = {key: [f"kind-{k}" for k in range(classes)]}
    (folder / ("batches.meta" if ten else "meta")).write_bytes(pickle.dumps(meta, protocol=2))


def write_cifar_c(folder: Path, corruptions: tuple[str, ...], classes: int = 10) -> np.ndarray:
    """`<corruption>.npy` of five severities and `labels.npy`; returns the labels."""
    folder.mkdir(parents=True)
    labels = np.tile(np.arange(2 * classes, dtype=np.uint8) % classes, 5)
    np.save(folder / "labels.npy", labels)
    for number, corruption in enumerate(corruptions):
        pixels = np.random.default_rng(number).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
        np.save(folder / f"{corruption}.npy", pixels)
    return labels


# --- ImageNet and its kin ----------------------------------------------------------------------


def write_tiny_imagenet(root: Path, pictures: Pictures, classes: int, counts: Counts) -> Truth:
    folder, ids = root / "tiny-imagenet-200", wnids(classes)
    truth: Truth = {}
    words = {wnid: f"thing {k}, other word" for k, wnid in enumerate(ids)}
    text(folder / "wnids.txt", ids)
    text(folder / "words.txt", [f"{w}\t{name}" for w, name in words.items()] + ["n99999999\tno"])
    for k, wnid in in_turn(ids, counts["train"]):
        path = folder / "train" / wnid / "images" / f"{wnid}_{k // classes}.JPEG"
        truth[pictures.write(path)] = "train", words[wnid].split(",")[0]
        (folder / "train" / wnid / f"{wnid}_boxes.txt").touch()
    lines = []
    for k, wnid in in_turn(ids, counts["test"]):
        path = folder / "val" / "images" / f"val_{k}.JPEG"
        truth[pictures.write(path)] = "test", words[wnid].split(",")[0]
        lines.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t63\t63")
    text(folder / "val" / "val_annotations.txt", lines)
    pictures.write(folder / "test" / "images" / "test_0.JPEG")
    return truth


def write_imagenet(
    root: Path, pictures: Pictures, classes: int, counts: Counts, layout: str = "folders"
) -> Truth:
    """Layouts: "folders" (train and val), "devkit" (flat val), "kaggle" (flat val, CSV)."""
    folder, ids = root / "imagenet", wnids(classes)
    images = folder / "Data" / "CLS-LOC" if layout == "kaggle" else folder
    words = {wnid: f"thing {k}, other word" for k, wnid in enumerate(ids)}
    truth: Truth = {}
    for k, wnid in in_turn(ids, counts["train"]):
        path = images / "train" / wnid / f"{wnid}_{k}.JPEG"
        truth[pictures.write(path)] = "train", f"thing {ids.index(wnid)}"
    shown = []
    for k, wnid in in_turn(ids, counts["test"]):
        name = f"ILSVRC2012_val_{k + 1:08}.JPEG"
        below = Path("val", wnid) if layout == "folders" else Path("val")
        truth[pictures.write(images / below / name)] = "test", f"thing {ids.index(wnid)}"
        shown.append((Path(name).stem, wnid))
    if layout == "kaggle":
        text(folder / "LOC_synset_mapping.txt", [f"{w} {words[w]}" for w in sorted(ids)])
        with (folder / "LOC_val_solution.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["ImageId", "PredictionString"])
            # Kaggle's rows are in no order.
            writer.writerows([stem, f"{wnid} 1 2 3 4"] for stem, wnid in reversed(shown))
    else:
        number_of = _write_devkit(folder / "ILSVRC2012_devkit_t12" / "data", ids, words)
        lines = [str(number_of[wnid]) for _, wnid in shown]
        text(
            folder / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt",
            lines,
        )
    return truth


def _write_devkit(folder: Path, ids: list[str], words: Mapping[str, str]) -> dict[str, int]:
    """`meta.mat`, with parents after the classes; returns the ILSVRC id of each WordNet id."""
    number_of = {wnid: k for k, wnid in enumerate(ids, 1)}  # not their sorted order
    rows = [(number, wnid, words[wnid], "gloss", 0) for wnid, number in number_of.items()]
    rows.append((len(ids) + 1, "n00001740", "entity", "gloss", len(ids)))
    kinds = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    synsets = np.array(rows, dtype=[(kind, object) for kind in kinds])
    folder.mkdir(parents=True)
    savemat(folder / "meta.mat", {"synsets": synsets[:, None]})
    return number_of


# --- fine-grained ------------------------------------------------------------------------------


def write_cub(root: Path, pictures: Pictures, classes: int, counts: Counts) -> Truth:
    folder = root / "CUB_200_2011"
    names = [f"{k:03}.Bird_{k}" for k in range(1, classes + 1)]
    text(folder / "classes.txt", [f"{k} {name}" for k, name in enumerate(names, 1)])
    text(root / "attributes.txt", ["1 has_bill_shape::curved"])
    truth: Truth = {}
    lists: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    number = 0
    for split in ("test", "train"):
        for k, name in in_turn(names, counts[split]):
            number += 1
            path = f"{name}/{name[4:]}_{number:04}_{k}.jpg"
            truth[pictures.write(folder / "images" / path)] = split, name
            lists["images"].append(f"{number} {path}")
            lists["image_class_labels"].append(f"{number} {names.index(name) + 1}")
            lists["train_test_split"].append(f"{number} {int(split == 'train')}")
    for name, lines in lists.items():
        text(folder / f"{name}.txt", lines)
    text(folder / "bounding_boxes.txt", [f"{k} 1.0 1.0 9.0 9.0" for k in range(1, number + 1)])
    return truth


def write_aircraft(root: Path, pictures: Pictures, classes: int, counts: Counts) -> Truth:
    """`counts["train"]` images are listed as trainval: one half as train, one as val."""
    folder = root / "fgvc-aircraft-2013b" / "data"
    names = ["F-16A/B", "Boeing 707", *(f"Model {k}" for k in range(2, classes))]
    text(folder / "variants.txt", names)
    text(folder / "families.txt", ["one family"])
    truth: Truth = {}
    number = 0
    for split, listed in (("train", "trainval"), ("test", "test")):
        lines = []
        for _, name in in_turn(names, counts[split]):
            number += 1
            path = folder / "images" / f"{number:07}.jpg"
            truth[pictures.write(path)] = split, name
            lines.append(f"{number:07} {name}")
        text(folder / f"images_variant_{listed}.txt", lines)
        if split == "train":
            half = len(lines) // 2
            text(folder / "images_variant_train.txt", lines[:half])
            text(folder / "images_variant_val.txt", lines[half:])
    return truth


def write_cars(
    root: Path, pictures: Pictures, classes: int, counts: Counts, layout: str = "torchvision"
) -> Truth:
    """Layouts: "torchvision", "nested" (folders in folders of their name), "single list"."""
    folder = root / "stanford_cars"
    names = ["Ram C/V Cargo Van Minivan 2012", *(f"Car {k} 2012" for k in range(1, classes))]
    folder.mkdir(parents=True)
    truth: Truth = {}
    listed: dict[str, list[tuple[Any, ...]]] = {"train": [], "test": []}
    number = 0
    for split, rows in listed.items():
        for k, name in in_turn(names, counts[split]):
            number += 1
            label = names.index(name) + 1
            if layout == "single list":
                file = f"car_ims/{number:06}.jpg"
                rows.append((file, 1, 1, 9, 9, label, int(split == "test")))
                path = folder / file
            else:
                file = f"{k + 1:05}.jpg"  # the same names in both splits
                rows.append((1, 1, 9, 9, label, file))
                nested = (f"cars_{split}",) * (2 if layout == "nested" else 1)
                path = folder.joinpath(*nested) / file
            truth[pictures.write(path)] = split, name
    cells = np.array(names, dtype=object)
    if layout == "single list":
        kinds = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
        rows = [*listed["train"], *listed["test"]]
        content = {"annotations": _struct(rows, kinds), "class_names": cells[None]}
        savemat(folder / "cars_annos.mat", content)
        return truth
    (folder / "devkit").mkdir()
    plain_kinds = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": cells[None]})
    train = {"annotations": _struct(listed["train"], plain_kinds)}
    savemat(folder / "devkit" / "cars_train_annos.mat", train)
    unlabeled = [(*row[:4], row[5]) for row in listed["test"]]
    hidden = {"annotations": _struct(unlabeled, (*plain_kinds[:4], "fname"))}
    savemat(folder / "devkit" / "cars_test_annos.mat", hidden)
    test = {"annotations": _struct(listed["test"], plain_kinds)}
    savemat(folder / "cars_test_annos_withlabels.mat", test)
    return truth


def _struct(rows: list[tuple[Any, ...]], kinds: tuple[str, ...]) -> np.ndarray:
    return np.array(rows, dtype=[(kind, object) for kind in kinds])[None]


# --- those that torchvision lists ---------------------------------------------------------------


def write_dtd(root: Path, pictures: Pictures, classes: int, counts: Counts) -> Truth:
    folder = root / "dtd"
    names = [f"texture{k:02}" for k in range(classes)]
    truth: Truth = {}
    for split in ("train", "val", "test"):
        lines = []
        for k, name in in_turn(names, counts[split]):
            path = folder / "images" / name / f"{name}_{split}_{k:04}.jpg"
            truth[pictures.write(path)] = split, name
            lines.append(f"{name}/{path.name}")
        text(folder / "labels" / f"{split}1.txt", lines)
        text(folder / "labels" / f"{split}2.txt", lines[:1])  # another partition
    (folder / "imdb").mkdir()
    return truth


def write_flowers(root: Path, pictures: Pictures, classes: int, counts: Counts) -> Truth:
    """The class names are those that torchvision has; labels count from 1."""
    from torchvision.datasets import Flowers102

    folder, names = root / "flowers-102", list(Flowers102.classes[:classes])
    truth: Truth = {}
    labels: list[int] = []
    numbers: dict[str, list[int]] = {"test": [], "train": [], "val": []}
    for split, some in numbers.items():
        for _, name in in_turn(names, counts[split]):
            labels.append(names.index(name) + 1)
            some.append(len(labels))
            path = folder / "jpg" / f"image_{len(labels):05}.jpg"
            truth[pictures.write(path)] = split, name
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels])})
    ids = {"trnid": "train", "valid": "val", "tstid": "test"}
    savemat(folder / "setid.mat", {key: np.array([numbers[s]]) for key, s in ids.items()})
    return truth


def write_pets(root: Path, pictures: Pictures, classes: int, counts: Counts) -> Truth:
    folder = root / "oxford-iiit-pet"
    names = [f"{'Cat' if k % 2 else 'dog'}_breed_{k}" for k in range(classes)]
    truth: Truth = {}
    for split, listed in (("train", "trainval"), ("test", "test")):
        lines = []
        for k, name in in_turn(names, counts[split]):
            image = f"{name}_{k + (100_000 if split == 'test' else 0)}"
            path = folder / "images" / f"{image}.jpg"
            shown = " ".join(part.title() for part in name.split("_"))
            truth[pictures.write(path)] = split, shown
            lines.append(f"{image} {names.index(name) + 1} 1 1")
        text(folder / "annotations" / f"{listed}.txt", lines)
    return truth


def write_food(root: Path, pictures: Pictures, classes: int, counts: Counts) -> Truth:
    folder = root / "food-101"
    names = [f"dish_{k:03}" for k in range(classes)]
    truth: Truth = {}
    for split in ("train", "test"):
        listed: dict[str, list[str]] = {name: [] for name in names}
        for k, name in in_turn(names, counts[split]):
            stem = f"{name}/{k + (1_000_000 if split == 'test' else 0)}"
            truth[pictures.write(folder / "images" / f"{stem}.jpg")] = split, name
            listed[name].append(stem)
        (folder / "meta").mkdir(exist_ok=True)
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))
    text(folder / "meta" / "classes.txt", names)
    return truth


Writer = Callable[[Path, Pictures, int, Counts], Truth]

WRITERS: dict[str, Writer] = {
    "tiny-imagenet-200": write_tiny_imagenet,
    "imagenet": write_imagenet,
    "cub200": write_cub,
    "aircraft": write_aircraft,
    "cars": write_cars,
    "dtd": write_dtd,
    "flowers102": write_flowers,
    "pets": write_pets,
    "food101": write_food,
}
"""Name of an archive of image files -> how it is written."""
