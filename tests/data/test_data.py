"""Loading, splitting, caching and batching, checked against files whose pixels are known."""

import io
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from adautomix.data import DATASETS, ImageData, Split, TrainBatches, eval_batches, load_data
from adautomix.data.augment import apply_crop, apply_resized_crop, draw_crop, draw_resized_crop
from adautomix.data.dataset import InMemory, OnDisk
from adautomix.data.decoding.decoders import DecoderPool
from adautomix.data.partition import partition
from adautomix.data.sources.cifar import read_cifar
from adautomix.data.sources.folders import list_folder
from adautomix.decoder import __main__ as program
from adautomix.decoder.reading import Rules, read_view
from adautomix.errors import RunError, UsageError
from adautomix.rng import generator_at

CPU = torch.device("cpu")


def decode(path: str, side: int) -> Image.Image:
    """The center square of a file."""
    return read_view(path, ("square",), side, Rules())[0]


Load = Callable[..., ImageData]


def noise(name: str, side: int = 8) -> np.ndarray:
    """Pixels that only this name has."""
    generator = np.random.default_rng(list(os.fsencode(name)))
    return generator.integers(0, 256, (side, side, 3), dtype=np.uint8)


def write_image(path: Path, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(path.name, side)).save(path)


def write_tree(root: Path, counts: dict[str, int], prefix: str = "", side: int = 8) -> Path:
    for name, count in counts.items():
        for number in range(count):
            write_image(root / name / f"{prefix}{name}-{number:03}.png", side)
    return root


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """`load_data` with one decoding process, no bar, and a cache of the test's own."""

    def load(source: str | Path, **options: Any) -> ImageData:
        usual: dict[str, Any] = {"workers": 1, "progress": False, "cache_dir": tmp_path / "cache"}
        return load_data(str(source), **(usual | options))

    return load


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "pets", {"cat": 10, "dog": 5, "axolotl": 2})


def everything(split: Split) -> tuple[Tensor, Tensor]:
    """All images `[n, 3, S, S]` and labels of a split, in order."""
    ((images, labels),) = split.read([torch.arange(len(split))])
    return images, labels


def pixels_of(split: Split) -> set[bytes]:
    return {image.contiguous().numpy().tobytes() for image in everything(split)[0]}


def class_counts(split: Split) -> list[int]:
    return split.labels.bincount().tolist()


# --- folders ---------------------------------------------------------------------------------


def test_a_tree_is_split_by_class_and_every_image_keeps_its_label(tree: Path, load: Load) -> None:
    data = load(tree)
    assert data.name == "pets"
    assert data.classes == ("axolotl", "cat", "dog")
    assert class_counts(data.train) == [1, 8, 4]
    assert class_counts(data.test) == [1, 2, 1]
    assert data.val is None
    assert data.bad_files == ()
    known = {
        noise(path.name).transpose(2, 0, 1).tobytes(): path.parent.name
        for path in tree.rglob("*.png")
    }
    for split in (data.train, data.test):
        for image, label in zip(*everything(split), strict=True):
            key = image.contiguous().numpy().tobytes()
            assert known.pop(key) == data.classes[label]
    assert not known, "images in neither split"


def test_the_split_depends_on_the_seed_alone(tree: Path, load: Load) -> None:
    assert pixels_of(load(tree).test) == pixels_of(load(tree).test)
    others = [pixels_of(load(tree, seed=seed).test) for seed in range(4)]
    assert len({frozenset(other) for other in others}) > 1


def test_val_is_held_out_of_training(tree: Path, load: Load) -> None:
    plain, data = load(tree), load(tree, val_fraction=0.5)
    assert data.val is not None
    assert pixels_of(data.test) == pixels_of(plain.test)
    assert pixels_of(data.train) | pixels_of(data.val) == pixels_of(plain.train)
    assert not pixels_of(data.train) & pixels_of(data.val)
    assert class_counts(data.train) == [1, 4, 2]
    assert class_counts(data.val) == [0, 4, 2]
    assert list(data.splits()) == ["train", "val", "test"]
    assert list(plain.splits()) == ["train", "test"]


def test_per_class_of_a_tree_tests_on_the_others(tree: Path, load: Load) -> None:
    data = load(tree, per_class=3)
    assert class_counts(data.train) == [1, 3, 3]
    assert class_counts(data.test) == [1, 7, 2]
    assert not pixels_of(data.train) & pixels_of(data.test)


def test_given_splits_are_kept(tmp_path: Path, load: Load) -> None:
    root = tmp_path / "set"
    write_tree(root / "train", {"a": 4, "b": 3}, "train-")
    write_tree(root / "val", {"a": 2, "b": 1}, "val-")
    only_val = load(root)
    assert only_val.val is None
    assert class_counts(only_val.test) == [2, 1]
    write_tree(root / "test", {"b": 2}, "test-")
    data = load(root)
    assert data.val is not None
    assert [class_counts(split) for split in data.splits().values()] == [[4, 3], [2, 1], [0, 2]]
    few = load(root, per_class=2)
    assert class_counts(few.train) == [2, 2]
    assert pixels_of(few.test) == pixels_of(data.test)
    with pytest.raises(UsageError, match="val folder of its own: leave val_fraction at 0"):
        load(root, val_fraction=0.1)


