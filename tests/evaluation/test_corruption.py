"""Corruptions against the library and by hand, with any batch size, process and interruption."""

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from targets import KINDS as CLASSES
from targets import linear_network, make_target, random_images
from torch import Tensor

from adautomix.data.corruptions import sources as corruption_sources
from adautomix.data.corruptions import worker as program
from adautomix.data.corruptions.corrupted import (
    CATEGORIES,
    CORRUPTIONS,
    PAPER_CORRUPTIONS,
    SEVERITIES,
    Corrupted,
    CorrupterPool,
)
from adautomix.data.corruptions.sources import GeneratedCorruptions
from adautomix.data.dataset import InMemory, Split
from adautomix.errors import RunError, UsageError
from adautomix.evaluation import corruption
from adautomix.evaluation.corruption import CorruptionResult, mce_against, summarize, write_examples
from adautomix.evaluation.evaluate import evaluate, validate_settings
from adautomix.evaluation.suite import NotApplicableError
from adautomix.evaluation.target import EvalTarget, take_sample
from adautomix.reporting.evaluations import read_evaluated, write_evaluations
from adautomix.reporting.section import Evaluated
from adautomix.reporting.sections.corruption import section
from adautomix.rng import seed_at

SIDE = 32
FEW: dict[str, object] = {"corruptions": "fog,contrast", "severities": "2,5", "workers": 1}


