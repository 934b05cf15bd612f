"""The label ledger names wrong labels, and accepts right ones of any library."""

import importlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Command
from every import each
from torch import Tensor

import adautomix
from adautomix.checks import label_ledger as ledger
from adautomix.checks.label_ledger import (
    MATCH,
    WRONG_PAIRING,
    CheckSettings,
    LabelLedger,
    LedgerRow,
    check_methods,
    claimed_fractions,
    mix_batches,
    remove_smoothing,
)
from adautomix.checks.mixers import check_address, check_mixer, interpret_labels
from adautomix.config import make_config, merge
from adautomix.errors import UsageError
from adautomix.methods import METHODS, LabelRule, find_method, suits
from adautomix.mixing.boxes import box_mask, draw_box
from adautomix.rng import seeded
from adautomix.runs.build import build_networks

SMALL = CheckSettings(image_size=16, batches=6)
NOT_COUNTED = [name for name, cls in METHODS.items() if not cls.label_rule.countable]
BY_DESIGN = [
    name
    for name, cls in METHODS.items()
    if cls.label_rule.countable and cls.label_rule is not LabelRule.PIXELS
]
NOT_OF_THE_BATCH = ("cutout", "recursivemix")  # pixels of a hole, or of the previous batch

Mixes = tuple[Tensor, Tensor]


# ---------------------------------------------------------------------- methods of this package


@cache
def row_of(name: str) -> LedgerRow:
    (row,) = check_methods([name], settings=SMALL)
    return row


@pytest.mark.parametrize("name", each())
def test_every_method_passes_or_gives_a_reason(name: str) -> None:
    row = row_of(name)
    assert row.ok
    assert row.smoothing == 0
    if name in NOT_COUNTED:
        assert row.verdict == f"not counted: {METHODS[name].label_note}"
        assert row.difference is None
    elif name in BY_DESIGN:
        assert row.verdict == f"by design: {METHODS[name].label_note}"
    else:
        assert row.verdict == MATCH + (", nothing was mixed" if name == "vanilla" else "")
        assert row.difference is not None
        assert row.difference <= 1 / 16**2 + 1e-5
    if name not in (*NOT_COUNTED, "vanilla", "cutout"):
        assert row.images >= 2
        assert row.pairings > 4


def test_every_rule_besides_pixels_gives_its_own_reason() -> None:
    default = METHODS["mixup"].label_note
    for name, cls in METHODS.items():
        assert (cls.label_note == default) == (cls.label_rule is LabelRule.PIXELS), name


@pytest.mark.slow
def test_labels_that_differ_by_design_do_differ() -> None:
    """SUMix is the exception: it corrects labels in the loss, not in the mix."""
    differ = {name for name in BY_DESIGN if (row_of(name).difference or 0) > 1e-5}
    assert differ == set(BY_DESIGN) - {"sumix"}


def networks_for(name: str) -> tuple[Any, Any, Any]:
    """Return a method, a small student that suits it, and the teacher."""
    suited = suits(name, ledger.SMALL_CNN["model"])
    network = ledger.SMALL_CNN if suited else ledger.SMALL_TRANSFORMER
    with seeded(0):
        student, method, teacher = build_networks(
            make_config(merge(network, {"method": name})),
            num_classes=SMALL.batch_size,
            image_size=SMALL.image_size,
            device=torch.device("cpu"),
        )
    return method, student, teacher.model


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in (*NOT_COUNTED, *NOT_OF_THE_BATCH)]
)
def test_mixed_describes_its_own_pixels(name: str) -> None:
    """Compare λ and the pairing, as `Mixed` states them, with the counted pixels."""
    method, student, teacher = networks_for(name)
    settings = CheckSettings(image_size=16, batches=2)
    for step, mixed in enumerate(mix_batches(method, settings, student, teacher)):
        rows = (mixed.perm - step) % SMALL.batch_size  # the batch is rolled by one per step
        claimed = torch.zeros(SMALL.batch_size, SMALL.batch_size)
        claimed.scatter_add_(1, rows, claimed_fractions(mixed))
        torch.testing.assert_close(mixed.images.mean(dim=(2, 3)), claimed, atol=1e-5, rtol=0)


