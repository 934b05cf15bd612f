"""Input mixing, recomputed sample by sample, and what all methods have in common."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.transforms.v2 as tv
from tiny import CLASSES, tiny_classifier, toy_images
from torch import Tensor

import adautomix.functional
from adautomix.errors import UsageError
from adautomix.methods import InputMixing, Method, build_method, find_method
from adautomix.methods.adautomix import AdAutoMix, AdAutoMixParams, AdAutoMixSettings
from adautomix.methods.cutmix import CutMixParams, draw_cutmix
from adautomix.methods.mixup import MixupParams
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.boxes import box_mask, draw_box
from adautomix.mixing.ops import Mixed, mix_by_lam, mix_by_masks, soft_targets
from adautomix.mixing.params import draw_partners, draw_permutations
from adautomix.rng import generator_at

INPUT_MIXING = [name for name in InputMixing.by_name if name != "vanilla"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 6, height: int = 8, width: int = 10) -> tuple[Tensor, Tensor]:
    """Random images, each with a class of its own."""
    return torch.rand(count, 3, height, width, generator=rng(1)), torch.arange(count)


def soft_batch(count: int = 6) -> tuple[Tensor, Tensor]:
    images, _ = batch(count)
    return images, torch.rand(count, count, generator=rng(2)).softmax(dim=1)


def make(name: str, classes: int = CLASSES, **common: Any) -> Any:
    """A method that needs no network."""
    return build_method(name, common.pop("options", None), num_classes=classes, **common)


def mix_by_hand(
    images: Tensor, targets: Tensor, perm: Tensor, lam: Tensor, masks: Tensor
) -> tuple[Tensor, Tensor]:
    """Mix in float64, one source of one mix at a time; masks `[B, N, H, W]`."""
    images, targets = images.double(), targets.double()
    mixed, labels = torch.zeros_like(images), torch.zeros_like(targets)
    for b in range(len(perm)):
        for n in range(perm.shape[1]):
            source = int(perm[b, n])
            mixed[b] += masks[b, n].double() * images[source]
            labels[b] += float(lam[b, n]) * targets[source]
    return mixed, labels


def assert_mixed(mixed: Mixed, images: Tensor, targets: Tensor, atol: float = 1e-6) -> None:
    assert mixed.masks is not None
    by_hand, labels = mix_by_hand(images, targets, mixed.perm, mixed.lam, mixed.masks)
    torch.testing.assert_close(mixed.images.double(), by_hand, atol=atol, rtol=0)
    torch.testing.assert_close(mixed.targets.double(), labels, atol=1e-6, rtol=0)


# ---------------------------------------------------------------------- random parameters


def small_adautomix(**settings: Any) -> AdAutoMix:
    return AdAutoMix(
        AdAutoMixSettings(**settings), num_classes=CLASSES, seed=3, model=tiny_classifier()
    )


DRAWING: dict[str, Callable[[], Method]] = {
    "mixup": lambda: make("mixup", seed=3),
    "cutmix": lambda: make("cutmix", seed=3),
    "adautomix": small_adautomix,
}


def same_params(one: Any, other: Any) -> bool:
    values = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in values)


@pytest.mark.parametrize("name", DRAWING)
def test_parameters_depend_on_seed_and_step_alone(name: str) -> None:
    method, other = DRAWING[name](), DRAWING[name]()
    images, _ = batch(20)
    params = method.params_for_step(images.shape, 4)
    torch.rand(11)  # another user of the global generator
    before = torch.get_rng_state()
    assert same_params(params, other.params_for_step(images.shape, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert not same_params(params, method.params_for_step(images.shape, 6))
    method.seed = 4
    assert not same_params(params, method.params_for_step(images.shape, 4))


def test_generators_of_different_names_are_unrelated() -> None:
    names = [(0, 0, "mix"), (1, 0, "mix"), (0, 1, "mix"), (0, 0, "order"), (0, 11, "mix")]
    draws = torch.stack([torch.rand(1000, generator=generator_at(*name)) for name in names])
    off_diagonal = torch.corrcoef(draws) - torch.eye(len(names))
    assert off_diagonal.abs().max() < 0.15
    assert torch.equal(draws[0], torch.rand(1000, generator=generator_at(0, 0, "mix")))


# ---------------------------------------------------------------------- mixing by λ and by masks


@pytest.mark.parametrize("n", [2, 3, 5])
def test_n_way_mix_by_masks(n: int) -> None:
    images, targets = soft_batch()
    perm = draw_permutations(6, n, rng(3))
    lam = torch.rand(6, n, generator=rng(4)).softmax(dim=1)
    masks = torch.rand(6, n, 8, 10, generator=rng(5)).softmax(dim=1)
    mixed = mix_by_masks(images, targets, perm, lam, masks)
    assert_mixed(mixed, images, targets)
    torch.testing.assert_close(mixed.targets.sum(dim=1), torch.ones(6))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_mix_by_lam_is_a_constant_mask(n: int) -> None:
    images, targets = soft_batch()
    perm = draw_permutations(6, n, rng(3))
    lam = torch.rand(6, n, generator=rng(4)).softmax(dim=1)
    masks = lam[:, :, None, None].expand(6, n, 8, 10)
    linear, masked = (
        mix_by_lam(images, targets, perm, lam),
        mix_by_masks(images, targets, perm, lam, masks),
    )
    assert linear.masks is None
    assert torch.equal(linear.images, masked.images)
    assert torch.equal(linear.targets, masked.targets)


# ---------------------------------------------------------------------- Mixup


@pytest.mark.parametrize("per_sample", [False, True])
def test_mixup_sample_by_sample(per_sample: bool) -> None:
    images, labels = batch()
    method = make("mixup", 6, options={"per_sample": per_sample})
    params = method.make_params(images.shape, rng(), 0)
    mixed = method.mix(images, soft_targets(labels, 6), params)
    assert len(params.lam[:, 0].unique()) == (6 if per_sample else 1)
    for b in range(6):
        lam, partner = float(params.lam[b, 0]), int(params.perm[b, 1])
        expected = lam * images[b].double() + (1 - lam) * images[partner].double()
        torch.testing.assert_close(mixed.images[b].double(), expected, atol=1e-6, rtol=0)
        label = [0.0] * 6
        label[b] += lam
        label[partner] += 1 - lam
        assert mixed.targets[b].tolist() == pytest.approx(label, abs=1e-6)


def test_mixup_with_lam_one_returns_the_images() -> None:
    images, targets = soft_batch()
    params = MixupParams(draw_partners(6, rng()), torch.tensor([1.0, 0.0]).expand(6, 2))
    mixed = make("mixup", 6).mix(images, targets, params)
    assert torch.equal(mixed.images, images)
    assert torch.equal(mixed.targets, targets)


def test_mixup_equals_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = batch()
    theirs = tv.MixUp(num_classes=6)
    monkeypatch.setattr(theirs, "make_params", lambda inputs: {"lam": 0.37})
    their_images, their_targets = theirs(images, labels)
    params = MixupParams(torchvision_pairs(6), torch.tensor([0.37, 0.63]).expand(6, 2))
    mixed = make("mixup", 6).mix(images, soft_targets(labels, 6), params)
    torch.testing.assert_close(mixed.images, their_images)
    torch.testing.assert_close(mixed.targets, their_targets)


def torchvision_pairs(count: int) -> Tensor:
    """Torchvision mixes each image with the one before it."""
    rows = torch.arange(count)
    return torch.stack([rows, rows.roll(1)], dim=1)


# ---------------------------------------------------------------------- CutMix


def cutmix_params(boxes: list[list[int]]) -> CutMixParams:
    return CutMixParams(torchvision_pairs(len(boxes)), torch.tensor(boxes))


BOXES = [[0, 3, 0, 4], [2, 8, 5, 10], [0, 8, 0, 10], [4, 4, 2, 7], [1, 2, 9, 10], [3, 7, 1, 6]]


def test_cutmix_pixel_by_pixel() -> None:
    images, labels = batch()
    mixed = make("cutmix", 6).mix(images, soft_targets(labels, 6), cutmix_params(BOXES))
    for b, (top, bottom, left, right) in enumerate(BOXES):
        pasted = 0
        for y in range(8):
            for x in range(10):
                inside = top <= y < bottom and left <= x < right
                pasted += inside
                source = images[b - 1 if inside else b]
                assert torch.equal(mixed.images[b, :, y, x], source[:, y, x])
        label = [0.0] * 6
        label[b] += 1 - pasted / 80
        label[b - 1] += pasted / 80
        assert mixed.targets[b].tolist() == pytest.approx(label, abs=1e-6)
        assert mixed.lam[b].tolist() == pytest.approx([1 - pasted / 80, pasted / 80])


def test_cutmix_masks_match_its_pixels() -> None:
    images, targets = soft_batch()
    mixed = make("cutmix", 6).mix(images, targets, cutmix_params(BOXES))
    assert_mixed(mixed, images, targets)


def test_cutmix_equals_torchvisions() -> None:
    images, labels = batch()
    torch.manual_seed(0)
    theirs = tv.CutMix(num_classes=6)
    boxes = set()
    for _ in range(20):
        params = theirs.make_params([images])
        x1, y1, x2, y2 = params["box"]
        boxes.add(params["box"])
        their_images = theirs.transform(images, {"labels": labels, "batch_size": 6, **params})
        their_targets = theirs.transform(labels, {"labels": labels, **params})
        mixed = make("cutmix", 6).mix(
            images, soft_targets(labels, 6), cutmix_params([[y1, y2, x1, x2]] * 6)
        )
        assert torch.equal(mixed.images, their_images)
        torch.testing.assert_close(mixed.targets, their_targets)
    assert len(boxes) > 10


def test_boxes_are_clipped_by_hand() -> None:
    """Areas (k/32)² have exact square roots, so integers give the same boxes."""
    height, width = 32, 24
    sides = torch.arange(33)
    lam = 1 - (sides / 32) ** 2
    boxes = draw_box(lam, height, width, rng())
    centers = rng()
    center_y = torch.randint(height, (33,), generator=centers).tolist()
    center_x = torch.randint(width, (33,), generator=centers).tolist()
    for k, y, x, box in zip(range(33), center_y, center_x, boxes.tolist(), strict=True):
        half_h, half_w = k // 2, (24 * k // 32) // 2
        assert box == [
            max(y - half_h, 0),
            min(y + half_h, height),
            max(x - half_w, 0),
            min(x + half_w, width),
        ]


@pytest.mark.parametrize("per_sample", [False, True])
def test_cutmix_lam_is_the_fraction_of_pixels(per_sample: bool) -> None:
    """With black and white images, the mean of a mix is the weight of the white one."""
    images = torch.zeros(30, 1, 9, 13)
    images[::2] = 1
    method = make("cutmix", 30, options={"per_sample": per_sample})
    params = method.make_params(images.shape, rng(5), 0)
    mixed = method.mix(images, soft_targets(torch.arange(30), 30), params)
    white = images[mixed.perm].mean(dim=(2, 3, 4))
    recounted = mixed.images.mean(dim=(1, 2, 3))
    torch.testing.assert_close(recounted, (mixed.lam * white).sum(dim=1))
    assert (len(params.box.unique(dim=0)) > 1) == per_sample
    torch.testing.assert_close(mixed.targets.sum(dim=1), torch.ones(30))


def expected_fraction_outside(size: int) -> float:
    """Exact mean of CutMix's λ for λ₀ ~ U(0, 1), over box sides k and centers c."""
    outside = 1.0
    for k in range(size):
        half = k // 2
        length = sum(min(c + half, size) - max(c - half, 0) for c in range(size)) / size
        outside -= ((k + 1) ** 2 - k**2) / size**2 * (length / size) ** 2
    return outside