def test_a_train_folder_alone_is_split(tmp_path: Path, load: Load) -> None:
    write_tree(tmp_path / "set" / "train", {"a": 5, "b": 5})
    assert class_counts(load(tmp_path / "set").test) == [1, 1]


def test_train_may_be_a_class(tmp_path: Path, load: Load) -> None:
    data = load(write_tree(tmp_path / "vehicles", {"bus": 2, "train": 2}))
    assert data.classes == ("bus", "train")


def test_nested_linked_hidden_and_other_files(tree: Path, tmp_path: Path, load: Load) -> None:
    write_image(tree / "dog" / "puppies" / "2024" / "deep.JPG")
    write_image(tree / "dog" / ".hidden.png")
    write_image(tree / "dog" / ".thumbnails" / "small.png")
    write_image(tree / ".git" / "x.png")
    (tree / "dog" / "notes.txt").write_text("not an image")
    write_image(tmp_path / "elsewhere" / "linked.png")
    (tree / "dog" / "link").symlink_to(tmp_path / "elsewhere")
    (tree / "dog" / "loop").symlink_to(tree / "dog")
    write_image(tmp_path / "fox" / "fox-1.png")
    (tree / "fox").symlink_to(tmp_path / "fox")
    listing = list_folder(tree)
    assert listing.classes == ("axolotl", "cat", "dog", "fox")
    dogs = {
        Path(file.path).name
        for file, label in zip(listing.files, listing.labels, strict=True)
        if label == 2
    }
    assert dogs == {f"dog-{k:03}.png" for k in range(5)} | {"deep.JPG", "linked.png"}
    assert len(load(tree).train) == 1 + 8 + 6 + 1


def test_class_names_may_be_anything(tmp_path: Path, load: Load) -> None:
    names = [
        "<script>alert(1)<\\script>",
        "New York",
        "naïve 猫",
        "'quoted\"",
        os.fsdecode(b"\xff"),
    ]
    data = load(write_tree(tmp_path / "odd", dict.fromkeys(names, 2)))
    assert data.classes == tuple(sorted(names))


def test_numbered_classes_are_in_order_of_number(tmp_path: Path, load: Load) -> None:
    numbered = load(write_tree(tmp_path / "n", dict.fromkeys(["10", "9", "100"], 2)))
    assert numbered.classes == ("9", "10", "100")
    named = load(write_tree(tmp_path / "m", dict.fromkeys(["10", "9", "a"], 2)))
    assert named.classes == ("10", "9", "a")


# --- sizes and statistics --------------------------------------------------------------------


def stored(split: Split) -> tuple[int, ...]:
    return tuple(everything(split)[0].shape[1:])


def test_small_squares_keep_their_size(tree: Path, load: Load) -> None:
    data = load(tree)
    assert (data.image_size, data.crop, data.pad, data.flip) == (8, "pad", 1, True)
    assert stored(data.train) == (3, 8, 8)


def test_images_of_several_sizes_are_seen_at_224(tree: Path, load: Load) -> None:
    write_image(tree / "dog" / "other.png", side=9)
    data = load(tree)
    assert (data.image_size, data.crop, data.pad) == (224, "resized", 28)
    assert stored(data.train) == (3, 224, 224)


def test_large_images_are_seen_at_224(tmp_path: Path, load: Load) -> None:
    data = load(write_tree(tmp_path / "large", {"a": 2, "b": 2}, side=97))
    assert (data.image_size, data.crop) == (224, "resized")


@pytest.mark.parametrize(
    ("asked", "kept", "crop"), [(32, 32, "pad"), (96, 96, "pad"), (112, 112, "resized")]
)
def test_an_asked_size_wins(tree: Path, load: Load, asked: int, kept: int, crop: str) -> None:
    data = load(tree, image_size=asked)
    assert (data.image_size, data.crop) == (asked, crop)
    assert stored(data.train) == (3, kept, kept)


def test_mean_and_deviation_are_of_the_training_pixels(tree: Path, load: Load) -> None:
    for options in ({}, {"seed": 3, "per_class": 2}, {"memory_limit": 0}):
        data = load(tree, **options)
        values = everything(data.train)[0].double() / 255
        mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3), correction=0)
        assert data.mean == pytest.approx(mean.tolist(), abs=1e-6)
        assert data.std == pytest.approx(std.tolist(), abs=1e-6)


def test_images_of_one_flat_color_have_a_deviation(tmp_path: Path, load: Load) -> None:
    for name in ("a/1", "a/2", "b/1", "b/2"):
        path = tmp_path / "flat" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (0, 128, 255)).save(path)
    data = load(tmp_path / "flat")
    assert data.mean == pytest.approx((0, 128 / 255, 1))
    assert min(data.std) > 0


# --- decoding --------------------------------------------------------------------------------


def test_kinds_of_images_become_rgb(tmp_path: Path) -> None:
    path = str(tmp_path / "x.png")
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    for image in (
        Image.fromarray(gray),
        Image.fromarray(gray).convert("LA"),
        Image.fromarray(gray).convert("RGBA"),
        Image.fromarray(gray.astype(np.uint16) * 256 + 17),
    ):
        image.save(path)
        pixels = np.asarray(decode(path, 8))
        assert np.array_equal(pixels, np.repeat(gray[:, :, None], 3, 2)), image.mode
    palette = Image.fromarray(noise("palette")).quantize(8)
    palette.save(path)
    assert np.array_equal(np.asarray(decode(path, 8)), np.asarray(palette.convert("RGB")))