def test_weights_are_counted_from_the_pixels() -> None:
    """Count two mixes of three images by hand: 6 of 16 pixels, and a quarter everywhere."""
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0] = 1
    images[0, :, :2, :3] = torch.tensor([0.0, 1, 0])[:, None, None]
    images[1, 1:] = torch.tensor([0.25, 0.75])[:, None, None]
    counted = LabelLedger(tolerance=1e-5)
    counted.add(images, torch.tensor([[0.625, 0.375, 0, 0], [0, 0.25, 0.75, 0]]))
    row = counted.row("by hand")
    assert (row.verdict, row.ok, row.difference) == (MATCH, True, 0)
    assert (row.lam, row.images, row.pairings) == ((0.25, 0.75), 2, 2)
    assert row.cells()[1:5] == ("0.0000", "0.250 to 0.750", "2", "2")


# ---------------------------------------------------------------------- wrong labels


def boxes(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return λ₀, a box around a uniform center that leaves about λ₀, and its mask `[1, H, W]`."""
    lam = torch.rand(1)
    height, width = images.shape[2:]
    box = draw_box(lam, height, width, torch.default_generator)
    return lam, box, box_mask(box, height, width)


def cutmix(images: Tensor, labels: Tensor, how: str) -> Mixes:
    """Apply CutMix correctly, or with one mistake in the labels."""
    partner = torch.arange(len(images)).roll(1)
    drawn, _, inside = boxes(images)
    lam = 1 - inside.float().mean()
    mixed = torch.where(inside[:, None], images[partner], images)
    classes = F.one_hot(labels).float()
    partner_classes = classes[partner]
    if how == "unclipped":
        lam = drawn
    if how == "swapped":
        lam = 1 - lam
    if how == "stale":
        partner_classes = classes[partner.roll(2)]
    if how == "incomplete":
        partner_classes = classes
    if how == "heavy":
        return mixed, classes + (1 - lam) * partner_classes
    if how == "other":
        lam = torch.rand(1)
    return mixed, lam * classes + (1 - lam) * partner_classes


@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ("unclipped", "unclipped λ: labels give the pasted image more than its pixels"),
        ("swapped", "swapped λ: each image has the weight of the other"),
        ("stale", WRONG_PAIRING),
        ("incomplete", "incomplete: labels leave out images that were mixed in"),
        ("heavy", "labels do not sum to 1"),
        ("other", "labels differ from pixels"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wrong_labels_are_named(how: str, verdict: str, seed: int) -> None:
    row = check_mixer(lambda images, labels: cutmix(images, labels, how), name=how, seed=seed)
    assert (row.name, row.verdict, row.ok) == (how, verdict, False)
    assert row.difference is not None
    assert row.difference > 0.05


def test_right_labels_pass() -> None:
    row = check_mixer(lambda images, labels: cutmix(images, labels, "right"))
    assert (row.verdict, row.ok) == (MATCH, True)


def test_one_pixel_of_rounding_is_accepted() -> None:
    def mixer(images: Tensor, labels: Tensor, extra: float) -> Mixes:
        mixed = torch.lerp(images, images.roll(1, 0), 0.3)
        weight = 0.3 + extra / 32**2
        return mixed, torch.lerp(
            F.one_hot(labels).float(), F.one_hot(labels.roll(1)).float(), weight
        )

    assert check_mixer(lambda images, labels: mixer(images, labels, 1.0)).ok
    assert not check_mixer(lambda images, labels: mixer(images, labels, 1.1)).ok


def test_labels_that_are_nan_are_wrong() -> None:
    row = check_mixer(lambda images, labels: (images, F.one_hot(labels) * float("nan")))
    assert not row.ok


@pytest.mark.slow
def test_a_method_with_wrong_pairs_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairing is checked even if labels differ from pixels by design."""
    for name in ("mixup", "adautomix"):
        method = find_method(name)
        mix = method.mix

        def stale(
            self: Any, images: Tensor, targets: Tensor, *rest: Any, **features: Tensor
        ) -> Any:
            return mix(self, images, targets.roll(1, 0), *rest, **features)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(method, "mix", stale)
            (row,) = check_methods([name], settings=SMALL)
        assert (row.verdict, row.ok) == (WRONG_PAIRING, False)


# ---------------------------------------------------------------------- other libraries


def timm_mixup(**settings: Any) -> Any:
    return importlib.import_module("timm.data").Mixup(num_classes=10, **settings)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(
    "alphas",
    [
        {"mixup_alpha": 0.8},
        {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
        {"mixup_alpha": 0.8, "cutmix_alpha": 1.0},
    ],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_timm(mode: str, alphas: dict[str, float], smoothing: float) -> None:
    row = check_mixer(timm_mixup(mode=mode, label_smoothing=smoothing, **alphas))
    assert (row.name, row.verdict, row.ok) == ("Mixup", MATCH, True)
    assert row.smoothing == pytest.approx(smoothing, abs=1e-6)
    assert (row.images, row.pairings) == (2, 4), "image b with image B - 1 - b"


def test_timm_with_its_label_from_the_drawn_box() -> None:
    """With `correct_lam=False` λ is that of the box before it is clipped at the border."""
    row = check_mixer(timm_mixup(mixup_alpha=0.0, cutmix_alpha=1.0, correct_lam=False))
    assert row.verdict == "unclipped λ: labels give the pasted image more than its pixels"


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_torchvision(name: str) -> None:
    v2: Any = importlib.import_module("torchvision.transforms.v2")
    row = check_mixer(getattr(v2, name)(num_classes=10))
    assert (row.name, row.verdict, row.ok) == (name, MATCH, True)
    assert (row.images, row.pairings, row.smoothing) == (2, 8, 0)


def kornia_mixer(name: str, **settings: Any) -> Any:
    augmentation = importlib.import_module("kornia.augmentation")
    return getattr(augmentation, name)(data_keys=["input", "class"], **settings)


@pytest.mark.parametrize(
    ("mixer", "whose"),
    [
        (lambda: kornia_mixer("RandomMixUpV2"), "second"),
        (lambda: kornia_mixer("RandomMixUpV2", same_on_batch=True, p=0.5), "second"),
        (lambda: kornia_mixer("RandomCutMixV2", use_correct_lambda=True), "first"),
        (lambda: kornia_mixer("RandomCutMixV2", use_correct_lambda=False), "second"),
    ],
)
@pytest.mark.filterwarnings("ignore:RandomCutMixV2:DeprecationWarning")
def test_kornia(mixer: Callable[[], Any], whose: str) -> None:
    row = check_mixer(mixer())
    assert (row.verdict, row.ok) == (f"{MATCH}, λ is the weight of the {whose} label", True)
    assert row.images == 2


def test_kornia_labels_each_of_two_cuts_separately() -> None:
    row = check_mixer(kornia_mixer("RandomCutMixV2", use_correct_lambda=True, num_mix=2))
    assert not row.ok
    assert row.images == 3


def test_functions_of_this_package() -> None:
    for name in ("mixup", "cutmix", "fmix", "resizemix"):
        mix = getattr(adautomix.mix, name)
        row = check_mixer(lambda *batch: mix(*batch, num_classes=8))  # noqa: B023
        assert row.ok


def in_four_parts(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return images, labels, the partners' labels and λ of the first, as many scripts do."""
    lam, partner = float(torch.rand(())), torch.randperm(len(labels))
    return torch.lerp(images[partner], images, lam), labels, labels[partner], lam


def test_two_labels_and_lam() -> None:
    assert check_mixer(in_four_parts).verdict == MATCH

    def swapped(*batch: Tensor) -> Any:
        images, first, second, lam = in_four_parts(*batch)
        return images, second, first, lam

    assert check_mixer(swapped).verdict == "swapped λ: each image has the weight of the other"


def test_interpretations_of_rows_of_three() -> None:
    rows = torch.tensor([[0.0, 1, 0.25], [1, 0, 0.25]])
    first, second = interpret_labels(rows, 2).values()
    assert first.tolist() == [[0.25, 0.75], [0.75, 0.25]]
    assert second.tolist() == [[0.75, 0.25], [0.25, 0.75]]


def test_smoothing_is_measured_at_absent_classes() -> None:
    weights = torch.tensor([[0.25, 0.75, 0, 0], [0, 0, 1, 0]], dtype=torch.float64)
    labels, smoothing = remove_smoothing(0.8 * weights + 0.2 / 4, weights)
    assert smoothing == pytest.approx(0.2)
    torch.testing.assert_close(labels, weights)
    everywhere = torch.full((2, 4), 0.25)
    assert remove_smoothing(everywhere, everywhere)[1] == 0, "all were mixed into all"


def test_global_generators_are_restored() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(5)
    np.random.seed(5)
    first = torch.rand(1), np.random.rand(1)
    one = check_mixer(timm_mixup())
    second = torch.rand(1), np.random.rand(1)
    assert torch.equal(torch.cat([first[0], second[0]]), expected[0])
    np.testing.assert_array_equal(np.concatenate([first[1], second[1]]), expected[1])
    assert one == check_mixer(timm_mixup())


# ----------------------------------------------------------- mixers that cannot be checked


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        (lambda images: images, "the mixer failed on images .8, 8, 32, 32. with labels 0 to 7"),
        (lambda images, labels: images, "the mixer returned Tensor, not .images, labels."),
        (lambda images, labels: (images, labels, 1), "the mixer returned tuple"),
        (
            lambda images, labels: (images, F.one_hot(labels)[:, :5]),
            "labels .8, 5. for 8 mixes of 8 classes: give the mixer 8 classes or more",
        ),
    ],
)
def test_mixers_that_cannot_be_checked(mixer: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_mixer(mixer, name="the mixer")


def test_a_mixer_by_its_address(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "import torch\n"
        "def mixer(images, labels):\n"
        "    return images, labels\n"
        "def make_mixer():\n"
        "    return mixer\n"
        "number = 3\n"
    )
    for name in ("mixer", "make_mixer"):
        row = check_address(f"{script}:{name}")
        assert row.verdict == f"{MATCH}, nothing was mixed"
    assert check_address("timm.data:Mixup").verdict == MATCH
    with pytest.raises(UsageError, match="cannot be called: name a mixer"):
        check_address(f"{script}:number")


# ---------------------------------------------------------------------- the command


def test_the_command(command: Command, tmp_path: Path) -> None:
    outcome = command(
        "check-mix", "--method", "mixup,dada", "--object", "timm.data:Mixup", "--batches", 3
    )
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["mixer", "timm.data:Mixup", "mixup", "dada"]
    assert "labels match pixels" in lines[2]
    assert "not counted: images are generated" in lines[3]


def test_the_command_exits_with_1_if_labels_are_wrong(command: Command, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("def stale(images, labels):\n    return images.roll(1, 0), labels.roll(2)\n")
    outcome = command("check-mix", "--object", f"{script}:stale", "--json")
    assert outcome.status == 1
    assert outcome.err == f"adautomix: labels do not match the pixels: {script}:stale\n"
    (row,) = json.loads(outcome.out)
    assert row["verdict"].startswith(WRONG_PAIRING)


def test_settings_reach_the_method(command: Command) -> None:
    words = ("check-mix", "--method", "adautomix", "--size", 16, "--batches", 2, "--json")
    assert [command(*words, "--adautomix.n", n).json[0]["images"] for n in (2, 4)] == [2, 4]


@pytest.mark.parametrize("words", [("--method", "cutmicks"), ("--batch", 2), ("--mixup.alfa", 1)])
def test_wrong_usage(command: Command, words: tuple[object, ...]) -> None:
    assert command("check-mix", *words).status == 2
