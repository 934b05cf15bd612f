"""Every source is read by name and by path, with its own classes, labels and splits."""

from pathlib import Path

import published
import pytest
import torch
from published import MINIATURE, WRITERS, Pictures, Truth

from adautomix.data.corruptions.corrupted import PAPER_CORRUPTIONS
from adautomix.data.sources.archives import ARCHIVES
from adautomix.data.sources.listing import Arrays, Found, Listing
from adautomix.data.sources.open import SourceOptions, open_source
from adautomix.errors import RunError, UsageError


@pytest.fixture(autouse=True)
def _labels_of_flowers_have_no_published_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision checks the MD5 sum of two files that a miniature cannot have."""
    from torchvision.datasets import Flowers102

    files = {key: (name, None) for key, (name, _) in Flowers102._file_dict.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", files)


def read(source: object, root: Path | None = None, **options: object) -> Found:
    return open_source(str(source), SourceOptions(root, **options))  # type: ignore[arg-type]


def listed(found: Found) -> Truth:
    """Path -> (split, class name), as a reader found them."""
    assert isinstance(found, Listing)
    return {
        found.files[row].path: (split, found.classes[found.class_indices[row]])
        for split, rows in found.given.items()
        for row in rows
    }


# --- published archives ------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_an_archive_of_files_by_name_and_by_path(name: str, tmp_path: Path) -> None:
    truth = WRITERS[name](tmp_path, Pictures(), 3, MINIATURE)
    found = read(name, tmp_path)
    assert listed(found) == truth
    assert isinstance(found, Listing)
    assert found.name == name
    assert len(found.files) == len(truth)
    folder = ARCHIVES[name].find(tmp_path)
    assert folder is not None
    by_path = read(folder)
    assert listed(by_path) == truth
    assert any("its official split is used" in note for note in by_path.notes)


@pytest.mark.parametrize("name", WRITERS)
def test_a_part_of_an_archive_uses_the_official_split(name: str, tmp_path: Path) -> None:
    truth = WRITERS[name](tmp_path, Pictures(), 3, MINIATURE)
    folder = ARCHIVES[name].find(tmp_path)
    assert folder is not None
    for part in (path for path in folder.iterdir() if path.is_dir()):
        found = read(part)
        assert listed(found) == truth, part
        title = ARCHIVES[name].title
        assert any(f"{part} belongs to {title}" in note for note in found.notes)


@pytest.mark.parametrize("name", WRITERS)
def test_other_counts_than_published_are_said(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path, Pictures(), 3, MINIATURE)
    archive = ARCHIVES[name]
    warnings = read(name, tmp_path).warnings
    # torchvision names all kinds of flowers, whatever the files show.
    kinds = 102 if name == "flowers102" else 3
    assert len(warnings) == len(archive.images) + (kinds != archive.classes)
    for split, published_count in archive.images.items():
        line = f"{MINIATURE[split]} {split} images of {archive.title} here, {published_count:,}"
        assert any(line in warning for warning in warnings)
    if kinds != archive.classes:
        assert f"3 classes of {archive.title} here, {archive.classes:,} as published" in warnings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cub200", "cars", "dtd", "flowers102", "pets"])
def test_the_published_counts_are_accepted(name: str, tmp_path: Path) -> None:
    archive = ARCHIVES[name]
    truth = WRITERS[name](tmp_path, Pictures(linked=True), archive.classes, archive.images)
    found = read(name, tmp_path)
    assert found.warnings == ()
    assert {split: len(rows) for split, rows in found.given.items()} == archive.images
    assert listed(found) == truth


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aircraft"])
def test_the_published_counts_of_large_sets_are_accepted(name: str, tmp_path: Path) -> None:
    test_the_published_counts_are_accepted(name, tmp_path)


@pytest.mark.parametrize("layout", ["devkit", "kaggle"])
def test_imagenet_with_flat_validation_images(layout: str, tmp_path: Path) -> None:
    truth = published.write_imagenet(tmp_path, Pictures(), 4, MINIATURE, layout)
    found = read("imagenet", tmp_path)
    assert listed(found) == truth
    # A label is the place among the sorted ids, which the files' names begin with.
    ids = sorted({Path(path).parent.name for path, (split, _) in truth.items() if split == "train"})
    assert isinstance(found, Listing)
    for file, label in zip(found.files, found.class_indices, strict=True):
        if "train" in file.path:
            assert Path(file.path).parent.name == ids[label]


def test_imagenet_without_ground_truth_says_what_is_missing(tmp_path: Path) -> None:
    published.write_imagenet(tmp_path, Pictures(), 4, MINIATURE, "devkit")
    truth = tmp_path / "imagenet/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    truth.unlink()
    with pytest.raises(UsageError, match=r"are not in class folders: unpack ILSVRC2012_devkit_t12"):
        read("imagenet", tmp_path)


def test_class_names_of_imagenet_without_lists(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for wnid in ("n02012849", "n01440764", "n03126707"):  # crane, tench, crane
            Pictures().write(tmp_path / "imagenet" / split / wnid / f"{wnid}_{split}.JPEG")
    found = read("imagenet", tmp_path)
    assert found.classes == ("tench", "crane (n02012849)", "crane (n03126707)")


@pytest.mark.parametrize("layout", ["nested", "single list"])
def test_other_layouts_of_cars(layout: str, tmp_path: Path) -> None:
    truth = published.write_cars(tmp_path, Pictures(), 3, MINIATURE, layout)
    assert listed(read("cars", tmp_path)) == truth


def test_cars_without_labels_of_the_test_images(tmp_path: Path) -> None:
    published.write_cars(tmp_path, Pictures(), 3, MINIATURE)
    (tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(UsageError, match=r"has no cars_test_annos_withlabels\.mat"):
        read("cars", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("tiny-imagenet-200", "tiny-imagenet-200/val/val_annotations.txt", b"no tab"),
        ("cars", "stanford_cars/devkit/cars_train_annos.mat", b"MATLAB 5.0" + bytes(200)),
        ("cub200", "CUB_200_2011/images.txt", b"1 a\0b.jpg"),
        ("flowers102", "flowers-102/imagelabels.mat", b""),
    ],
)
def test_a_damaged_list_of_an_archive_is_one_line(
    name: str, file: str, content: bytes, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path, Pictures(), 3, MINIATURE)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UsageError, match=r"^[^\n]+unpack [^\n]+again[^\n]*$"):
        read(name, tmp_path)


def test_the_banner_of_aircraft_is_cut(tmp_path: Path) -> None:
    published.write_aircraft(tmp_path, Pictures(), 3, MINIATURE)
    found = read("aircraft", tmp_path)
    assert isinstance(found, Listing)
    assert found.crop_bottom == 20
    assert any("banner of 20 pixels" in note for note in found.notes)
    assert found.classes[:2] == ("F-16A/B", "Boeing 707")


def test_dtd_below_a_folder_of_its_own(tmp_path: Path) -> None:
    """As torchvision unpacks it."""
    truth = published.write_dtd(tmp_path / "dtd", Pictures(), 3, MINIATURE)
    assert listed(read("dtd", tmp_path)) == truth


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_by_path(name: str, tmp_path: Path) -> None:
    published.write_cifar(tmp_path, name)
    folder = ARCHIVES[name].find(tmp_path)
    by_name, by_path = read(name, tmp_path), read(folder)
    assert isinstance(by_name, Arrays)
    assert isinstance(by_path, Arrays)
    assert torch.equal(by_name.images, by_path.images)
    assert by_name.classes == tuple(f"kind-{k}" for k in range(10))
    assert {split: len(rows) for split, rows in by_name.given.items()} == {
        "train": 100 if name == "cifar10" else 20,
        "test": 20,
    }


@pytest.mark.parametrize(("name", "classes"), [("CIFAR-10-C", 10), ("CIFAR-100-C", 100)])
def test_cifar_c_is_a_test_set(name: str, classes: int, tmp_path: Path) -> None:
    labels = published.write_cifar_c(tmp_path / name, (*PAPER_CORRUPTIONS, "spatter"), classes)
    for found in (read(name.lower(), tmp_path), read(tmp_path / name)):
        assert isinstance(found, Arrays)
        assert list(found.given) == ["test"]
        assert found.images.shape == (15 * len(labels), 32, 32, 3)
        assert found.labels.tolist() == labels.tolist() * 15
        assert len(found.classes) == classes
    (tmp_path / name / "fog.npy").unlink()
    assert "missing corruptions: fog" in read(name.lower(), tmp_path).notes


def test_aliases_and_data_root_at_the_archive_itself(tmp_path: Path) -> None:
    truth = published.write_cub(tmp_path, Pictures(), 3, MINIATURE)
    for name in ("cub", "cub-200-2011", "cub200"):
        assert listed(read(name, tmp_path)) == truth
    assert listed(read("cub200", tmp_path / "CUB_200_2011")) == truth


@pytest.mark.parametrize("name", [*WRITERS, "cifar10", "cifar10-c"])
def test_a_missing_archive_says_where_to_get_it(name: str, tmp_path: Path) -> None:
    archive = ARCHIVES[name]
    with pytest.raises(UsageError) as error:
        read(name, tmp_path)
    message = str(error.value)
    assert message.startswith(f"{name} is not at {tmp_path / archive.folders[0]}: ")
    assert ("--download" if archive.torchvision else archive.where) in message
    assert "\n" not in message


def test_downloads_use_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: str, download: bool) -> None:
        assert download
        published.write_food(Path(root), Pictures(), 3, MINIATURE)

    monkeypatch.setattr("torchvision.datasets.Food101", fetch)
    archive = ARCHIVES["food101"]
    assert archive.download(tmp_path) == tmp_path / "food-101"
    monkeypatch.setattr("torchvision.datasets.DTD", lambda root, download: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read("dtd", tmp_path, download=True)


def test_a_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(root: str, download: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.DTD", offline)
    with pytest.raises(RunError, match=r"could not download DTD into .*: no route to host"):
        read("dtd", tmp_path, download=True)


def test_without_a_public_address_download_says_where(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cub200 has no public download: get it from data\.calt"):
        read("cub200", tmp_path, download=True)


def test_a_missing_image_of_an_archive_is_named(tmp_path: Path) -> None:
    truth = published.write_cub(tmp_path, Pictures(), 3, MINIATURE)
    gone = next(iter(truth))
    Path(gone).unlink()
    with pytest.raises(UsageError, match=rf"{gone} is missing \(one of 1 missing images of"):
        read("cub200", tmp_path)


def test_a_folder_of_the_name_serves_where_the_archive_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Pictures().write(tmp_path / "cars" / name / f"{name}.jpg")
    found = read("cars")
    assert found.classes == ("a", "b")
    assert any("Stanford Cars is not at data" in note for note in found.notes)


def test_a_folder_that_only_looks_like_cifar(tmp_path: Path) -> None:
    """Its folders `train`, `test` and `meta` are no files."""
    for split in ("train", "test", "meta"):
        for name in ("a", "b"):
            Pictures().write(tmp_path / "own" / split / name / f"{split}{name}.jpg")
    assert read(tmp_path / "own").classes == ("a", "b")


def test_the_docs_list_every_archive() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "data.md").read_text().splitlines()
    rows = []
    for archive in ARCHIVES.values():
        images = ", ".join(f"{number:,} {split}" for split, number in archive.images.items())
        download = "yes" if archive.torchvision else "no"
        rows.append(
            f"| `{archive.name}` | {archive.title} | `{archive.folders[0]}/` | {archive.classes:,} "
            f"| {images} | {archive.where} | {download} |"
        )
    assert [line for line in lines if line.startswith("| `")] == rows