def test_the_cameras_orientation_is_applied(tmp_path: Path) -> None:
    path = str(tmp_path / "x.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is at the right of the file
    pixels = noise("turned")
    Image.fromarray(pixels).save(path, exif=exif)
    assert np.array_equal(np.asarray(decode(path, 8)), np.rot90(pixels, -1))


def test_the_center_square_of_the_resized_image_is_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "wide.png")
    wide = Image.new("RGB", (60, 20), (255, 0, 0))
    wide.paste((0, 255, 0), (20, 0, 40, 20))
    wide.save(path)
    assert np.array_equal(np.asarray(decode(path, 20)), np.full((20, 20, 3), (0, 255, 0)))
    half = np.asarray(decode(path, 10)).astype(int)
    assert np.array_equal(half[:, 2:-2], np.full((10, 6, 3), (0, 255, 0)))
    smooth = Image.linear_gradient("L").convert("RGB").resize((90, 60))
    smooth.save(path)
    expected = smooth.resize((45, 30), Image.Resampling.BICUBIC).crop((7, 0, 37, 30))
    difference = np.asarray(decode(path, 30)).astype(int) - np.asarray(expected)
    assert abs(difference).max() <= 1


def test_large_jpegs_decode_to_what_a_full_decode_gives(tmp_path: Path) -> None:
    """They are decoded at a fraction of their size, which differs by a few of 255 levels."""
    path = str(tmp_path / "x.jpg")
    smooth = Image.fromarray(noise("jpeg", 8)).resize((800, 800), Image.Resampling.BICUBIC)
    smooth.save(path, quality=95)
    whole = Image.open(path).resize((32, 32), Image.Resampling.BICUBIC)
    difference = np.asarray(decode(path, 32)).astype(int) - np.asarray(whole)
    assert abs(difference).mean() < 2


def test_a_decoding_process_does_not_import_torch() -> None:
    run = "import runpy, sys; runpy.run_path(sys.argv[1]); print('torch' in sys.modules)"
    command = [sys.executable, "-P", "-c", run, program.__file__]
    assert subprocess.check_output(command, text=True).strip() == "False"