@pytest.fixture(scope="module")
def corrupters() -> Iterator[CorrupterPool]:
    """A pool with one process."""
    with CorrupterPool(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def pair() -> Iterator[CorrupterPool]:
    """A pool with two processes, either of which may finish first."""
    with CorrupterPool(2) as pool:
        yield pool


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for this test."""
    monkeypatch.setenv("ADAUTOMIX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run_suite(target: EvalTarget, **settings: object) -> CorruptionResult:
    result = evaluate(target, ["corruption"], {"corruption": settings}).result("corruption")
    assert isinstance(result, CorruptionResult)
    return result


def corrupt_split(
    clean: InMemory, corrupters: CorrupterPool, name: str, severity: int = 3, seed: int = 0
) -> Corrupted:
    rows = torch.arange(len(clean))
    return Corrupted(clean, rows, SIDE, name, severity, seed, corrupters)


def read_split(split: Split, *batches: list[int]) -> Tensor:
    """Return the images `[n, S, S, 3]` of some batches; without batches, of the whole split."""
    rows = [torch.tensor(batch) for batch in batches] or [torch.arange(len(split))]
    return torch.cat([images for images, _ in split.read(rows)]).permute(0, 2, 3, 1)


def by_the_library(image: Tensor, name: str, severity: int, seed: int) -> Any:
    """Return one image corrupted by the library with all its random generators seeded."""
    import imagecorruptions

    np.random.seed(seed)
    own = {"seed": seed} if name in ("glass_blur", "impulse_noise") else {}
    return imagecorruptions.corrupt(image.numpy(), severity, name, **own)


def seed_of(row: int, name: str, severity: int, seed: int = 0) -> int:
    return seed_at(seed, row, f"corruption/{name}/{severity}") % 2**32


def kept_files(cache: Path) -> dict[str, bytes]:
    """Return every cached array by the name of its folder."""
    return {path.parent.name: path.read_bytes() for path in cache.rglob("pixels.npy")}


def generated(clean: InMemory, corrupters: CorrupterPool, *, seed: int = 0) -> GeneratedCorruptions:
    return GeneratedCorruptions(
        clean, image_size=SIDE, seed=seed, corrupters=corrupters, keep=2**30
    )


# --- corrupting images -----------------------------------------------------------------------


def test_names_and_kinds_equal_the_librarys() -> None:
    import imagecorruptions

    assert list(CORRUPTIONS) == imagecorruptions.get_corruption_names("all")
    assert list(PAPER_CORRUPTIONS) == imagecorruptions.get_corruption_names("common")
    for kind in ("noise", "blur", "weather", "digital"):
        assert list(CATEGORIES[kind]) == imagecorruptions.get_corruption_names(kind)
    assert list(CATEGORIES["extra"]) == imagecorruptions.get_corruption_names("validation")


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_equals_the_librarys(name: str, corrupters: CorrupterPool) -> None:
    clean = random_images(2, SIDE)
    for severity in SEVERITIES:
        made = read_split(corrupt_split(clean, corrupters, name, severity))
        for row, image in enumerate(clean.images):
            expected = by_the_library(image, name, severity, seed_of(row, name, severity))
            assert np.array_equal(made[row].numpy(), expected), f"image {row} at {severity}"


@pytest.mark.parametrize("name", ["impulse_noise", "frost", "spatter", "motion_blur"])
def test_images_do_not_depend_on_batches_processes_or_other_images(
    name: str, corrupters: CorrupterPool, pair: CorrupterPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = random_images(7, SIDE)
    whole = read_split(corrupt_split(clean, corrupters, name))
    monkeypatch.setattr(
        "adautomix.data.corruptions.corrupted._REQUEST", 2 * SIDE**2
    )  # two images per request
    split = corrupt_split(clean, pair, name)
    assert torch.equal(read_split(split), whole)
    assert torch.equal(read_split(split, [0, 1, 2], [3], [4, 5, 6]), whole)
    assert torch.equal(read_split(split, [6, 2], [2]), whole[[6, 2, 2]])
    assert torch.equal(read_split(split.subset(torch.tensor([5, 1]))), whole[[5, 1]])
    assert not torch.equal(read_split(replace(split, seed=1)), whole)


def test_labels_go_with_the_images(corrupters: CorrupterPool) -> None:
    clean = random_images(5, SIDE)
    split = corrupt_split(clean, corrupters, "contrast").subset(torch.tensor([4, 0]))
    _, labels = next(split.read([torch.tensor([1, 0])]))
    assert labels.tolist() == clean.labels[[0, 4]].tolist()
    assert split.labels.tolist() == clean.labels[[4, 0]].tolist()


def test_the_global_state_of_numpy_is_restored() -> None:
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    program.corrupt(random_images(1, SIDE).images[0].numpy(), "gaussian_noise", 1, seed=8)
    assert np.array_equal(np.random.random(4), expected)


def test_spatter_without_drops_leaves_the_image_unchanged() -> None:
    image = random_images(1, SIDE).images[0]
    with np.errstate(invalid="ignore"):
        black = [seed for seed in range(200) if not by_the_library(image, "spatter", 1, seed).any()]
    assert black, "the library no longer returns a black image when no drop falls"
    assert np.array_equal(program.corrupt(image.numpy(), "spatter", 1, black[0]), image)


def test_larger_images_are_cropped_to_the_network_input(corrupters: CorrupterPool) -> None:
    clean = random_images(2, 40)
    center = clean.images[0, 4:36, 4:36]
    made = read_split(corrupt_split(clean, corrupters, "brightness", 2))
    expected = by_the_library(center, "brightness", 2, seed_of(0, "brightness", 2))
    assert np.array_equal(made[0].numpy(), expected)


def test_failing_processes_raise_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "a process ended while it made fog.*fewer workers": "input()",
        "cannot make fog with imagecorruptions-imaug: ImportError: libGL.*headless": (
            "import sys; sys.stdin.buffer.readline();"
            "print('\"ImportError: libGL\"', flush=True); sys.stdout.buffer.write(bytes(3 * 32**2))"
        ),
    }
    for number, (message, code) in enumerate(answers.items()):
        (tmp_path / f"{number}.py").write_text(code)
        monkeypatch.setattr(program, "__file__", str(tmp_path / f"{number}.py"))
        with CorrupterPool(1) as pool, pytest.raises(RunError, match=message):
            read_split(corrupt_split(random_images(1, SIDE), pool, "fog"))


# --- the cache -------------------------------------------------------------------------------


def test_equal_seeds_give_equal_files(
    tmp_path: Path, corrupters: CorrupterPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = random_images(6, SIDE)
    files = []
    for run, (seed, options) in enumerate(
        [(0, CORRUPTIONS), (0, ("snow", "elastic_transform")), (1, ("snow",))]
    ):
        monkeypatch.setenv("ADAUTOMIX_CACHE", str(tmp_path / str(run)))
        source = generated(clean, corrupters, seed=seed)
        for name in options:
            source.split(name, 4)
        files.append(kept_files(tmp_path / str(run)))
    every, some, other = files
    assert sorted(every) == sorted(f"{name}-4" for name in CORRUPTIONS)
    assert some == {name: every[name] for name in ("snow-4", "elastic_transform-4")}
    assert other["snow-4"] != every["snow-4"]


def test_cached_images_are_read_and_damaged_ones_replaced(
    cache: Path, corrupters: CorrupterPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = random_images(4, SIDE)
    first = read_split(generated(clean, corrupters).split("frost", 1))
    (kept,) = cache.rglob("pixels.npy")
    whole = kept.read_bytes()
    assert torch.equal(first, read_split(corrupt_split(clean, corrupters, "frost", 1)))
    kept.write_bytes(whole[:-1])
    assert torch.equal(read_split(generated(clean, corrupters).split("frost", 1)), first)
    assert kept.read_bytes() == whole

    def refuse(*_: object) -> None:
        raise NotImplementedError("corrupted again")

    monkeypatch.setattr(CorrupterPool, "corrupt", refuse)
    assert torch.equal(read_split(generated(clean, corrupters).split("frost", 1)), first)
    other = InMemory(clean.images.flip(1), clean.rows, clean.labels)
    with pytest.raises(NotImplementedError, match="corrupted again"):
        generated(other, corrupters).split("frost", 1)
    assert len(list(cache.rglob("*.npy"))) == 1, "an interruption leaves files behind"


# --- accuracies ------------------------------------------------------------------------------


def by_hand(target: EvalTarget, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the accuracies on images `[n, S, S, 3]`, computed image by image."""
    right = dict.fromkeys(target.networks, 0)
    for image, label in zip(images, labels, strict=True):
        for name, network in target.networks.items():
            pixels = image.permute(2, 0, 1)[None].float() / 255
            right[name] += int(network(pixels).argmax()) == int(label)
    return {name: count / len(labels) for name, count in right.items()}


def test_accuracies_by_hand(cache: Path, corrupters: CorrupterPool, tmp_path: Path) -> None:
    clean = random_images(30, SIDE)
    target = make_target(clean, tmp_path / "a", batch_size=8)
    result = run_suite(target, **FEW)
    assert (result.source, result.severities) == ("generated", [2, 5])
    assert sorted(kept_files(cache)) == ["contrast-2", "contrast-5", "fog-2", "fog-5"]
    clean_accuracy = by_hand(target, clean.images, clean.labels)
    for network, values in result.networks.items():
        assert values.clean == clean_accuracy[network]
        accuracies = []
        for name in ("fog", "contrast"):
            for severity, accuracy in zip((2, 5), values.accuracy[name], strict=True):
                images = read_split(corrupt_split(clean, corrupters, name, severity))
                assert accuracy == by_hand(target, images, clean.labels)[network]
                accuracies.append(accuracy)
        assert values.mean_accuracy == pytest.approx(np.mean(accuracies))
        assert values.mce == pytest.approx(1 - np.mean(accuracies))
    elsewhere = replace(target, folder=tmp_path / "b")
    assert run_suite(elsewhere, **FEW, keep=0) == result
    assert len(kept_files(cache)) == 4


def test_the_mce_against_a_baseline_by_hand() -> None:
    mine = summarize(0.9, {"fog": [0.8, 0.6], "snow": [0.7, 0.5]})
    base = summarize(0.8, {"fog": [0.6, 0.4], "snow": [0.9, 0.7]})
    expected = ((0.2 + 0.4) / (0.4 + 0.6) + (0.3 + 0.5) / (0.1 + 0.3)) / 2
    assert mce_against(mine, base) == pytest.approx(expected)
    assert mce_against(base, base) == 1
    assert mine.mean_accuracy == pytest.approx(0.65)
    assert mine.mce == pytest.approx(0.35)
    assert mce_against(mine, summarize(1, {"fog": [1, 1], "snow": [0.5, 0.5]})) is None
    assert mce_against(mine, summarize(1, {"fog": [0.5, 0.5]})) is None
    assert mce_against(mine, summarize(1, {"fog": [0.5], "snow": [0.5]})) is None


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_an_interrupted_suite_continues(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C while a corruption is scored, earlier results are not computed again."""
    published = write_arrays(tmp_path / "set-C", random_images(12, SIDE), ("fog", "contrast"))
    settings = {"folder": published, "severities": "2,5"}
    target = make_target(random_images(12, SIDE), tmp_path / "stopped")
    whole = run_suite(replace(target, folder=tmp_path / "whole"), **settings)
    top1, splits = corruption.top1, []

    def stopped(target: EvalTarget, split: Split) -> dict[str, float]:
        splits.append(split)
        if len(splits) == stop + 1:
            raise KeyboardInterrupt
        return top1(target, split)

    monkeypatch.setattr(corruption, "top1", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_suite(target, **settings)
    assert run_suite(target, **settings) == whole
    assert len(splits) == 1 + 2 * 2 + 1


@pytest.mark.slow
def test_interrupted_corrupting_continues(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C while images are corrupted, no partial file is cached and results are equal."""
    target = make_target(random_images(12, SIDE), tmp_path / "stopped")
    make, made = CorrupterPool.corrupt, []

    def stopped(pool: CorrupterPool, images: Any, name: str, *rest: Any) -> Any:
        made.append(name)
        if made == ["fog", "fog", "contrast"]:
            raise KeyboardInterrupt
        return make(pool, images, name, *rest)

    monkeypatch.setattr(CorrupterPool, "corrupt", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_suite(target, **FEW)
    assert sorted(kept_files(cache)) == ["fog-2", "fog-5"]
    result = run_suite(target, **FEW)
    monkeypatch.setenv("ADAUTOMIX_CACHE", str(tmp_path / "other"))
    assert run_suite(replace(target, folder=tmp_path / "whole"), **FEW) == result
    assert kept_files(cache) == kept_files(tmp_path / "other")


# --- published images ------------------------------------------------------------------------


def write_arrays(folder: Path, clean: InMemory, names: tuple[str, ...]) -> Path:
    """Write arrays in the layout of CIFAR-10-C; severities and corruptions differ in brightness."""
    folder.mkdir()
    for number, name in enumerate(names):
        levels = [clean.images // (severity + number) for severity in SEVERITIES]
        np.save(folder / f"{name}.npy", torch.cat(levels).numpy())
    np.save(folder / "labels.npy", clean.labels.repeat(5).numpy().astype(np.uint8))
    return folder


def test_published_arrays_by_hand(tmp_path: Path) -> None:
    clean = random_images(30, SIDE)
    folder = write_arrays(tmp_path / "noise-C", clean, ("gaussian_noise", "snow"))
    target = make_target(clean, tmp_path / "found")
    result = run_suite(target, folder=str(folder), severities="1,4")
    assert result.source == "noise-C"
    for network, values in result.networks.items():
        assert values.accuracy == {
            name: [by_hand(target, clean.images // (s + n), clean.labels)[network] for s in (1, 4)]
            for n, name in enumerate(("gaussian_noise", "snow"))
        }, "not all published corruptions were scored, or others were"


def test_published_arrays_are_sampled_like_the_test_images(tmp_path: Path) -> None:
    clean = random_images(30, SIDE)
    folder = write_arrays(tmp_path / "noise-C", clean, ("fog",))
    target = make_target(clean, tmp_path / "found")
    fewer: Any = take_sample(clean, 9, target.generator("images"))
    smaller = replace(target, data=replace(target.data, test=fewer))
    result = run_suite(smaller, folder=folder, severities=3)
    expected = by_hand(target, clean.images[fewer.rows] // 3, fewer.labels)
    assert {n: v.accuracy["fog"] for n, v in result.networks.items()} == {
        name: [value] for name, value in expected.items()
    }


def test_wrong_arrays_are_named(tmp_path: Path) -> None:
    clean = random_images(20, SIDE)
    folder = write_arrays(tmp_path / "noise-C", clean, ("fog", "snow"))
    target = make_target(clean, tmp_path / "found")

    def error_message(name: str, array: Any) -> str:
        path = folder / f"{name}.npy"
        whole = path.read_bytes()
        if array is None:
            path.unlink()
        else:
            path.write_bytes(array) if isinstance(array, bytes) else np.save(path, array)
        with pytest.raises(UsageError) as caught:
            run_suite(target, folder=folder)
        path.write_bytes(whole)
        message = str(caught.value)
        assert "\n" not in message
        return message.removeprefix(f"{path} ")

    labels = np.tile(clean.labels.numpy(), 5)
    assert error_message("labels", None) == "is missing: fetch the whole set again"
    assert error_message("labels", labels % 3).startswith(
        "tells 3 classes from 0 to 2 and there are 4"
    )
    assert error_message("fog", b"no array").startswith("is damaged (")
    images = np.zeros((100, SIDE, SIDE, 3), np.uint8)
    for wrong in (images[1:], images[..., 0], images[:, 1:], images.astype(np.float32)):
        message = f"is {wrong.dtype} {list(wrong.shape)}: it should be uint8 [n, S, S, 3] with"
        assert error_message("fog", wrong).startswith(message)


def write_folders(root: Path, clean: InMemory, name: str) -> None:
    """Write images in the layout of ImageNet-C, but losslessly."""
    for severity in SEVERITIES:
        for row, label in enumerate(clean.labels.tolist()):
            path = root / name / str(severity) / CLASSES[label] / f"{row:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((clean.images[clean.rows[row]] // severity).numpy()).save(path)


def test_published_folders_by_hand(tmp_path: Path) -> None:
    """With and without a folder for the kind; labels follow the names of the classes."""
    clean = random_images(12, SIDE)
    keep = clean.labels != 1  # a class without images, so that the numbers of later classes differ
    clean = clean.subset(torch.arange(12)[keep])
    write_folders(tmp_path / "set-C" / "weather", clean, "fog")
    write_folders(tmp_path / "set-C", clean, "gaussian_blur")
    target = make_target(clean, tmp_path / "found")
    images = clean.images[clean.rows]
    result = run_suite(target, folder=tmp_path / "set-C", severities="1,3", workers=1)
    for network, values in result.networks.items():
        expected = [by_hand(target, images // s, clean.labels)[network] for s in (1, 3)]
        assert values.accuracy == {"fog": expected, "gaussian_blur": expected}


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    clean = random_images(8, SIDE)
    root = tmp_path / "set-C"
    target = make_target(clean, tmp_path / "found")

    def error_message(**settings: object) -> str:
        with pytest.raises(UsageError) as caught:
            run_suite(target, folder=root, workers=1, **settings)
        return str(caught.value)

    assert error_message().startswith(f"no corrupted images in {root}: it should hold fog.npy")
    write_folders(root, clean, "fog")
    assert error_message(corruptions="fog,snow") == "set-C has no snow: it has fog"
    assert error_message(corruptions="noise") == "set-C has no gaussian_noise: it has fog"
    (root / "fog" / "2" / "ant").rename(root / "fog" / "2" / "owl")
    message = f"{root / 'fog' / '2'} has a class 'owl' that the networks do not know"
    assert error_message(severities="2") == message
    (root / "fog" / "2").rename(root / "fog" / "two")
    message = f"{root / 'fog' / '2'} is missing: fetch it, or leave severity 2 out"
    assert error_message(severities="2") == message


# --- settings --------------------------------------------------------------------------------


def test_settings_are_names_groups_and_numbers() -> None:
    def names(value: object) -> list[str]:
        return list(validate_settings("corruption", {"corruptions": value}).names)

    assert names("all") == list(CORRUPTIONS)
    assert names("paper15") == list(PAPER_CORRUPTIONS)
    assert names("extra, fog") == ["fog", *CATEGORIES["extra"]]
    assert names(["fog", "noise", "shot_noise"]) == [*CATEGORIES["noise"], "fog"]
    settings = validate_settings("corruption", {"severities": "5,1,5"})
    assert settings.severities == (1, 5)
    assert validate_settings("corruption", {"severities": 3}).severities == (3,)
    assert validate_settings("corruption", {}).severities == SEVERITIES


def test_workers_and_cache_size_are_not_part_of_the_results() -> None:
    """Results computed with one process are reused with eight."""
    one, eight = (validate_settings("corruption", {"workers": n, "keep": n}) for n in (1, 8))
    assert one.model_dump_json() == eight.model_dump_json()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruptions": "frogs"}, "unknown corruption 'frogs': did you mean 'frost'?"),
        ({"corruptions": "dust"}, "unknown corruption 'dust': use all, paper15"),
        ({"severities": "0"}, "greater than or equal to 1"),
        ({"severities": "6"}, "less than or equal to 5"),
        ({"severities": []}, "at least 1 item"),
        ({"workers": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate_settings("corruption", settings)
    assert str(caught.value).startswith(f"corruption.{next(iter(settings))}")
    assert message in str(caught.value)


def test_images_that_cannot_be_corrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = make_target(random_images(4, 31), tmp_path)
    with pytest.raises(NotApplicableError, match="at least 32 pixels per side and these have 31: "):
        run_suite(small)
    monkeypatch.setattr(corruption_sources, "find_spec", lambda _: None)
    with pytest.raises(NotApplicableError, match=r"pip install 'adautomix\[corruption\]', or name"):
        run_suite(make_target(random_images(4, SIDE), tmp_path))


# --- the report ------------------------------------------------------------------------------


def two_runs(folder: Path) -> list[tuple[Evaluated, CorruptionResult]]:
    """Return two runs on the same published images; the second one is the baseline."""
    clean = random_images(40, SIDE)
    published = write_arrays(folder / "noise-C", clean, ("fog", "saturate"))
    pairs = []
    for number, method in enumerate(("adautomix", "vanilla")):
        networks = {
            name: linear_network(SIDE, seed=2 * number + n)
            for n, name in enumerate(("student", "teacher"))
        }
        target = make_target(clean, folder / method, networks=networks)
        target = replace(target, name=method, source={"method": method})
        record = evaluate(target, ["corruption"], {"corruption": {"folder": published}})
        result = record.result("corruption")
        assert isinstance(result, CorruptionResult)
        pairs.append((Evaluated(method, record, folder / method, number), result))
    return pairs


@pytest.mark.slow
def test_the_tables_show_every_number(tmp_path: Path) -> None:
    (one, mine), (other, base) = two_runs(tmp_path)
    means, by_name = section([(one, mine), (other, base)]).tables
    assert means.columns[-1] == "mCE (% of vanilla)"
    for row, (result, network) in zip(
        means.rows,
        [(r, n) for r in (mine, base) for n in ("student", "teacher")],
        strict=True,
    ):
        values, like = result.networks[network], base.networks[network]
        ratio = fmean(
            sum(1 - a for a in values.accuracy[name]) / sum(1 - a for a in like.accuracy[name])
            for name in ("fog", "saturate")
        )
        figures = (values.clean, values.mean_accuracy, 1 - values.mean_accuracy, ratio)
        assert row[1:3] == (network, "noise-C")
        assert row[3:] == tuple(f"{100 * figure:.2f}" for figure in figures)
    student, teacher = (mine.networks[n] for n in ("student", "teacher"))
    assert [row[:2] for row in by_name.rows] == [
        ("clean", "–"),
        ("fog", "weather"),
        ("saturate", "extra"),
    ]
    assert by_name.columns[4] == "adautomix, teacher − student (points)"
    fog = [100 * fmean(network.accuracy["fog"]) for network in (student, teacher)]
    assert by_name.rows[1][2:5] == tuple(f"{v:.2f}" for v in (*fog, fog[1] - fog[0]))
    assert by_name.rows[0][2] == f"{100 * student.clean:.2f}"
    alone = section([(one, mine)]).tables
    assert alone[0].columns[-1] == "mCE (%)"
    assert alone[1].columns[2:] == ("student (%)", "teacher (%)", "teacher − student (points)")


def test_runs_on_different_images_are_not_compared(tmp_path: Path) -> None:
    (one, mine), (other, base) = two_runs(tmp_path)
    generated = base.model_copy(update={"source": "generated"})
    rows = section([(one, mine), (other, generated)]).tables[0].rows
    assert [row[-1] for row in rows] == ["–", "–", "100.00", "100.00"]


def test_the_heat_map_shows_its_numbers(tmp_path: Path) -> None:
    one, result = two_runs(tmp_path)[0]
    (chart,) = section([(one, result)]).charts
    cells = [
        a for network in result.networks.values() for v in network.accuracy.values() for a in v
    ]
    drawn = re.findall(r"<text[^>]*>(\d+)</text>", chart.svg)
    for value in {f"{100 * cell:.0f}" for cell in cells}:
        assert drawn.count(value) >= sum(f"{100 * cell:.0f}" == value for cell in cells)
    rows = {row[:2]: row[2:] for row in chart.rows}
    assert rows["saturate", "teacher"] == tuple(
        f"{100 * a:.2f}" for a in result.networks["teacher"].accuracy["saturate"]
    )
    assert len(chart.rows) == 4


@pytest.mark.slow
def test_equal_pictures_are_shown_once(tmp_path: Path) -> None:
    pairs = two_runs(tmp_path)
    (picture,) = section(pairs).pictures
    data = base64.b64decode(picture.source.partition(",")[2])
    drawn = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 32
    assert "severity 3" in picture.caption
    page = write_evaluations(
        read_evaluated([tmp_path / name for name in ("adautomix", "vanilla")]), tmp_path / "p.html"
    )
    html = page.read_text()
    assert html.count('<h2 id="corruption">') == 1
    assert html.count("corruption-0-title") == 2


@pytest.mark.slow
def test_the_picture_file_is_small(tmp_path: Path) -> None:
    """Noise is the worst case for PNG compression."""
    for size in (32, 64, 224):
        noise = random_images(20, size).images.permute(0, 3, 1, 2)
        write_examples(
            {f"image {number}": image for number, image in enumerate(noise)}, tmp_path / "p.png"
        )
        assert (tmp_path / "p.png").stat().st_size < 150_000


@pytest.mark.slow
def test_the_picture_is_enlarged_by_an_integer_factor(tmp_path: Path) -> None:
    flat = torch.tensor([200, 30, 90], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    write_examples({"a": flat, "b": flat.flip(0)}, tmp_path / "p.png")
    drawn = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    for color in ((200, 30, 90), (90, 30, 200)):
        assert (drawn == color).all(axis=2).sum() == 64 * 64, "enlarged by two"