def test_mean_lam_of_clipped_cutmix() -> None:
    expected = expected_fraction_outside(32)
    assert expected == pytest.approx(0.70, abs=0.01)
    box = draw_cutmix(20_000, 32, 32, 1.0, rng(), per_sample=True).box
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    assert 1 - area.double().mean().item() / 32**2 == pytest.approx(expected, abs=0.006)


def test_box_mask_of_an_empty_box_is_empty() -> None:
    assert not box_mask(torch.tensor([[3, 3, 0, 8]]), 8, 8).any()


# ---------------------------------------------------------------------- every input-mixing method


def mix_function(name: str) -> Callable[..., Mixed]:
    """The function of `adautomix.mix` for a method."""
    function: Callable[..., Mixed] = getattr(adautomix.functional, name.replace("+", "_"))
    return function


@pytest.mark.parametrize("name", INPUT_MIXING)
def test_inputs_are_not_changed(name: str) -> None:
    images, targets = soft_batch()
    kept = images.clone(), targets.clone()
    mixed = mix_function(name)(images, targets, num_classes=6, generator=rng())
    mixed.images.mul(2)
    assert torch.equal(images, kept[0])
    assert torch.equal(targets, kept[1])


@pytest.mark.parametrize("name", INPUT_MIXING)
def test_one_hot_labels_mix_like_class_indices(name: str) -> None:
    images, labels = batch()
    mix = mix_function(name)
    hard = mix(images, labels, num_classes=6, generator=rng())
    soft = mix(images, soft_targets(labels, 6), num_classes=6, generator=rng())
    assert torch.equal(hard.images, soft.images)
    assert torch.equal(hard.targets, soft.targets)
    torch.testing.assert_close(hard.targets.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(hard.lam.sum(dim=1), torch.ones(6))


@pytest.mark.parametrize("name", INPUT_MIXING)
def test_bfloat16_images(name: str) -> None:
    images, labels = batch()
    mix = mix_function(name)
    half = mix(images.bfloat16(), labels, num_classes=6, generator=rng())
    full = mix(images, labels, num_classes=6, generator=rng())
    assert half.images.dtype == torch.bfloat16
    torch.testing.assert_close(half.images.float(), full.images, atol=0.01, rtol=0)
    assert torch.equal(half.targets, full.targets)


def test_vanilla_returns_the_batch() -> None:
    images, targets = soft_batch()
    vanilla = make("vanilla", 6)
    mixed = vanilla.mix(images, targets, vanilla.make_params(images.shape, rng(), 0))
    assert torch.equal(mixed.images, images)
    assert torch.equal(mixed.targets, targets)
    assert mixed.perm[:, 0].tolist() == list(range(6))


@pytest.mark.parametrize("name", INPUT_MIXING)
def test_loss_is_the_soft_cross_entropy_of_the_mix(name: str) -> None:
    images, labels = toy_images(10)
    student = tiny_classifier().eval()
    method = make(name, label_smoothing=0.1)
    losses = method.losses(images, labels, student, None, step=3)
    targets = soft_targets(labels, CLASSES)
    params = method.params_for_step(images.shape, 3)
    mixed = method.mix_batch(images, targets, student, None, params)
    expected = cross_entropy_by_hand(student(mixed.images), mixed.targets, 0.1)
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-5)
    accuracy = mixture_accuracy(student(mixed.images), mixed.targets)
    assert losses["mixture_accuracy"].item() == accuracy.item()