def test_a_decoding_process_that_dies_is_an_error(
    tree: Path, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dies.py").write_text("input()")
    monkeypatch.setattr(program, "__file__", str(tmp_path / "dies.py"))
    with pytest.raises(RunError, match=r"decoding process ended while it read .*axolotl-000.png"):
        load(tree)


def test_the_bar_goes_to_standard_error(
    tree: Path, load: Load, capfd: pytest.CaptureFixture[str]
) -> None:
    load(tree, progress=False)
    assert capfd.readouterr() == ("", "")
    load(tree, progress=True, image_size=16)
    out, err = capfd.readouterr()
    assert out == ""
    assert "17/17" in err


# --- unreadable images -----------------------------------------------------------------------


@pytest.fixture
def bad_tree(tree: Path) -> Path:
    good = (tree / "cat" / "cat-000.png").read_bytes()
    (tree / "cat" / "cut.png").write_bytes(good[: len(good) // 2])
    (tree / "dog" / "empty.jpg").write_bytes(b"")
    (tree / "dog" / "nowhere.png").symlink_to(tree / "missing.png")
    return tree


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_an_unreadable_image_is_named(bad_tree: Path, load: Load, memory_limit: int) -> None:
    message = r"cat/cut\.png: .* \(one of \d unreadable\).*skip_bad"
    with pytest.raises(UsageError, match=message):
        load(bad_tree, memory_limit=memory_limit, per_class=10, test_fraction=0.01)


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_skip_bad_goes_on_and_lists_them(bad_tree: Path, load: Load, memory_limit: int) -> None:
    for _ in range(2):  # decoded, then from the cache
        data = load(bad_tree, skip_bad=True, memory_limit=memory_limit)
        names = [Path(path).name for path in data.bad_files]
        assert names == ["cut.png", "empty.jpg", "nowhere.png"]
        assert class_counts(data.train) == [1, 8, 4]
        assert class_counts(data.test) == [1, 2, 1]
        assert not any(image.count(0) == len(image) for image in pixels_of(data.train))
    with pytest.raises(UsageError, match=r"cut\.png"):
        load(bad_tree)


def test_the_right_one_of_many_is_named(tmp_path: Path, load: Load) -> None:
    tree = write_tree(tmp_path / "many", {"a": 2, "b": 70})
    (tree / "b" / "b-067.png").write_bytes(b"?")
    for memory_limit in (2**30, 0):
        data = load(tree, skip_bad=True, memory_limit=memory_limit)
        assert data.bad_files == (str(tree / "b" / "b-067.png"),)


def test_a_mended_image_is_read_again(bad_tree: Path, load: Load) -> None:
    assert len(load(bad_tree, skip_bad=True).bad_files) == 3
    write_image(bad_tree / "missing.png")  # the listing, taken through the link, changes
    assert len(load(bad_tree, skip_bad=True).bad_files) == 2
    cut, before = bad_tree / "cat" / "cut.png", (bad_tree / "cat" / "cut.png").stat()
    whole = noise("mended")
    Image.fromarray(whole).save(cut)
    os.truncate(cut, max(before.st_size, cut.stat().st_size))
    data = load(bad_tree, skip_bad=True)
    assert [Path(path).name for path in data.bad_files] == ["empty.jpg"]
    everywhere = pixels_of(data.train) | pixels_of(data.test)
    assert whole.transpose(2, 0, 1).tobytes() in everywhere


def test_a_file_that_becomes_readable_unchanged_is_read_again(
    bad_tree: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if its disk had only failed: the content is the same and can be read now."""
    monkeypatch.setattr("adautomix.data.sources.listing.Listing.fingerprint", lambda _: "same")
    assert len(load(bad_tree, skip_bad=True).bad_files) == 3
    (bad_tree / "cat" / "cut.png").write_bytes((bad_tree / "cat" / "cat-000.png").read_bytes())
    data = load(bad_tree, skip_bad=True)
    assert [Path(path).name for path in data.bad_files] == ["empty.jpg", "nowhere.png"]


def test_a_class_of_unreadable_images_is_named(tree: Path, load: Load) -> None:
    for path in (tree / "axolotl").iterdir():
        path.write_bytes(b"?")
    with pytest.raises(UsageError, match="class 'axolotl' has no readable training image"):
        load(tree, skip_bad=True)


# --- cache -----------------------------------------------------------------------------------


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("decoded")

    monkeypatch.setattr(DecoderPool, "render", refuse)
    monkeypatch.setattr(DecoderPool, "whole", refuse)


def test_the_second_load_does_not_decode(
    tree: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(tree)
    forbid_decoding(monkeypatch)
    second = load(tree)
    assert torch.equal(everything(first.train)[0], everything(second.train)[0])
    assert (first.mean, first.std, first.image_size) == (second.mean, second.std, second.image_size)
    load(tree, seed=1, per_class=2, val_fraction=0.2)  # splits need no decoding either
    with pytest.raises(NotImplementedError):
        load(tree, image_size=16)


@pytest.mark.parametrize("change", ["write", "add", "remove", "move"])
def test_a_change_in_the_folder_is_noticed(
    tree: Path, load: Load, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    load(tree)
    path = tree / "cat" / "cat-004.png"
    if change == "write":  # of the same size and time
        before = path.stat()
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "add":
        write_image(tree / "cat" / "cat-999.png")
    elif change == "remove":
        path.unlink()
    else:
        path.rename(tree / "dog" / "cat-004.png")
    forbid_decoding(monkeypatch)
    with pytest.raises(NotImplementedError):
        load(tree)


@pytest.mark.parametrize("change", ["touch", "copy"])
def test_the_same_bytes_are_still_known(
    tree: Path, load: Load, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    load(tree)
    if change == "touch":
        os.utime(tree / "cat" / "cat-004.png", ns=(0, 1))
    else:
        tree = shutil.copytree(tree, tree.parent / "copy")
    forbid_decoding(monkeypatch)
    load(tree)


@pytest.mark.parametrize("hashed", [True, False])
def test_folders_of_equal_names_sizes_and_times_are_told_apart(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch, hashed: bool
) -> None:
    if not hashed:  # as in a data set of very many files
        monkeypatch.setattr("adautomix.data.sources.content.MOST_HASHED", 0)
    roots = [write_tree(tmp_path / name / "set", {"a": 3, "b": 3}) for name in ("one", "two")]
    for path in roots[1].rglob("*.png"):
        # An uncompressed image has a size that does not depend on its pixels.
        for root, pixels in zip(
            roots, (noise(path.name), noise(f"other {path.name}")), strict=True
        ):
            file = root / path.relative_to(roots[1]).with_suffix(".bmp")
            Image.fromarray(pixels).save(file)
            os.utime(file, ns=(0, 0))
    for path in [*roots[0].rglob("*.png"), *roots[1].rglob("*.png")]:
        path.unlink()
    first, second = (pixels_of(load(root).train) for root in roots)
    assert not first & second


def test_a_moved_folder_is_still_known(
    tree: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tree)
    moved = tree.rename(tree.parent / "animals")
    forbid_decoding(monkeypatch)
    assert load(moved).name == "animals"


FLIP = 1  # one bit in the middle


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pixels.npy", None),
        ("pixels.npy", FLIP),
        ("moments.npy", FLIP),
        ("meta.json", FLIP),
        ("moments.npy", b"\x93NUMPY"),
        ("moments.npy", npy(np.zeros((16, 2, 3)))),
        ("meta.json", b"[]"),
        ("meta.json", None),
    ],
)
def test_a_damaged_cache_is_made_again(
    tree: Path, load: Load, tmp_path: Path, name: str, content: bytes | int | None
) -> None:
    mean, pixels = load(tree).mean, pixels_of(load(tree).train)
    (file,) = (tmp_path / "cache").glob(f"*/pixels-8/{name}")
    before = file.read_bytes()
    if content == FLIP:
        middle = len(before) // 2
        content = before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :]
    assert not isinstance(content, int)
    file.write_bytes(before[:-1] if content is None else content)
    again = load(tree)
    assert pixels_of(again.train) == pixels
    assert again.mean == mean


def test_nothing_half_written_stays(
    tree: Path, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_decoding(monkeypatch)
    with pytest.raises(NotImplementedError):
        load(tree)
    kept = [path.name for path in (tmp_path / "cache").glob("*/*")]
    assert kept == ["size"]


def test_leftovers_of_killed_processes_are_deleted(tree: Path, load: Load, tmp_path: Path) -> None:
    old, new = (tmp_path / "cache" / "x-v2" / f"{name}.tmp" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "pixels.npy").write_bytes(b"half")
    for path in (old / "pixels.npy", old):
        os.utime(path, (0, 0))
    load(tree)
    assert not old.exists()
    assert new.exists()


def test_the_cache_is_where_the_environment_says(
    tree: Path, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAUTOMIX_CACHE", str(tmp_path / "there"))
    load(tree, cache_dir=None)
    assert list((tmp_path / "there").glob("*/pixels-8/pixels.npy"))


def test_a_cache_that_cannot_be_written_is_an_error(tree: Path, load: Load, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = r"cannot write the image cache in .*/file/.*: not a directory.* ADAUTOMIX_CACHE"
    with pytest.raises(RunError, match=f"(?i){message}"):
        load(tree, cache_dir=tmp_path / "file")


def test_a_full_disk_is_an_error(tree: Path, load: Load, tmp_path: Path) -> None:
    """Played by a limit on the size of files, which the system reports at the same calls."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"cannot write the image cache in .*: File too large"):
            load(tree)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "cache").glob("*/*/pixels.npy"))


# --- too big for memory ----------------------------------------------------------------------


def test_on_disk_equals_in_memory_batch_for_batch(tree: Path, load: Load) -> None:
    memory = load(tree, val_fraction=0.2)
    disk = load(tree, val_fraction=0.2, memory_limit=17 * 8 * 8 * 3 - 1, workers=2)
    assert isinstance(memory.train, InMemory)
    assert isinstance(disk.train, OnDisk)
    assert disk.mean == pytest.approx(memory.mean)
    order = torch.randperm(len(memory.train), generator=generator_at(0, 0, "order"))
    batches = [*torch.split(order, 3), order[:0], order.repeat(5)]  # none, and more than one chunk
    pairs = zip(memory.train.read(batches), disk.train.read(batches), strict=True)
    for (images, labels), (disk_images, disk_labels) in pairs:
        assert torch.equal(images, disk_images)
        assert torch.equal(labels, disk_labels)
    assert pixels_of(memory.test) == pixels_of(disk.test)
    rows = torch.tensor([2, 0])
    ours, theirs = memory.train.subset(rows), disk.train.subset(rows)
    assert torch.equal(everything(ours)[0], everything(theirs)[0])
    assert torch.equal(everything(ours)[0], everything(memory.train)[0][rows])
    assert torch.equal(ours.labels, memory.train.labels[rows])


def test_the_limit_is_the_decoded_size(tree: Path, load: Load) -> None:
    assert isinstance(load(tree, memory_limit=17 * 8 * 8 * 3).train, InMemory)


def test_on_disk_names_an_unreadable_image_when_it_meets_it(tree: Path, load: Load) -> None:
    data = load(tree, memory_limit=0)
    assert isinstance(data.train, OnDisk)
    Path(data.train.paths[5]).write_bytes(b"?")
    batches = data.train.read(torch.split(torch.arange(6), 3))
    assert len(next(batches)[0]) == 3
    with pytest.raises(RunError, match=f"cannot read image {data.train.paths[5]}.*skip_bad"):
        next(batches)


# --- sets by name ----------------------------------------------------------------------------


def test_digits(load: Load) -> None:
    data = load("digits")
    assert data.classes == tuple("0123456789")
    assert (data.image_size, data.crop, data.pad, data.flip) == (32, "pad", 2, False)
    original = load_digits()
    counts = np.bincount(original.target)
    assert class_counts(data.test) == [round(count * 0.2) for count in counts]
    assert len(data.train) + len(data.test) == 1797
    assert isinstance(data.train, InMemory)
    assert isinstance(data.test, InMemory)
    rows = torch.cat([data.train.rows, data.test.rows])
    assert rows.sort().values.tolist() == list(range(1797))
    images, labels = everything(data.train)
    assert labels.tolist() == original.target[data.train.rows].tolist()
    # Between the centers of its pixels a bilinear enlargement by 4 averages back to about them.
    small = original.images[data.train.rows] * 255 / 16
    assert torch.equal(images[:, 0], images[:, 2])
    corner = images[:, 0, 0, 0].double().numpy()
    assert abs(corner - small[:, 0, 0]).max() <= 0.5
    between = images[:, 0, 5, 5].double().numpy()  # 7/8 of pixel 1, 1/8 of pixel 0, both ways
    weights = np.outer([1 / 8, 7 / 8], [1 / 8, 7 / 8])
    assert abs(between - (small[:, :2, :2] * weights).sum((1, 2))).max() <= 0.51


def test_digits_per_class(load: Load) -> None:
    data = load("digits", per_class=25, val_fraction=0.2)
    assert class_counts(data.train) == [20] * 10
    assert data.val is not None
    assert class_counts(data.val) == [5] * 10
    assert len(data.test) == 1797 - 250


PUBLISHED = {
    "cifar10": ("cifar-10-batches-py", "batches.meta", "label_names", "labels"),
    "cifar100": ("cifar-100-python", "meta", "fine_label_names", "fine_labels"),
}


def write_cifar(root: Path, name: str, per_batch: int = 6) -> dict[str, list[np.ndarray]]:
    """A tiny set laid out as published; returns the images [3, 32, 32] of each part."""
    folder_name, meta, names, labels = PUBLISHED[name]
    folder = root / folder_name
    folder.mkdir(parents=True)
    parts = [f"data_batch_{k}" for k in range(1, 6)] if name == "cifar10" else ["train"]
    generator = np.random.default_rng(0)
    images = {}
    for part in [*parts, "test_batch" if name == "cifar10" else "test"]:
        data = generator.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        content = {"data": data, labels: [k % 3 for k in range(per_batch)], "filenames": ["x"]}
        (folder / part).write_bytes(pickle.dumps(content, protocol=2))
        images[part] = list(data.reshape(-1, 3, 32, 32))
    (folder / meta).write_bytes(pickle.dumps({names: ["ant", "bee", "cow"]}, protocol=2))
    return images


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_as_published(name: str, tmp_path: Path, load: Load) -> None:
    parts = write_cifar(tmp_path, name)
    data = load(name, root=tmp_path)
    assert data.classes == ("ant", "bee", "cow")
    assert (data.image_size, data.crop, data.pad, data.flip) == (32, "pad", 4, True)
    assert data.mean == (0.4914, 0.4822, 0.4465)
    assert data.std == (0.2023, 0.1994, 0.2010)
    *train, test = parts.values()
    images, labels = everything(data.train)
    assert np.array_equal(images.numpy(), np.concatenate(train))
    assert labels.tolist() == [0, 1, 2] * (2 * len(train))
    assert np.array_equal(everything(data.test)[0].numpy(), np.stack(test))
    few = load(name, root=tmp_path, per_class=1)
    assert class_counts(few.train) == [1, 1, 1]
    assert len(few.test) == 6


def test_cifar_at_other_sizes(tmp_path: Path, load: Load) -> None:
    write_cifar(tmp_path, "cifar100")
    small = load("cifar100", root=tmp_path, image_size=16)
    assert (stored(small.train), small.image_size, small.pad) == ((3, 16, 16), 16, 2)
    large = load("cifar100", root=tmp_path, image_size=224)
    assert (stored(large.train), large.image_size, large.crop) == ((3, 32, 32), 224, "resized")
    for crop in ("auto", "pad", "off"):
        batches = TrainBatches(large, batch_size=2, seed=0, device=CPU, crop=crop)
        assert batches.augment(next(batches.epoch(0))).shape == (2, 3, 224, 224)
    images, _ = next(eval_batches(large.test, large, batch_size=2, device=CPU))
    assert images.shape == (2, 3, 224, 224)


def test_missing_cifar_names_folder_and_remedy(tmp_path: Path, load: Load) -> None:
    message = f"cifar100 is not at {tmp_path}/cifar-100-python: .*--data-root.*--download"
    with pytest.raises(UsageError, match=message):
        load("cifar100", root=tmp_path)
    with pytest.raises(UsageError, match="cifar10 is not at data/cifar-10-batches-py"):
        load("cifar10")


def test_damaged_cifar_names_the_file(tmp_path: Path, load: Load) -> None:
    write_cifar(tmp_path, "cifar100")
    file = tmp_path / "cifar-100-python" / "train"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"cifar-100-python/train is damaged .*--download"):
        load("cifar100", root=tmp_path)
    file.unlink()
    with pytest.raises(UsageError, match="cifar-100-python/train is missing"):
        load("cifar100", root=tmp_path)


def cifar_or_error(folder: Path) -> Any:
    """The arrays of a folder, or the text of the error."""
    try:
        return read_cifar("cifar100", folder)
    except UsageError as error:
        return str(error)


def test_every_flipped_byte_of_a_cifar_pickle_is_named_or_harmless(tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar100", per_batch=1)
    folder = tmp_path / "cifar-100-python"
    for file in (folder / "train", folder / "meta"):
        whole = file.read_bytes()
        # The pixels in the middle of the file cannot be told from other pixels.
        places = [*range(min(400, len(whole))), *range(max(400, len(whole) - 120), len(whole))]
        for position in places:
            content = bytearray(whole)
            content[position] ^= 0x11
            file.write_bytes(content)
            found = cifar_or_error(folder)
            if isinstance(found, str):
                assert str(file) in found
                assert found.endswith("--download again")
            else:
                assert found.images.shape == (2, 32, 32, 3)
                assert found.labels.max() < len(found.classes)
        file.write_bytes(whole)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, load: Load) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    write_cifar(tmp_path, "cifar100")
    attack = pickle.dumps({"data": Attack()}, protocol=2)
    (tmp_path / "cifar-100-python" / "train").write_bytes(attack)
    with pytest.raises(UsageError, match=r"train is damaged \(it asks for posix.mkdir\)"):
        load("cifar100", root=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_failed_download_is_an_error(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(root: str, download: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", offline)
    with pytest.raises(RunError, match=r"could not download CIFAR10 into .*: no route to host"):
        load("cifar10", root=tmp_path, download=True)


def test_a_download_is_read_as_published(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "torchvision.datasets.CIFAR10",
        lambda root, download: write_cifar(Path(root), "cifar10"),
    )
    assert len(load("cifar10", root=tmp_path / "new", download=True).train) == 30


# --- wrong usage -----------------------------------------------------------------------------


def test_a_missing_folder(tmp_path: Path, load: Load) -> None:
    with pytest.raises(UsageError, match=r"no folder .*/nowhere and no data set.* digits, cifar10"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("typed", "meant"), [("cifar-100", "cifar100"), ("digit", "digits"), ("CIFAR10", "cifar10")]
)
def test_a_mistyped_name(typed: str, meant: str, load: Load) -> None:
    with pytest.raises(UsageError, match=f"unknown data set '{typed}': did you mean '{meant}'"):
        load(typed)


def test_a_file_for_a_folder(tree: Path, load: Load) -> None:
    with pytest.raises(UsageError, match=r"cat-000\.png is a file: name the folder"):
        load(tree / "cat" / "cat-000.png")


def test_a_folder_without_class_folders(tree: Path, load: Load) -> None:
    with pytest.raises(UsageError, match=r"cat has no class folders: put .*cat/<class>/"):
        load(tree / "cat")


def test_a_single_class(tmp_path: Path, load: Load) -> None:
    with pytest.raises(UsageError, match="only one class, 'cat', and two are needed"):
        load(write_tree(tmp_path / "one", {"cat": 3}))


def test_an_empty_class(tree: Path, load: Load) -> None:
    (tree / "yak").mkdir()
    (tree / "yak" / "notes.txt").write_text("none yet")
    data = load(tree)
    assert data.classes == ("axolotl", "cat", "dog")
    assert data.warnings[0] == f"1 class folder without images ignored: {tree / 'yak'}"


def test_only_empty_classes(tmp_path: Path, load: Load) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
    with pytest.raises(UsageError, match=r"class folder .*set/a holds no image \(\.png"):
        load(tmp_path / "set")


def test_a_class_that_is_only_tested(tmp_path: Path, load: Load) -> None:
    write_tree(tmp_path / "set" / "train", {"a": 2, "b": 2})
    write_tree(tmp_path / "set" / "test", {"a": 1, "c": 1})
    with pytest.raises(UsageError, match=r"class 'c' is in .*set/test but not in .*set/train"):
        load(tmp_path / "set")


def test_an_empty_test_folder(tmp_path: Path, load: Load) -> None:
    write_tree(tmp_path / "set" / "train", {"a": 2, "b": 2})
    (tmp_path / "set" / "test" / "a").mkdir(parents=True)
    with pytest.raises(UsageError, match="set/test holds no image"):
        load(tmp_path / "set")


def test_too_few_images_to_test_on(tmp_path: Path, load: Load) -> None:
    root = write_tree(tmp_path / "single", {"a": 1, "b": 1})
    with pytest.raises(UsageError, match="no image is left for the test split"):
        load(root)
    write_tree(root, {"a": 2, "b": 2})
    with pytest.raises(UsageError, match="no image is left for the val split"):
        load(root, val_fraction=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size is 0: use the side in pixels"),
        ({"per_class": 0}, "per_class is 0: use at least 1"),
        ({"test_fraction": 0.0}, "test_fraction is 0.0: use a share between 0 and 1"),
        ({"test_fraction": 1.0}, "test_fraction is 1.0"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0: use 0 or a share below 1"),
        ({"val_fraction": -0.1}, "val_fraction is -0.1"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str, load: Load) -> None:
    with pytest.raises(UsageError, match=message):
        load("digits", **options)


def test_every_message_is_one_line(tmp_path: Path, load: Load) -> None:
    for source in ("cifar-100", "cifar10", tmp_path / "x", write_tree(tmp_path / "y", {"a": 1})):
        with pytest.raises(UsageError) as error:
            load(source, root=tmp_path)
        assert "\n" not in str(error.value)


def test_data_sets_are_listed() -> None:
    assert list(DATASETS)[:3] == ["digits", "cifar10", "cifar100"]
    assert list(DATASETS)[-2:] == ["a list of images", "a folder of images"]


# --- splits ----------------------------------------------------------------------------------


def test_partition_is_stratified_disjoint_and_complete() -> None:
    labels = torch.arange(400) % 4 * (torch.arange(400) % 3 > 0)  # uneven classes
    rows = torch.arange(400)
    splits = partition(
        labels, {"all": rows}, per_class=None, test_fraction=0.25, val_fraction=0.1, seed=5
    )
    together = torch.cat(list(splits.values()))
    assert together.sort().values.tolist() == rows.tolist()
    for label, count in enumerate(labels.bincount().tolist()):
        tested = round(count * 0.25)
        held = round((count - tested) * 0.1)
        sizes = {name: int((labels[rows] == label).sum()) for name, rows in splits.items()}
        assert sizes == {"test": tested, "val": held, "train": count - tested - held}


# --- batches ---------------------------------------------------------------------------------


def by_hand(data: ImageData, uint8: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return (uint8 / 255 - mean) / std


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """13 training images of 8 × 8."""
    folder = tmp_path_factory.mktemp("batches")
    tree = write_tree(folder / "pets", {"cat": 10, "dog": 5, "axolotl": 2})
    return load_data(str(tree), workers=1, progress=False, cache_dir=folder / "cache")


def augmented(batches: TrainBatches, epoch: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    """The images and labels of an epoch as the network sees them."""
    return [(batches.augment(batch), batch.labels) for batch in batches.epoch(epoch, start)]


def test_an_epoch_by_hand(data: ImageData) -> None:
    batches = TrainBatches(data, batch_size=4, seed=7, device=CPU)
    assert batches.steps_per_epoch == 3
    images, labels = everything(data.train)
    order = torch.randperm(13, generator=generator_at(7, 2, "order"))
    got = augmented(batches, 2)
    assert len(got) == 3
    for k, (batch, batch_labels) in enumerate(got):
        index = order[4 * k : 4 * k + 4]
        params = draw_crop(4, 1, True, generator_at(7, 2 * 3 + k, "augment"))
        expected = by_hand(data, apply_crop(images[index], params, 1))
        torch.testing.assert_close(batch, expected, atol=1e-5, rtol=0)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch_labels, labels[index])


def test_a_resized_epoch_by_hand(data: ImageData) -> None:
    batches = TrainBatches(
        data, batch_size=13, seed=7, device=CPU, crop="resized", scale_min=0.5, flip=False
    )
    ((batch, _),) = augmented(batches, 0)
    order = torch.randperm(13, generator=generator_at(7, 0, "order"))
    params = draw_resized_crop(13, False, generator_at(7, 0, "augment"), (0.5, 1.0))
    expected = apply_resized_crop(everything(data.train)[0][order], params, 8, "bicubic")
    torch.testing.assert_close(batch, by_hand(data, expected), atol=1e-4, rtol=0)


def test_without_crop_and_flip_an_epoch_is_the_images(data: ImageData) -> None:
    batches = TrainBatches(data, batch_size=13, seed=0, device=CPU, crop="off", flip=False)
    ((batch, _),) = augmented(batches, 0)
    order = torch.randperm(13, generator=generator_at(0, 0, "order"))
    expected = by_hand(data, everything(data.train)[0][order])
    torch.testing.assert_close(batch, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("memory_limit", [2**30, 0])
@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_an_epoch_goes_on_from_any_step(
    tree: Path, load: Load, memory_limit: int, crop: Any
) -> None:
    data = load(tree, memory_limit=memory_limit)
    batches = TrainBatches(
        data, batch_size=5, seed=1, device=CPU, crop=crop, drop_last=False, pad=2
    )
    whole = augmented(batches, 4)
    assert [len(labels) for _, labels in whole] == [5, 5, 3]
    for start in range(len(whole) + 1):
        rest = augmented(batches, 4, start)
        assert len(rest) == len(whole) - start
        for (images, labels), (expected, expected_labels) in zip(rest, whole[start:], strict=True):
            assert torch.equal(images, expected)
            assert torch.equal(labels, expected_labels)


def test_epochs_and_seeds_differ(data: ImageData) -> None:
    def first(seed: int, epoch: int) -> Tensor:
        batches = TrainBatches(data, batch_size=13, seed=seed, device=CPU)
        return augmented(batches, epoch)[0][0]

    assert torch.equal(first(0, 0), first(0, 0))
    assert not torch.equal(first(0, 0), first(0, 1))
    assert not torch.equal(first(0, 0), first(1, 0))


def test_the_last_short_batch_is_dropped_or_kept(data: ImageData) -> None:
    def sizes(drop_last: bool) -> list[int]:
        batches = TrainBatches(data, batch_size=5, seed=0, device=CPU, drop_last=drop_last)
        found = [len(batch.labels) for batch in batches.epoch(1)]
        assert len(found) == batches.steps_per_epoch
        return found

    assert sizes(True) == [5, 5]
    assert sizes(False) == [5, 5, 3]


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "message"),
    [
        (14, True, "batch size 14 is larger than the training set of 13 images: use at most 13"),
        (0, True, "batch size 0: use at least 1 image per batch"),
    ],
)
def test_batches_that_cannot_be_filled(
    data: ImageData, batch_size: int, drop_last: bool, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        TrainBatches(data, batch_size=batch_size, seed=0, device=CPU, drop_last=drop_last)


def test_evaluation_reads_the_whole_split_in_order(tree: Path, load: Load) -> None:
    data = load(tree, image_size=112)
    batches = list(eval_batches(data.train, data, batch_size=5, device=CPU))
    assert [len(labels) for _, labels in batches] == [5, 5, 3]
    images, labels = everything(data.train)
    expected = by_hand(data, images)
    torch.testing.assert_close(torch.cat([b for b, _ in batches]), expected, atol=1e-5, rtol=0)
    assert torch.equal(torch.cat([b for _, b in batches]), labels)


def test_moving_a_split_keeps_its_own_images_only(data: ImageData) -> None:
    assert data.train.to(CPU) is data.train
    moved = data.train.to(torch.device("meta"))
    assert isinstance(moved, InMemory)
    assert moved.images.shape == (13, 8, 8, 3)
    assert moved.labels.device.type == "meta"
