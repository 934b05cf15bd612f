"""Corruptions: against the library, by hand, and what no batch, process or stop may change."""

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
from subjects import KINDS as CLASSES
from subjects import images_of, linear, tried_on
from torch import Tensor

from adautomix.data.corruptions import sources as corruption_sources
from adautomix.data.corruptions import worker as program
from adautomix.data.corruptions.corrupted import (
    CORRUPTIONS,
    KINDS,
    PAPER,
    SEVERITIES,
    Corrupted,
    Corrupters,
)
from adautomix.data.corruptions.sources import Generated
from adautomix.data.dataset import InMemory, Split
from adautomix.errors import RunError, UsageError
from adautomix.evaluation import corruption
from adautomix.evaluation.corruption import CorruptionResult, mce_against, robustness
from adautomix.evaluation.evaluate import evaluate, suite_settings
from adautomix.evaluation.suite import NotApplicableError
from adautomix.evaluation.target import EvalTarget
from adautomix.evaluation.target import cut as cut_of
from adautomix.pictures.tiles import write_tiles
from adautomix.reporting.evaluations import write_evaluations
from adautomix.reporting.section import Found
from adautomix.reporting.sections.corruption import section
from adautomix.rng import seed_at

SIDE = 32
FEW: dict[str, object] = {"corruptions": "fog,contrast", "severities": "2,5", "workers": 1}