# ---------------------------------------------------------------------- loss and labels


def cross_entropy_by_hand(logits: Tensor, targets: Tensor, smoothing: float) -> float:
    """-Σ_k t_k log p_k in plain floats, with t = (1 - ε) y + ε/K, mean over the rows."""
    total = 0.0
    for row, label in zip(logits.tolist(), targets.tolist(), strict=True):
        normalizer = math.log(sum(math.exp(value) for value in row))
        for value, target in zip(row, label, strict=True):
            smooth = (1 - smoothing) * target + smoothing / len(row)
            total -= smooth * (value - normalizer)
    return total / len(logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_soft_cross_entropy_with_label_smoothing(smoothing: float) -> None:
    logits = torch.randn(7, 4, generator=rng())
    targets = torch.rand(7, 4, generator=rng(1)).softmax(dim=1)
    method = make("vanilla", 4, label_smoothing=smoothing)
    expected = cross_entropy_by_hand(logits, targets, smoothing)
    assert method.cross_entropy(logits, targets).item() == pytest.approx(expected, rel=1e-5)
    assert method.cross_entropy(logits.bfloat16(), targets).dtype == torch.float32


def test_mixture_accuracy_by_hand() -> None:
    logits = torch.tensor([[5.0, 4, 3, 2], [5, 4, 3, 2], [5, 4, 3, 2], [1, 2, 3, 4]])
    targets = torch.tensor(
        [
            [0.0, 0.7, 0.3, 0],  # two classes, so the top two count: class 1
            [0, 0, 0.6, 0.4],  # neither of them in the top two
            [0.5, 0.2, 0.3, 0],  # all three in the top three
            [0, 0, 0, 1],  # plain accuracy
        ]
    )
    accuracy = mixture_accuracy(logits.requires_grad_(), targets)
    assert accuracy.item() == pytest.approx((0.7 + 0 + 1 + 1) / 4)
    assert not accuracy.requires_grad


def test_mixture_accuracy_of_hard_labels_is_accuracy() -> None:
    logits = torch.randn(200, 5, generator=rng())
    labels = torch.randint(5, (200,), generator=rng(1))
    accuracy = (logits.argmax(dim=1) == labels).float().mean()
    assert mixture_accuracy(logits, soft_targets(labels, 5)).item() == pytest.approx(
        accuracy.item()
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_hard_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    targets = soft_targets(torch.tensor([2, 0], dtype=dtype), 3)
    assert targets.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert targets.dtype == torch.float32


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown method 'cutmx': did you mean 'cutmix'"):
        find_method("cutmx")
    with pytest.raises(UsageError, match="adautomix methods"):
        find_method("zzzzzz")


# ---------------------------------------------------------------------- functions for any loop


def test_mix_functions_take_the_settings_of_their_method() -> None:
    images, labels = batch()
    mixed = adautomix.functional.mixup(
        images, labels, num_classes=6, generator=rng(), alpha=0.4, per_sample=True
    )
    params = make("mixup", 6, options={"alpha": 0.4, "per_sample": True}).make_params(
        images.shape, rng(), 0
    )
    assert torch.equal(mixed.lam, params.lam)
    assert torch.equal(mixed.perm, params.perm)


def test_mix_without_a_generator_uses_the_global_one() -> None:
    images, labels = batch()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        one = adautomix.functional.cutmix(images, labels, num_classes=6)
        other = adautomix.functional.cutmix(images, labels, num_classes=6)
    known = adautomix.functional.cutmix(images, labels, num_classes=6, generator=rng(5))
    assert torch.equal(one.images, known.images)
    assert not torch.equal(one.images, other.images)


def test_wrong_settings_of_a_mix_are_named() -> None:
    images, labels = batch()
    with pytest.raises(UsageError, match=r"cutmix\.alpha = -1.*greater than 0"):
        adautomix.functional.cutmix(images, labels, num_classes=6, alpha=-1)


# ---------------------------------------------------------------------- random N of AdAutoMix


def test_random_n_takes_every_value() -> None:
    method = small_adautomix(n=4, random_n=True)
    images, _ = batch()
    counts = [0] * 5
    for step in range(300):
        params = method.params_for_step(images.shape, step)
        assert isinstance(params, AdAutoMixParams)
        assert params.classifier_perm.shape == params.generator_lam.shape
        counts[params.classifier_perm.shape[1]] += 1
    assert counts[:2] == [0, 0]
    assert min(counts[2:]) > 70
