"""Stanford Cars: 196 classes, with annotations in MATLAB files that count classes from 1."""

from pathlib import Path
from typing import Any

from adautomix.data.sources.listing import Listing, from_splits
from adautomix.data.sources.torchvision_sets import read_with_torchvision
from adautomix.errors import UsageError

TEST_LABELS = "cars_test_annos_withlabels.mat"


def is_cars(folder: Path) -> bool:
    """Return whether a folder has one of the two published layouts."""
    annotations = ("cars_annos.mat", "devkit/cars_meta.mat")
    return any((folder / name).is_file() for name in annotations)


def read_cars(folder: Path) -> Listing:
    """List the images with their official split.

    Two layouts were published: `cars_train/`, `cars_test/` and `devkit/` with the labels of the
    test images in a separate file, and `car_ims/` with one `cars_annos.mat`. Copies that nest
    a folder twice (`cars_train/cars_train/`) are accepted too.

    Raises:
        UsageError: annotations or images are missing.
    """
    if (folder / "cars_annos.mat").is_file():
        return _read_single_list(folder)
    places_of_labels = (folder / TEST_LABELS, folder / "devkit" / TEST_LABELS)
    labels = next((path for path in places_of_labels if path.is_file()), None)
    if labels is None:
        raise UsageError(
            f"{folder} has no {TEST_LABELS}, which holds the labels of the test images: put it "
            "there (the devkit does not contain it)"
        )
    places = {
        "stanford_cars/devkit": folder / "devkit",
        f"stanford_cars/{TEST_LABELS}": labels,
        "stanford_cars/cars_train": _innermost(folder / "cars_train"),
        "stanford_cars/cars_test": _innermost(folder / "cars_test"),
    }
    return read_with_torchvision("StanfordCars", folder, places, {"train": "train", "test": "test"})


def _innermost(folder: Path) -> Path:
    nested = folder / folder.name
    return nested if nested.is_dir() else folder


def _read_single_list(folder: Path) -> Listing:
    """Read the older layout, whose annotations flag the test images."""
    from scipy.io import loadmat

    content: Any = loadmat(folder / "cars_annos.mat", squeeze_me=True)
    splits: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for row in content["annotations"]:
        split = "test" if int(row["test"]) else "train"
        path = folder / str(row["relative_im_path"])
        splits[split].append((str(path), int(row["class"]) - 1))
    return from_splits(folder, [str(name) for name in content["class_names"]], splits)