@pytest.fixture(scope="module")
def corrupters() -> Iterator[Corrupters]:
    """One process."""
    with Corrupters(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def pair() -> Iterator[Corrupters]:
    """Two processes, of which either may be the first to end."""
    with Corrupters(2) as pool:
        yield pool


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("ADAUTOMIX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def measured(subject: EvalTarget, **settings: object) -> CorruptionResult:
    found = evaluate(subject, ["corruption"], {"corruption": settings}).result("corruption")
    assert isinstance(found, CorruptionResult)
    return found


def corrupted(
    clean: InMemory, corrupters: Corrupters, name: str, severity: int = 3, seed: int = 0
) -> Corrupted:
    rows = torch.arange(len(clean))
    return Corrupted(clean, rows, SIDE, name, severity, seed, corrupters)


def read(split: Split, *batches: list[int]) -> Tensor:
    """Images `[n, S, S, 3]` of some batches, one after the other; none: all in one batch."""
    rows = [torch.tensor(batch) for batch in batches] or [torch.arange(len(split))]
    return torch.cat([images for images, _ in split.read(rows)]).permute(0, 2, 3, 1)


def by_the_library(image: Tensor, name: str, severity: int, seed: int) -> Any:
    """What the library makes of one image once everything it draws from is seeded."""
    import imagecorruptions

    np.random.seed(seed)
    own = {"seed": seed} if name in ("glass_blur", "impulse_noise") else {}
    return imagecorruptions.corrupt(image.numpy(), severity, name, **own)


def seed_of(row: int, name: str, severity: int, seed: int = 0) -> int:
    return seed_at(seed, row, f"corruption/{name}/{severity}") % 2**32


def kept_files(cache: Path) -> dict[str, bytes]:
    """Every kept array by its folder's name."""
    return {path.parent.name: path.read_bytes() for path in cache.rglob("pixels.npy")}


def generated(clean: InMemory, corrupters: Corrupters, *, seed: int = 0) -> Generated:
    return Generated(clean, image_size=SIDE, seed=seed, corrupters=corrupters, keep=2**30)


# ---------------------------------------------------------------------- making them


def test_names_and_kinds_are_the_librarys() -> None:
    import imagecorruptions

    assert list(CORRUPTIONS) == imagecorruptions.get_corruption_names("all")
    assert list(PAPER) == imagecorruptions.get_corruption_names("common")
    for kind in ("noise", "blur", "weather", "digital"):
        assert list(KINDS[kind]) == imagecorruptions.get_corruption_names(kind)
    assert list(KINDS["extra"]) == imagecorruptions.get_corruption_names("validation")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_the_librarys(name: str, corrupters: Corrupters) -> None:
    clean = images_of(2, SIDE)
    for severity in SEVERITIES:
        made = read(corrupted(clean, corrupters, name, severity))
        for row, image in enumerate(clean.images):
            expected = by_the_library(image, name, severity, seed_of(row, name, severity))
            assert np.array_equal(made[row].numpy(), expected), f"image {row} at {severity}"


@pytest.mark.parametrize("name", ["impulse_noise", "frost", "spatter", "motion_blur"])
def test_neither_batches_nor_processes_nor_other_images_matter(
    name: str, corrupters: Corrupters, pair: Corrupters, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = images_of(7, SIDE)
    whole = read(corrupted(clean, corrupters, name))
    monkeypatch.setattr(
        "adautomix.data.corruptions.corrupted._REQUEST", 2 * SIDE**2
    )  # two images a time
    split = corrupted(clean, pair, name)
    assert torch.equal(read(split), whole)
    assert torch.equal(read(split, [0, 1, 2], [3], [4, 5, 6]), whole)
    assert torch.equal(read(split, [6, 2], [2]), whole[[6, 2, 2]])
    assert torch.equal(read(split.subset(torch.tensor([5, 1]))), whole[[5, 1]])
    assert not torch.equal(read(replace(split, seed=1)), whole)


def test_labels_go_with_the_images(corrupters: Corrupters) -> None:
    clean = images_of(5, SIDE)
    split = corrupted(clean, corrupters, "contrast").subset(torch.tensor([4, 0]))
    _, labels = next(split.read([torch.tensor([1, 0])]))
    assert labels.tolist() == clean.labels[[0, 4]].tolist()
    assert split.labels.tolist() == clean.labels[[4, 0]].tolist()


def test_numpys_random_numbers_are_left_as_they_were() -> None:
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    program.corrupt(images_of(1, SIDE).images[0].numpy(), "gaussian_noise", 1, seed=8)
    assert np.array_equal(np.random.random(4), expected)


def test_an_image_without_a_drop_stays_as_it_is() -> None:
    image = images_of(1, SIDE).images[0]
    with np.errstate(invalid="ignore"):
        black = [seed for seed in range(200) if not by_the_library(image, "spatter", 1, seed).any()]
    assert black, "the library gives a black image where no drop falls"
    assert np.array_equal(program.corrupt(image.numpy(), "spatter", 1, black[0]), image)


def test_larger_images_are_cut_to_what_the_network_sees(corrupters: Corrupters) -> None:
    clean = images_of(2, 40)
    center = clean.images[0, 4:36, 4:36]
    made = read(corrupted(clean, corrupters, "brightness", 2))
    expected = by_the_library(center, "brightness", 2, seed_of(0, "brightness", 2))
    assert np.array_equal(made[0].numpy(), expected)


def test_a_process_that_dies_and_one_that_cannot_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        with Corrupters(1) as pool, pytest.raises(RunError, match=message):
            read(corrupted(images_of(1, SIDE), pool, "fog"))


# ---------------------------------------------------------------------- keeping them


def test_two_makings_with_one_seed_give_the_same_bytes(
    tmp_path: Path, corrupters: Corrupters, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = images_of(6, SIDE)
    files = []
    for run, (seed, asked) in enumerate(
        [(0, CORRUPTIONS), (0, ("snow", "elastic_transform")), (1, ("snow",))]
    ):
        monkeypatch.setenv("ADAUTOMIX_CACHE", str(tmp_path / str(run)))
        source = generated(clean, corrupters, seed=seed)
        for name in asked:
            source.split(name, 4)
        files.append(kept_files(tmp_path / str(run)))
    every, some, other = files
    assert sorted(every) == sorted(f"{name}-4" for name in CORRUPTIONS)
    assert some == {name: every[name] for name in ("snow-4", "elastic_transform-4")}
    assert other["snow-4"] != every["snow-4"]


def test_kept_images_are_read_and_damaged_ones_made_again(
    cache: Path, corrupters: Corrupters, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = images_of(4, SIDE)
    first = read(generated(clean, corrupters).split("frost", 1))
    (kept,) = cache.rglob("pixels.npy")
    whole = kept.read_bytes()
    assert torch.equal(first, read(corrupted(clean, corrupters, "frost", 1)))
    kept.write_bytes(whole[:-1])
    assert torch.equal(read(generated(clean, corrupters).split("frost", 1)), first)
    assert kept.read_bytes() == whole

    def refuse(*_: object) -> None:
        raise NotImplementedError("made again")

    monkeypatch.setattr(Corrupters, "corrupt", refuse)
    assert torch.equal(read(generated(clean, corrupters).split("frost", 1)), first)
    other = InMemory(clean.images.flip(1), clean.rows, clean.labels)
    with pytest.raises(NotImplementedError, match="made again"):
        generated(other, corrupters).split("frost", 1)
    assert len(list(cache.rglob("*.npy"))) == 1, "a stopped making leaves nothing behind"


# ---------------------------------------------------------------------- figures


def by_hand(subject: EvalTarget, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracies on images `[n, S, S, 3]`, image by image."""
    right = dict.fromkeys(subject.networks, 0)
    for image, label in zip(images, labels, strict=True):
        for name, network in subject.networks.items():
            pixels = image.permute(2, 0, 1)[None].float() / 255
            right[name] += int(network(pixels).argmax()) == int(label)
    return {name: count / len(labels) for name, count in right.items()}


def test_figures_by_hand_kept_or_not(cache: Path, corrupters: Corrupters, tmp_path: Path) -> None:
    clean = images_of(30, SIDE)
    subject = tried_on(clean, tmp_path / "a", batch_size=8)
    found = measured(subject, **FEW)
    assert (found.source, found.severities) == ("generated", [2, 5])
    assert sorted(kept_files(cache)) == ["contrast-2", "contrast-5", "fog-2", "fog-5"]
    of_clean = by_hand(subject, clean.images, clean.labels)
    for network, values in found.networks.items():
        assert values.clean == of_clean[network]
        accuracies = []
        for name in ("fog", "contrast"):
            for severity, accuracy in zip((2, 5), values.accuracy[name], strict=True):
                images = read(corrupted(clean, corrupters, name, severity))
                assert accuracy == by_hand(subject, images, clean.labels)[network]
                accuracies.append(accuracy)
        assert values.mean_accuracy == pytest.approx(np.mean(accuracies))
        assert values.mce == pytest.approx(1 - np.mean(accuracies))
    elsewhere = replace(subject, folder=tmp_path / "b")
    assert measured(elsewhere, **FEW, keep=0) == found
    assert len(kept_files(cache)) == 4


def test_the_mce_against_a_baseline_by_hand() -> None:
    mine = robustness(0.9, {"fog": [0.8, 0.6], "snow": [0.7, 0.5]})
    base = robustness(0.8, {"fog": [0.6, 0.4], "snow": [0.9, 0.7]})
    expected = ((0.2 + 0.4) / (0.4 + 0.6) + (0.3 + 0.5) / (0.1 + 0.3)) / 2
    assert mce_against(mine, base) == pytest.approx(expected)
    assert mce_against(base, base) == 1
    assert mine.mean_accuracy == pytest.approx(0.65)
    assert mine.mce == pytest.approx(0.35)
    assert mce_against(mine, robustness(1, {"fog": [1, 1], "snow": [0.5, 0.5]})) is None
    assert mce_against(mine, robustness(1, {"fog": [0.5, 0.5]})) is None
    assert mce_against(mine, robustness(1, {"fog": [0.5], "snow": [0.5]})) is None


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_stopped_suite_goes_on_where_it_was(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a corruption is scored; the parts before it are not computed again."""
    published = write_arrays(tmp_path / "set-C", images_of(12, SIDE), ("fog", "contrast"))
    settings = {"folder": published, "severities": "2,5"}
    subject = tried_on(images_of(12, SIDE), tmp_path / "stopped")
    whole = measured(replace(subject, folder=tmp_path / "whole"), **settings)
    top1, features = corruption.top1, []

    def stopped(subject: EvalTarget, split: Split) -> dict[str, float]:
        features.append(split)
        if len(features) == stop + 1:
            raise KeyboardInterrupt
        return top1(subject, split)

    monkeypatch.setattr(corruption, "top1", stopped)
    with pytest.raises(KeyboardInterrupt):
        measured(subject, **settings)
    assert measured(subject, **settings) == whole
    assert len(features) == 1 + 2 * 2 + 1


def test_a_making_that_was_stopped_goes_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while images are made: nothing half-made is kept, and the figures are the same."""
    subject = tried_on(images_of(12, SIDE), tmp_path / "stopped")
    make, made = Corrupters.corrupt, []

    def stopped(pool: Corrupters, images: Any, name: str, *rest: Any) -> Any:
        made.append(name)
        if made == ["fog", "fog", "contrast"]:
            raise KeyboardInterrupt
        return make(pool, images, name, *rest)

    monkeypatch.setattr(Corrupters, "corrupt", stopped)
    with pytest.raises(KeyboardInterrupt):
        measured(subject, **FEW)
    assert sorted(kept_files(cache)) == ["fog-2", "fog-5"]
    found = measured(subject, **FEW)
    monkeypatch.setenv("ADAUTOMIX_CACHE", str(tmp_path / "other"))
    assert measured(replace(subject, folder=tmp_path / "whole"), **FEW) == found
    assert kept_files(cache) == kept_files(tmp_path / "other")


# ---------------------------------------------------------------------- published images


def write_arrays(folder: Path, clean: InMemory, names: tuple[str, ...]) -> Path:
    """Laid out like CIFAR-10-C: darker with every severity, and each corruption in its own way."""
    folder.mkdir()
    for number, name in enumerate(names):
        levels = [clean.images // (severity + number) for severity in SEVERITIES]
        np.save(folder / f"{name}.npy", torch.cat(levels).numpy())
    np.save(folder / "labels.npy", clean.labels.repeat(5).numpy().astype(np.uint8))
    return folder


def test_published_arrays_by_hand(tmp_path: Path) -> None:
    clean = images_of(30, SIDE)
    folder = write_arrays(tmp_path / "noise-C", clean, ("gaussian_noise", "snow"))
    subject = tried_on(clean, tmp_path / "found")
    found = measured(subject, folder=str(folder), severities="1,4")
    assert found.source == "noise-C"
    for network, values in found.networks.items():
        assert values.accuracy == {
            name: [by_hand(subject, clean.images // (s + n), clean.labels)[network] for s in (1, 4)]
            for n, name in enumerate(("gaussian_noise", "snow"))
        }, "of the 19 asked for, those that are there"


def test_of_published_arrays_the_images_are_taken_that_are_tested_on(tmp_path: Path) -> None:
    clean = images_of(30, SIDE)
    folder = write_arrays(tmp_path / "noise-C", clean, ("fog",))
    subject = tried_on(clean, tmp_path / "found")
    fewer: Any = cut_of(clean, 9, subject.generator("images"))
    cut = replace(subject, data=replace(subject.data, test=fewer))
    found = measured(cut, folder=folder, severities=3)
    expected = by_hand(subject, clean.images[fewer.rows] // 3, fewer.labels)
    assert {n: v.accuracy["fog"] for n, v in found.networks.items()} == {
        name: [value] for name, value in expected.items()
    }


def test_arrays_that_are_not_right_are_named(tmp_path: Path) -> None:
    clean = images_of(20, SIDE)
    folder = write_arrays(tmp_path / "noise-C", clean, ("fog", "snow"))
    subject = tried_on(clean, tmp_path / "found")

    def refused(name: str, array: Any) -> str:
        path = folder / f"{name}.npy"
        whole = path.read_bytes()
        if array is None:
            path.unlink()
        else:
            path.write_bytes(array) if isinstance(array, bytes) else np.save(path, array)
        with pytest.raises(UsageError) as caught:
            measured(subject, folder=folder)
        path.write_bytes(whole)
        message = str(caught.value)
        assert "\n" not in message
        return message.removeprefix(f"{path} ")

    labels = np.tile(clean.labels.numpy(), 5)
    assert refused("labels", None) == "is missing: fetch the whole set again"
    assert refused("labels", labels % 3).startswith("tells 3 classes from 0 to 2 and there are 4")
    assert refused("fog", b"no array").startswith("is damaged (")
    images = np.zeros((100, SIDE, SIDE, 3), np.uint8)
    for wrong in (images[1:], images[..., 0], images[:, 1:], images.astype(np.float32)):
        on_progress = f"is {wrong.dtype} {list(wrong.shape)}: it should be uint8 [n, S, S, 3] with"
        assert refused("fog", wrong).startswith(on_progress)


def write_folders(root: Path, clean: InMemory, name: str) -> None:
    """Laid out like ImageNet-C, without losses; a class has the images of its label."""
    for severity in SEVERITIES:
        for row, label in enumerate(clean.labels.tolist()):
            path = root / name / str(severity) / CLASSES[label] / f"{row:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((clean.images[clean.rows[row]] // severity).numpy()).save(path)


def test_published_folders_by_hand(tmp_path: Path) -> None:
    """Below a folder of the kind or not; labels go by the names of the classes."""
    clean = images_of(12, SIDE)
    keep = clean.labels != 1  # a class without images changes the numbers of those after it
    clean = clean.subset(torch.arange(12)[keep])
    write_folders(tmp_path / "set-C" / "weather", clean, "fog")
    write_folders(tmp_path / "set-C", clean, "gaussian_blur")
    subject = tried_on(clean, tmp_path / "found")
    mask_source = clean.images[clean.rows]
    found = measured(subject, folder=tmp_path / "set-C", severities="1,3", workers=1)
    for network, values in found.networks.items():
        expected = [by_hand(subject, mask_source // s, clean.labels)[network] for s in (1, 3)]
        assert values.accuracy == {"fog": expected, "gaussian_blur": expected}


def test_folders_that_are_not_right_are_named(tmp_path: Path) -> None:
    clean = images_of(8, SIDE)
    root = tmp_path / "set-C"
    subject = tried_on(clean, tmp_path / "found")

    def refused(**settings: object) -> str:
        with pytest.raises(UsageError) as caught:
            measured(subject, folder=root, workers=1, **settings)
        return str(caught.value)

    assert refused().startswith(f"no corrupted images in {root}: it should hold fog.npy")
    write_folders(root, clean, "fog")
    assert refused(corruptions="fog,snow") == "set-C has no snow: it has fog"
    assert refused(corruptions="noise") == "set-C has no gaussian_noise: it has fog"
    (root / "fog" / "2" / "ant").rename(root / "fog" / "2" / "owl")
    on_progress = f"{root / 'fog' / '2'} has a class 'owl' that the networks do not know"
    assert refused(severities="2") == on_progress
    (root / "fog" / "2").rename(root / "fog" / "two")
    on_progress = f"{root / 'fog' / '2'} is missing: fetch it, or leave severity 2 out"
    assert refused(severities="2") == on_progress


# ---------------------------------------------------------------------- settings


def test_settings_are_names_groups_and_numbers() -> None:
    def names(value: object) -> list[str]:
        return list(suite_settings("corruption", {"corruptions": value}).names)

    assert names("all") == list(CORRUPTIONS)
    assert names("paper15") == list(PAPER)
    assert names("extra, fog") == ["fog", *KINDS["extra"]]
    assert names(["fog", "noise", "shot_noise"]) == [*KINDS["noise"], "fog"]
    settings = suite_settings("corruption", {"severities": "5,1,5"})
    assert settings.severities == (1, 5)
    assert suite_settings("corruption", {"severities": 3}).severities == (3,)
    assert suite_settings("corruption", {}).severities == SEVERITIES


def test_how_images_are_made_is_not_what_they_are() -> None:
    """Parts that were computed by one process are found again with eight."""
    one, eight = (suite_settings("corruption", {"workers": n, "keep": n}) for n in (1, 8))
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
        suite_settings("corruption", settings)
    assert str(caught.value).startswith(f"corruption.{next(iter(settings))}")
    assert message in str(caught.value)


def test_what_cannot_be_made_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tried_on(images_of(4, 31), tmp_path)
    with pytest.raises(NotApplicableError, match="at least 32 pixels a side and these have 31: "):
        measured(small)
    monkeypatch.setattr(corruption_sources, "find_spec", lambda _: None)
    with pytest.raises(NotApplicableError, match=r"pip install 'adautomix\[corruption\]', or name"):
        measured(tried_on(images_of(4, SIDE), tmp_path))


# ---------------------------------------------------------------------- the page


def two_runs(folder: Path) -> list[tuple[Found, CorruptionResult]]:
    """Two runs on the same published images, the second of them the baseline."""
    clean = images_of(40, SIDE)
    published = write_arrays(folder / "noise-C", clean, ("fog", "saturate"))
    pairs = []
    for number, method in enumerate(("adautomix", "vanilla")):
        networks = {
            name: linear(SIDE, seed=2 * number + n) for n, name in enumerate(("student", "teacher"))
        }
        subject = tried_on(clean, folder / method, networks=networks)
        subject = replace(subject, name=method, source={"method": method})
        record = evaluate(subject, ["corruption"], {"corruption": {"folder": published}})
        result = record.result("corruption")
        assert isinstance(result, CorruptionResult)
        pairs.append((Found(method, record, folder / method, number), result))
    return pairs


def test_the_tables_hold_every_figure(tmp_path: Path) -> None:
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


def test_runs_on_other_images_are_not_held_against_each_other(tmp_path: Path) -> None:
    (one, mine), (other, base) = two_runs(tmp_path)
    generated = base.model_copy(update={"source": "generated"})
    rows = section([(one, mine), (other, generated)]).tables[0].rows
    assert [row[-1] for row in rows] == ["–", "–", "100.00", "100.00"]


def test_the_heat_map_holds_its_numbers(tmp_path: Path) -> None:
    one, result = two_runs(tmp_path)[0]
    (chart,) = section([(one, result)]).charts
    cells = [
        a for network in result.networks.values() for v in network.accuracy.values() for a in v
    ]
    drawn = re.findall(r"<text[^>]*>(\d+)</text>", chart.svg)
    for value in {f"{100 * cell:.0f}" for cell in cells}:
        assert drawn.count(value) >= sum(f"{100 * cell:.0f}" == value for cell in cells)
    mask_source = {row[:2]: row[2:] for row in chart.rows}
    assert mask_source["saturate", "teacher"] == tuple(
        f"{100 * a:.2f}" for a in result.networks["teacher"].accuracy["saturate"]
    )
    assert len(chart.rows) == 4


def test_the_page_shows_one_picture_of_what_both_saw(tmp_path: Path) -> None:
    pairs = two_runs(tmp_path)
    (picture,) = section(pairs).pictures
    data = base64.b64decode(picture.source.partition(",")[2])
    drawn = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 32
    assert "severity 3" in picture.caption
    page = write_evaluations(
        [tmp_path / name for name in ("adautomix", "vanilla")], tmp_path / "p.html"
    )
    html = page.read_text()
    assert html.count('<h2 id="corruption">') == 1
    assert html.count("corruption-0-title") == 2


def test_the_picture_is_small_whatever_is_on_it(tmp_path: Path) -> None:
    """Noise is what a PNG cannot make smaller."""
    for size in (32, 64, 224):
        noise = images_of(20, size).images.permute(0, 3, 1, 2)
        write_tiles(
            {f"image {number}": image for number, image in enumerate(noise)}, tmp_path / "p.png"
        )
        assert (tmp_path / "p.png").stat().st_size < 150_000


def test_the_picture_shows_the_images_pixel_by_pixel(tmp_path: Path) -> None:
    flat = torch.tensor([200, 30, 90], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    write_tiles({"a": flat, "b": flat.flip(0)}, tmp_path / "p.png")
    drawn = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    for color in ((200, 30, 90), (90, 30, 200)):
        assert (drawn == color).all(axis=2).sum() == 64 * 64, "enlarged by two"
