"""List files, folders in the names people use, Hugging Face data sets and data set objects."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from published import Pictures
from test_sources import listed

from adautomix.data import load_data
from adautomix.data.picture_sources import find_pictures
from adautomix.data.sources.class_names import read_class_names
from adautomix.data.sources.folders import list_folder
from adautomix.data.sources.hugging_face import read_hugging_face
from adautomix.data.sources.listing import Found, Listing
from adautomix.data.sources.objects import read_objects
from adautomix.data.sources.open import SourceOptions, open_source
from adautomix.errors import UsageError


def read(source: Path, **options: Any) -> Listing:
    found = open_source(str(source), SourceOptions(**options))
    assert isinstance(found, Listing)
    return found


def images(root: Path, *paths: str) -> Path:
    for path in paths:
        Pictures().write(root / path)
    return root


def splits(found: Found) -> dict[str, int]:
    return {split: len(rows) for split, rows in found.given.items()}


def labeled(found: Listing) -> dict[str, tuple[str, str]]:
    """Name of a file -> (split, class name)."""
    return {Path(path).name: fact for path, fact in listed(found).items()}


# --- list files --------------------------------------------------------------------------------

FACTS = {"a.jpg": ("train", "cat"), "b.jpg": ("train", "dog"), "c.jpg": ("test", "cat")}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.csv", "path,label,split\nx/a.jpg,cat,train\nx/b.jpg,dog,train\nx/c.jpg,cat,test\n"),
        ("data.csv", "x/a.jpg,cat,train\nx/b.jpg,dog,Training\nx/c.jpg,cat,testing\n"),
        (
            "data.csv",
            "\ufeffsplit;label;file\ntrain;cat;x/a.jpg\ntrain;dog;x/b.jpg\ntest;cat;x/c.jpg",
        ),
        ("data.tsv", "x/a.jpg\tcat\ttrain\nx/b.jpg\tdog\ttrain\n\nx/c.jpg\tcat\ttest\n"),
        ("data.txt", "{root}/x/a.jpg, cat, train\n{root}/x/b.jpg, dog, train\nx/c.jpg,cat,test"),
        ("data.csv", "id,breed,set\na,cat,train\nb,dog,train\nc,cat,val\n"),
    ],
)
def test_one_list(name: str, content: str, tmp_path: Path) -> None:
    images(tmp_path, "x/a.jpg", "x/b.jpg", "x/c.jpg")
    (tmp_path / name).write_text(content.replace("{root}", str(tmp_path)), encoding="utf-8")
    found = read(tmp_path / name)
    assert labeled(found) == FACTS
    assert found.classes == ("cat", "dog")


def test_a_list_without_splits_is_split(tmp_path: Path) -> None:
    images(tmp_path, "my photo.jpg", "b.jpg")
    (tmp_path / "list.txt").write_text("my photo.jpg cat\nb.jpg dog\n")
    found = read(tmp_path / "list.txt")
    assert labeled(found) == {"my photo.jpg": ("all", "cat"), "b.jpg": ("all", "dog")}


@pytest.mark.parametrize("point_at", ["", "train.txt", "val.txt"])
def test_one_list_per_split(point_at: str, tmp_path: Path) -> None:
    images(tmp_path, *(f"{split}/{k}.jpg" for split in ("train", "val", "test") for k in (1, 2)))
    for split in ("train", "val", "test"):
        text = "".join(f"{split}/{k}.jpg, {k - 1}, 7\n" for k in (1, 2))
        (tmp_path / f"{split}.txt").write_text(text)
    (tmp_path / "classes.csv").write_text("Class (str),ID (int),More\nred fox,0,x\nowl,1,y\n")
    found = read(tmp_path / point_at if point_at else tmp_path)
    assert splits(found) == {"train": 2, "val": 2, "test": 2}
    assert found.classes == ("red fox", "owl")
    assert found.notes[:3] == (
        "images and labels are those of train.txt, val.txt, test.txt",
        "1 further column of the lists ignored",
        "class names are those of classes.csv",
    )


def test_kaggle(tmp_path: Path) -> None:
    images(tmp_path, *(f"train_images/{k}.jpg" for k in range(4)), "test_images/9.jpg")
    rows = "".join(f"{k},{3 + k % 2}\n" for k in range(4))
    (tmp_path / "train.csv").write_text(f"image_id,label\n{rows}")
    (tmp_path / "test.csv").write_text("image_id\n9\n")
    found = read(tmp_path)
    assert labeled(found) == {f"{k}.jpg": ("all", str(3 + k % 2)) for k in range(4)}
    assert any("in train_images/ with the suffix .jpg" in note for note in found.notes)


def test_paths_start_from_data_root_if_it_is_set(tmp_path: Path) -> None:
    images(tmp_path / "elsewhere", "a.jpg", "b.jpg")
    (tmp_path / "list.csv").write_text("a.jpg,x\nb.jpg,y\n")
    with pytest.raises(UsageError, match=r"a\.jpg is missing: .* set --data-root"):
        read(tmp_path / "list.csv", root=images(tmp_path / "wrong", "c.jpg"))
    assert splits(read(tmp_path / "list.csv", root=tmp_path / "elsewhere")) == {"all": 2}


@pytest.mark.parametrize(
    "content",
    [
        "path,labels\na.jpg,cat|dog\nb.jpg,dog\nc.jpg,cat; owl\n",
        "image,cat,dog,owl\na.jpg,1,1,0\nb.jpg,0,1,0\nc.jpg,1,0,1\n",
    ],
)
def test_several_labels_per_image(content: str, tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "list.csv").write_text(content)
    found = read(tmp_path / "list.csv")
    assert found.classes == ("cat", "dog", "owl")
    assert found.labels == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert "an image may have several labels" in found.notes
    images(tmp_path, *(f"{name}{k}.jpg" for name in "abc" for k in range(5)))
    lines = [
        f"{name}{k}.jpg,{labels}"
        for name, labels in (("a", "x|y"), ("b", "y"), ("c", "x"))
        for k in range(5)
    ]
    (tmp_path / "more.csv").write_text("\n".join(lines))
    data = load_data(str(tmp_path / "more.csv"), workers=1, progress=False)
    assert data.multi_label
    assert data.train.labels.shape == (12, 2)


def test_a_column_per_class_with_one_label_each(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.csv").write_text("image,Cat,Dog,split\na,1.0,0.0,train\nb,0.0,1.0,test\n")
    assert labeled(read(tmp_path / "list.csv")) == {
        "a.jpg": ("train", "Cat"),
        "b.jpg": ("test", "Dog"),
    }


def test_integer_labels_are_in_order_of_number(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "list.csv").write_text("a.jpg,10\nb.jpg,9\nc.jpg,100\n")
    found = read(tmp_path / "list.csv")
    assert found.classes == ("9", "10", "100")
    assert found.labels == [1, 0, 2]
    names = tmp_path / "mine.txt"
    names.write_text("9 old owl\n10 fox\n100 newt\n")
    assert read(tmp_path / "list.csv", class_names=names).classes == ("old owl", "fox", "newt")
    names.write_text("9 owl\n10 fox\n")
    with pytest.raises(UsageError, match=r"mine\.txt has no name for class 100: add it"):
        read(tmp_path / "list.csv", class_names=names)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("owl\nred fox\n", {0: "owl", 1: "red fox"}),
        ("1 owl\n2 red fox\n", {1: "owl", 2: "red fox"}),
        ("owl,4\nred fox,5\n", {4: "owl", 5: "red fox"}),
        ("id,name\n0,owl\n1,red fox\n", {0: "owl", 1: "red fox"}),
        ("tench, Tinca tinca\ngoldfish\n", {0: "tench, Tinca tinca", 1: "goldfish"}),
    ],
)
def test_class_names(content: str, expected: dict[int, str], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(content)
    assert read_class_names(tmp_path / "names.txt") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.jpg,x\ngone.jpg,y\n", r"gone\.jpg is missing \(one of 1 missing"),
        ("a.jpg,x\na.jpg\n", r"line 2 of .*list\.csv has no label"),
        ("path,label\n", r"names no image"),
        ("", r"names no image"),
        ("path,label,split\na.jpg,x,train\na.jpg,y,july\n", r"has a split 'july': use train, val"),
        ("a.jpg,\0\n\0,\0\n", r"\0 is missing"),
    ],
)
def test_lists_that_cannot_be_read(content: str, message: str, tmp_path: Path) -> None:
    images(tmp_path, "a.jpg")
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(UsageError, match=message) as error:
        read(tmp_path / "list.csv")
    assert "\n" not in str(error.value)


# --- folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "test"), {"train", "test"}),
        (("Training", "Testing"), {"train", "test"}),
        (("TRAIN", "valid"), {"train", "test"}),
        (("training", "dev", "test"), {"train", "val", "test"}),
        (("train", "validation", "testing"), {"train", "val", "test"}),
        (("Train",), {"all"}),
        (("Test",), {"test"}),
    ],
)
def test_names_of_splits(names: tuple[str, ...], expected: set[str], tmp_path: Path) -> None:
    images(tmp_path, *(f"{name}/{kind}/{name}-{kind}.jpg" for name in names for kind in "ab"))
    found = read(tmp_path)
    assert set(found.given) == expected
    assert found.classes == ("a", "b")
    assert len(found.files) == 2 * len(names)


def test_two_names_of_one_split(tmp_path: Path) -> None:
    images(tmp_path, "train/a/1.jpg", "Training/a/2.jpg")
    with pytest.raises(UsageError, match="both stand for the train split: rename or remove one"):
        read(tmp_path)


def test_two_folders_with_the_same_subfolders_are_no_classes(tmp_path: Path) -> None:
    images(tmp_path, *(f"{part}/{kind}/1.jpg" for part in ("old", "new") for kind in "ab"))
    with pytest.raises(UsageError, match="with the same subfolders, new and old: if they are spl"):
        read(tmp_path)


def test_nested_classes(tmp_path: Path) -> None:
    paths = ["fruit/apple/1.jpg", "fruit/pear/2.jpg", "fruit/3.jpg", "milk/oat/deep/4.jpg"]
    images(tmp_path, *(f"{split}/{path}" for split in ("train", "test") for path in paths))
    top = read(tmp_path)
    assert top.classes == ("fruit", "milk")
    assert any("--class-level leaf makes every folder" in note for note in top.notes)
    leaf = read(tmp_path, class_level="leaf")
    assert leaf.classes == ("apple", "deep", "fruit", "pear")
    assert splits(leaf) == {"train": 4, "test": 4}
    images(tmp_path, "train/milk/apple/5.jpg")
    assert read(tmp_path, class_level="leaf").classes == (
        "fruit",
        "fruit/apple",
        "fruit/pear",
        "milk/apple",
        "milk/oat/deep",
    )


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    images(tmp_path, "a/1.jpg", "a/.2.jpg", "b/3.jpg", "a/@eaDir/4.jpg", "__MACOSX/a/5.jpg")
    images(tmp_path, "a/6.jfif", "a/7", ".thumbs/8.jpg", "loose.jpg")
    for name in ("a/1.heic", "a/2.HEIC", "b/x.jp2", "b/notes.txt", "b/plain"):
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "c").mkdir()
    found = read(tmp_path)
    assert [Path(file.path).name for file in found.files] == ["1.jpg", "6.jfif", "7", "3.jpg"]
    assert found.notes == (
        "passed over 2 hidden files or folders",
        "passed over 1 folder named @eaDir",
        "passed over 1 folder named __MACOSX",
        "passed over 1 suffixless file",
        "passed over 2 .heic files: install pillow-heif and convert them to JPEG",
        "passed over 1 .jp2 file",
        "passed over 1 .txt file",
        "took 2 files without a usual suffix for images by their content",
    )
    assert found.warnings == (
        f"1 image directly in {tmp_path} belong to no class: ignored",
        f"1 class folder without images ignored: {tmp_path / 'c'}",
    )


def test_a_link_back_to_the_root_counts_no_image_twice(tmp_path: Path) -> None:
    images(tmp_path / "set", "a/1.jpg", "a/2.jpg", "b/3.jpg")
    for link, target in (("a/back", "."), ("a/other", "b"), ("b/deep", "a"), ("aa", "b")):
        (tmp_path / "set" / link).symlink_to(tmp_path / "set" / target)
    found = list_folder(tmp_path / "set")
    assert sorted(Path(file.path).name for file in found.files) == ["1.jpg", "2.jpg", "3.jpg"]
    assert labeled(found)["3.jpg"] == ("all", "b")
    assert "passed over 4 links to folders that count already" in found.notes


def test_a_link_to_itself_is_an_unreadable_image(tmp_path: Path) -> None:
    images(tmp_path / "set", "a/1.jpg", "b/2.jpg")
    for link in ("a/loop.jpg", "b/loop", "loop.jpg"):
        (tmp_path / "set" / link).symlink_to(tmp_path / "set" / link)
    found = list_folder(tmp_path / "set")
    assert [Path(file.path).name for file in found.files] == ["1.jpg", "loop.jpg", "2.jpg"]
    assert find_pictures([tmp_path / "set" / "a"]) == [
        tmp_path / "set" / "a" / name for name in ("1.jpg", "loop.jpg")
    ]


@pytest.mark.parametrize("level", ["auto", "leaf"])
def test_the_layout_of_the_grocery_store(level: str, tmp_path: Path) -> None:
    """List files beside nested folders; a class lies deeper in test than in train."""
    kinds = ["Fruit/Apple/Golden-Delicious", "Fruit/Apple/Granny-Smith", "Vegetables/Mushroom"]
    for split, count in (("train", 4), ("val", 1), ("test", 3)):
        lines = []
        for number, kind in enumerate(kinds):
            deeper = kind.replace("Mushroom", "Brown/Mushroom") if split == "test" else kind
            for k in range(count):
                path = f"{split}/{deeper}/{Path(kind).name}_{k:03}.jpg"
                images(tmp_path, path)
                lines.append(f"{path}, {number}, {number // 2}\n")
        (tmp_path / f"{split}.txt").write_text("".join(lines))
    titles = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int)\n"
    rows = [f"{Path(kind).name},{k},Some,{k // 2}\n" for k, kind in enumerate(kinds)]
    (tmp_path / "classes.csv").write_text("".join([titles, *rows]))
    found = read(tmp_path, class_level=level)
    assert splits(found) == {"train": 12, "val": 3, "test": 9}
    assert found.classes == ("Golden-Delicious", "Granny-Smith", "Mushroom")
    for file, label in zip(found.files, found.class_indices, strict=True):
        assert Path(file.path).parent.name == found.classes[label]


# --- objects -----------------------------------------------------------------------------------


class Toys(torch.utils.data.Dataset[Any]):
    """Six noise images of two classes, in a form of choice."""

    classes = ("block", "ball")

    def __init__(self, kind: str, start: int = 0) -> None:
        self.kind, self.start = kind, start

    def __len__(self) -> int:
        return 6

    def pixels(self, row: int) -> np.ndarray:
        noise = np.random.default_rng(self.start + row)
        return noise.integers(0, 256, (8, 12, 3), dtype=np.uint8)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        pixels = self.pixels(row)
        forms: dict[str, Any] = {
            "pil": Image.fromarray(pixels),
            "array": pixels,
            "uint8": torch.from_numpy(pixels).permute(2, 0, 1),
            "float": torch.from_numpy(pixels).permute(2, 0, 1) / 255,
            "normalized": torch.from_numpy(pixels).permute(2, 0, 1) / 255 - 0.5,
        }
        return forms[self.kind], row % 2


@pytest.mark.parametrize("kind", ["pil", "array", "uint8", "float"])
def test_objects_keep_their_pixels_labels_and_splits(kind: str, tmp_path: Path) -> None:
    parts = (Toys(kind), Toys(kind, 100))
    for words in ("were written", "are kept"):  # the second time they are there
        found = read_objects(parts, tmp_path)
        assert found.name == "Toys"
        assert found.classes == ("block", "ball")
        assert splits(found) == {"train": 6, "test": 6}
        assert any(f"the images {words} once as files in {tmp_path}" in n for n in found.notes)
        for row, (file, label) in enumerate(zip(found.files, found.labels, strict=True)):
            part = parts[row // 6]
            assert np.array_equal(np.asarray(Image.open(file.path)), part.pixels(row % 6))
            assert label == row % 2


def test_an_image_folder_object_is_read_from_its_files(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    images(tmp_path / "set", "a/1.jpg", "b/2.jpg")
    found = read_objects(ImageFolder(str(tmp_path / "set")), tmp_path / "cache")
    assert labeled(found) == {"1.jpg": ("all", "a"), "2.jpg": ("all", "b")}
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([Toys("normalized"), Toys("pil")], "item 0 of the train data set .* not normalized"),
        ([Toys("pil")] * 4, r"data holds 4 data sets: give one, \(train, test\)"),
        ([iter(()), Toys("pil")], "data holds a tuple_iterator: give data sets with a length"),
    ],
)
def test_objects_that_are_no_data_sets(given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_objects(given, tmp_path)


# --- Hugging Face ------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local data set with a train and a validation split in parquet files."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["block", "ball"])}
    for split, start in (("train", 0), ("validation", 100)):
        rows = [Toys("pil", start)[row] for row in range(6)]
        columns = {"image": [image for image, _ in rows], "label": [label for _, label in rows]}
        part = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        (tmp_path / "toys").mkdir(exist_ok=True)
        part.to_parquet(tmp_path / "toys" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "toys"


def test_a_local_parquet_data_set(parquet: Path, tmp_path: Path) -> None:
    for words in ("were written", "are kept"):
        found = open_source(f"hf:{parquet}", SourceOptions(cache_dir=tmp_path / "cache"))
        assert isinstance(found, Listing)
        assert found.name == "toys"
        assert found.classes == ("block", "ball")
        assert splits(found) == {"train": 6, "test": 6}
        assert any(f"the images {words} once as files in {tmp_path}" in n for n in found.notes)
        for row, (file, label) in enumerate(zip(found.files, found.labels, strict=True)):
            expected = Toys("pil", 100 * (row // 6)).pixels(row % 6)
            assert np.array_equal(np.asarray(Image.open(file.path)), expected)
            assert label == row % 2


def test_a_data_set_without_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "words").mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "words" / "train.parquet")
    with pytest.raises(UsageError, match="has no column with images"):
        read_hugging_face(str(tmp_path / "words"), tmp_path)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adautomix.data.sources.hugging_face.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"not installed: pip install 'adautomix\[huggingface\]'"):
        read_hugging_face("cats", None)


def test_a_listing_takes_little_memory_per_file(tmp_path: Path) -> None:
    """At this rate the listing of a million files takes less than half a GiB."""
    files, classes = 2000, 40
    for number in range(files):
        folder = tmp_path / f"class{number % classes:03}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number:06}.png").touch()
    list_folder(tmp_path)  # whatever is kept from a first call is no part of the listing
    tracemalloc.start()
    found = list_folder(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.files) == files
    assert peak / files < 500
