"""Saliency maps and the methods that are guided by them, recomputed image by image."""

import copy
import functools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from tiny import CLASSES, TinyClassifier, gradients_of, state_of, tiny_classifier, toy_images
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods import attentivecutmix as attentivecutmix_module
from adautomix.methods.adautomix import AdAutoMix
from adautomix.methods.attentivecutmix import AttentiveCutMix, AttentiveCutMixDraw, largest
from adautomix.methods.base import (
    Method,
    Mixed,
    Sources,
    cells_to_pixels,
    draw_partners,
    soft_targets,
)
from adautomix.methods.cutmix import CutMix, boxes_around
from adautomix.methods.guidedmixup import (
    GuidedMixup,
    GuidedMixupDraw,
    distant_partners,
    spectral_saliency,
)
from adautomix.methods.saliency import (
    blurred,
    fine_grained,
    gradient_saliency,
    peaks,
    resized,
    shares,
    spectral_residual,
    to_gray,
)
from adautomix.methods.saliencymix import SaliencyMix, SaliencyMixDraw
from adautomix.methods.snapmix import (
    SnapMix,
    SnapMixDraw,
    activation_maps,
    draw_snapmix,
    percent_maps,
    resized_boxes,
)
from adautomix.methods.sumix import SUMix, corrected_lam, semantic_distance
from adautomix.models import build_model
from adautomix.training.teacher import Teacher

SIZE = 16
COUNT = 7
EVERY: list[tuple[type[Method], dict[str, Any]]] = [
    (SaliencyMix, {}),
    (SaliencyMix, {"detector": "spectral_residual", "per_sample": True}),
    (AttentiveCutMix, {}),
    (AttentiveCutMix, {"alpha": 2.0, "grid": 4}),
    (SnapMix, {}),
    (SnapMix, {"per_sample": True}),
    (GuidedMixup, {"prob": 1.0}),
    (GuidedMixup, {"prob": 0.0}),
    (GuidedMixup, {"prob": 1.0, "saliency": "gradient"}),
    (SUMix, {"options": {"per_sample": True}}),
    (SUMix, {"mix": "mixup"}),
]
each = pytest.mark.parametrize(
    ("cls", "settings"), EVERY, ids=[f"{cls.name}-{settings}" for cls, settings in EVERY]
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@functools.cache
def built() -> Any:
    """A small ResNet; its heads' weights are large enough to tell its classes apart."""
    model = build_model(
        "resnet18",
        CLASSES,
        stem="cifar",
        width=0.125,
        image_size=SIZE,
        generator_seed=1,
        options={"zero_init_last": False},
    )
    for head in model.heads.values():
        nn.init.normal_(head.weight, generator=rng(1))  # type: ignore[arg-type]
    return model


def network() -> Any:
    return copy.deepcopy(built())


@pytest.fixture(scope="module")
def student() -> Any:
    return network()


@pytest.fixture(scope="module")
def teacher(student: Any) -> Any:
    return Teacher(student).model


def make(cls: type[Method], model: Any = None, smoothing: float = 0.0, **settings: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(
            cls.Settings(**settings), num_classes=CLASSES, model=model, label_smoothing=smoothing
        )


def batch(count: int = COUNT) -> tuple[Tensor, Tensor]:
    """Images with a coloured square, and soft labels that no two of them share."""
    images, _ = toy_images(count, size=SIZE)
    return images, torch.rand(count, CLASSES, generator=rng(2)).softmax(dim=1)


def sample(cls: type[Method], settings: dict[str, Any], model: Any, count: int = COUNT) -> Mixed:
    method = make(cls, model, **settings)
    images, targets = batch(count)
    draw = method.draw(images.shape, rng(), 0)
    mixed: Mixed = method.sample(images, targets, model, Teacher(model).model, draw)
    return mixed


# ---------------------------------------------------------------------- maps from pixels


def gray_by_hand(image: Tensor) -> np.ndarray[Any, Any]:
    red, green, blue = image.double().numpy()
    return np.asarray(0.299 * red + 0.587 * green + 0.114 * blue)


def spectral_residual_by_hand(gray: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    spectrum = np.fft.fft2(gray)
    log, phase = np.log(np.abs(spectrum)), np.angle(spectrum)
    padded = np.pad(log, 1, mode="edge")
    residual = np.empty_like(log)
    for y in range(log.shape[0]):
        for x in range(log.shape[1]):
            residual[y, x] = log[y, x] - padded[y : y + 3, x : x + 3].mean()
    return np.abs(np.fft.ifft2(np.exp(residual + 1j * phase)))


def test_spectral_residual_by_hand() -> None:
    images = torch.rand(3, 3, 12, 20, generator=rng())
    maps = spectral_residual(images, size=64)
    assert maps.shape == (3, 12, 20)
    for image, found in zip(images, maps, strict=True):
        by_hand = spectral_residual_by_hand(gray_by_hand(image))
        np.testing.assert_allclose(found.numpy(), by_hand, rtol=2e-3, atol=1e-5)


def test_spectral_residual_shrinks_what_is_larger() -> None:
    images = torch.rand(2, 3, 40, 70, generator=rng())
    maps = spectral_residual(images, size=32)
    assert maps.shape == (2, 32, 32)
    small = resized(to_gray(images), 32, 32)
    torch.testing.assert_close(maps, spectral_residual(small[:, None].expand(-1, 3, -1, -1), 32))


def test_spectral_residual_does_not_depend_on_the_scale() -> None:
    images = torch.rand(2, 3, 16, 16, generator=rng())
    one, other = (shares(spectral_residual(images * scale, 64)) for scale in (1.0, 50.0))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def surrounding_mean_by_hand(gray: np.ndarray[Any, Any], y: int, x: int, half: int) -> float:
    height, width = gray.shape
    box = gray[max(y - half + 1, 0) : y + half + 1, max(x - half + 1, 0) : x + half + 1]
    assert box.size <= height * width
    return float((box.sum() - gray[y, x]) / (box.size - 1))


def fine_grained_by_hand(gray: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    for axis in (0, 1, 0, 1):
        padded = np.pad(gray, [(int(axis == 0),) * 2, (int(axis == 1),) * 2], mode="reflect")
        before, behind = (np.roll(padded, step, axis) for step in (1, -1))
        smooth = (before + 2 * padded + behind) / 4
        gray = smooth[1:-1] if axis == 0 else smooth[:, 1:-1]
    brighter, darker = np.zeros_like(gray), np.zeros_like(gray)
    for half in (12, 24, 48, 28, 56, 112):
        for y in range(gray.shape[0]):
            for x in range(gray.shape[1]):
                contrast = gray[y, x] - surrounding_mean_by_hand(gray, y, x, half)
                brighter[y, x] += max(contrast, 0)
                darker[y, x] += max(-contrast, 0)
    return np.asarray(brighter / brighter.max() + darker / darker.max())


def test_fine_grained_by_hand() -> None:
    images = torch.rand(2, 3, 17, 40, generator=rng())
    for image, found in zip(images, fine_grained(images), strict=True):
        by_hand = fine_grained_by_hand(gray_by_hand(image))
        np.testing.assert_allclose(found.numpy(), by_hand, rtol=1e-3, atol=1e-4)


# What OpenCV 5.0's StaticSaliencyFineGrained gives for `opencvs_image`, every fourth pixel.
OPENCV = [
    [0.52, 0.52, 0.49, 0.46, 0.45, 0.42, 0.38, 0.36, 0.35, 0.31],
    [0.37, 0.35, 0.32, 0.29, 0.27, 0.25, 0.15, 0.18, 0.15, 0.16],
    [0.23, 0.21, 0.18, 0.15, 0.13, 0.10, 0.91, 1.00, 0.05, 0.05],
    [0.10, 0.13, 0.05, 0.01, 0.01, 0.04, 0.11, 0.12, 0.09, 0.11],
    [0.04, 0.96, 0.02, 0.09, 0.09, 0.12, 0.14, 0.15, 0.17, 0.18],
    [0.13, 0.14, 0.16, 0.18, 0.19, 0.21, 0.24, 0.25, 0.26, 0.28],
]


def opencvs_image() -> Tensor:
    y, x = torch.meshgrid(torch.arange(24), torch.arange(40), indexing="ij")
    image = torch.stack([90 + 2 * x + y, 60 + 3 * y, 200 - x - 2 * y])
    image[:, 7:13, 25:33] += torch.tensor([60, 90, 20])[:, None, None]
    image[:, 16:20, 4:9] -= torch.tensor([40, 50, 90])[:, None, None]
    return image.clamp(0, 255)[None]


def test_fine_grained_is_opencvs_up_to_its_roundings() -> None:
    maps = fine_grained(opencvs_image())
    torch.testing.assert_close(maps[0, 2::4, 2::4], torch.tensor(OPENCV), atol=0.025, rtol=0)
    assert peaks(maps).tolist() == [[10, 30]]


def test_fine_grained_does_not_depend_on_scale_and_offset() -> None:
    images = torch.rand(2, 3, 16, 24, generator=rng())
    torch.testing.assert_close(
        fine_grained(images), fine_grained(5 * images - 2), atol=1e-4, rtol=0
    )


def test_maps_of_a_constant_image_are_finite() -> None:
    images = torch.full((2, 3, 16, 16), 0.3)
    assert torch.isfinite(fine_grained(images)).all()
    assert torch.isfinite(spectral_saliency(images)).all()


def test_peaks_are_rows_and_columns() -> None:
    maps = torch.zeros(3, 5, 9)
    maps[0, 4, 2] = maps[1, 0, 8] = maps[2, 3, 0] = 1
    assert peaks(maps).tolist() == [[4, 2], [0, 8], [3, 0]]


def test_shares_sum_to_one_and_are_uniform_where_there_is_nothing() -> None:
    maps = torch.rand(4, 3, 5, generator=rng())
    maps[1] = 0
    maps[2, 0, 0] = float("inf")
    maps[3, 1, 1] = float("nan")
    found = shares(maps)
    torch.testing.assert_close(found.sum(dim=(1, 2)), torch.ones(4))
    torch.testing.assert_close(found[0], maps[0] / maps[0].sum())
    assert torch.equal(found[1:], torch.full((3, 3, 5), 1 / 15))


def test_blur_is_a_mirrored_gaussian() -> None:
    maps = torch.rand(2, 9, 11, generator=rng())
    weights = np.exp(-0.5 * (np.arange(-3, 4) / 3.0) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    for before, after in zip(maps, blurred(maps, 7, 3.0), strict=True):
        padded = np.pad(before.numpy(), 3, mode="reflect")
        for y in range(9):
            for x in range(11):
                by_hand = (padded[y : y + 7, x : x + 7] * kernel).sum()
                assert after[y, x].item() == pytest.approx(by_hand, abs=1e-5)


def test_maps_do_not_lose_precision_under_autocast() -> None:
    images = torch.rand(2, 3, 16, 16, generator=rng())
    plain = spectral_saliency(images), fine_grained(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = spectral_saliency(images), fine_grained(images)
    for one, other in zip(plain, mixed, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


# ---------------------------------------------------------------------- maps from gradients


def test_gradient_saliency_by_finite_differences() -> None:
    """Of a network in float64, pixel by pixel; batch norm in evaluation mode."""
    model = tiny_classifier().double().eval()
    images, targets = batch(2)
    images = images[:, :, :8, :8].double()
    found = gradient_saliency(model, images, targets.double())
    slopes = torch.zeros_like(images)
    for place in np.ndindex(*images.shape):
        step = torch.zeros_like(images)
        step[place] = 1e-5
        ends = [
            F.cross_entropy(model(images + sign * step), targets.double(), reduction="sum")
            for sign in (1, -1)
        ]
        slopes[place] = (ends[0] - ends[1]).item() / 2e-5
    by_hand = slopes.square().mean(dim=1).sqrt()
    by_hand /= by_hand.sum(dim=(1, 2), keepdim=True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, by_hand.float(), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_gradient_saliency_leaves_no_trace(training: bool) -> None:
    model = tiny_classifier(dropout=0.5).train(training)
    model.bn2.eval()
    modes = [module.training for module in model.modules()]
    kept, images = state_of(model), batch()[0]
    images.requires_grad_()
    before = torch.get_rng_state()
    with torch.no_grad():
        found = gradient_saliency(model, images, batch()[1])
    assert not found.requires_grad
    assert torch.equal(before, torch.get_rng_state()), "dropout is off"
    assert images.grad is None
    assert all(gradient is None for gradient in gradients_of(model).values())
    assert [module.training for module in model.modules()] == modes
    assert all(module.track_running_stats for module in (model.bn1, model.bn2))
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name]), name


def test_gradient_saliency_is_that_of_the_head_asked_for() -> None:
    model, (images, targets) = tiny_classifier(), batch()
    clean, mixed = (gradient_saliency(model, images, targets, head) for head in ("clean", "mixed"))
    assert torch.equal(clean, gradient_saliency(model, images, targets))
    assert not torch.allclose(clean, mixed)


def test_gradient_saliency_of_an_image_alone_is_the_same() -> None:
    model, (images, targets) = tiny_classifier().eval(), batch()
    together = gradient_saliency(model, images, targets)
    alone = [gradient_saliency(model, images[b : b + 1], targets[b : b + 1]) for b in range(COUNT)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(together.sum(dim=(1, 2)), torch.ones(COUNT))


def test_gradient_saliency_under_autocast_and_compiled() -> None:
    model, (images, targets) = tiny_classifier(), batch()
    plain = gradient_saliency(model, images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        half = gradient_saliency(model, images, targets)
    assert half.dtype == torch.float32
    correlation = torch.corrcoef(torch.stack([plain.flatten(), half.flatten()]))[0, 1]
    assert correlation > 0.99
    compiled = torch.compile(gradient_saliency, backend="eager")
    torch.testing.assert_close(compiled(model, images, targets), plain, atol=1e-6, rtol=1e-3)


def test_gradient_saliency_of_a_flat_loss_is_uniform() -> None:
    model, (images, targets) = tiny_classifier(), batch()
    nn.init.zeros_(model.heads["clean"].weight)
    found = gradient_saliency(model, images, targets)
    assert torch.equal(found, torch.full_like(found, 1 / SIZE**2))


# ---------------------------------------------------------------------- SaliencyMix


def test_saliencymix_pixel_by_pixel() -> None:
    images, targets = torch.rand(5, 3, 14, 20, generator=rng()), torch.eye(5)
    shares_of_box = torch.tensor([0.3, 0.05, 1.0, 0.0, 0.7])
    draw = SaliencyMixDraw(
        draw_partners(5, rng(4)), torch.stack([1 - shares_of_box, shares_of_box], dim=1)
    )
    mixed = make(SaliencyMix).mix(images, targets, draw)
    assert mixed.masks is not None
    for b in range(5):
        own, partner = draw.perm[b].tolist()
        saliency = fine_grained_by_hand(gray_by_hand(images[partner]))
        row, column = divmod(int(saliency.argmax()), 20)
        cut = math.sqrt(shares_of_box[b].item())
        half_h, half_w = int(14 * cut) // 2, int(20 * cut) // 2
        pasted = 0
        for y in range(14):
            for x in range(20):
                inside = row - half_h <= y < row + half_h and column - half_w <= x < column + half_w
                pasted += inside
                source = images[partner if inside else own]
                assert torch.equal(mixed.images[b, :, y, x], source[:, y, x])
        assert mixed.lam[b].tolist() == pytest.approx([1 - pasted / 280, pasted / 280])
        label = (1 - pasted / 280) * targets[own] + pasted / 280 * targets[partner]
        torch.testing.assert_close(mixed.targets[b], label)


def test_saliencymix_boxes_are_cutmixs_around_another_place() -> None:
    center = torch.tensor([[3, 9], [13, 0], [7, 10]])
    boxes = boxes_around(center, torch.tensor([0.25, 0.25, 1.0]), 14, 20)
    assert boxes.tolist() == [[0, 6, 4, 14], [10, 14, 0, 5], [0, 14, 0, 20]]


def test_saliencymix_spectral_peak_is_where_the_square_is() -> None:
    images = 0.02 * torch.randn(8, 3, 32, 32, generator=rng())
    corners = torch.randint(2, 24, (8, 2), generator=rng(3))
    for image, (y, x) in zip(images, corners.tolist(), strict=True):
        image[:, y : y + 5, x : x + 5] += 1
    tiny_box = torch.tensor([[0.99, 0.01]]).expand(8, 2)
    draw = SaliencyMixDraw(draw_partners(8, rng()), tiny_box)
    method = make(SaliencyMix, detector="spectral_residual")
    mixed = method.mix(images, torch.eye(8)[:, :CLASSES], draw)
    assert mixed.masks is not None
    where = peaks(mixed.masks[:, 1])  # the first pixel of the box: its centre less one
    distance = (where + 1 - (corners[draw.perm[:, 1]] + 2)).abs().amax(dim=1)
    assert (distance <= 4).all()


def test_saliencymix_mixes_as_many_batches_as_asked() -> None:
    method = make(SaliencyMix, prob=0.3)
    mixed = [bool(method.draw((4, 3, 8, 8), rng(k), 0).lam[0, 1] > 0) for k in range(400)]
    assert sum(mixed) / 400 == pytest.approx(0.3, abs=0.08)
    lam = torch.cat(
        [
            make(SaliencyMix, per_sample=True, alpha=0.5).draw((500, 3, 8, 8), rng(k), 0).lam[:, 0]
            for k in range(4)
        ]
    )
    assert scipy.stats.kstest(lam.numpy(), scipy.stats.beta(0.5, 0.5).cdf).pvalue > 0.001


# ---------------------------------------------------------------------- Attentive CutMix


def test_attentivecutmix_cell_by_cell(teacher: Any) -> None:
    """28 pixels: the 7 × 7 cells have 4 × 4 pixels each."""
    images, targets = torch.rand(5, 3, 28, 28, generator=rng()), torch.eye(5)
    method = make(AttentiveCutMix, network(), patches=6)
    draw = AttentiveCutMixDraw(draw_partners(5, rng(1)), torch.tensor([6, 1, 49, 13, 6]))
    mixed = method.sample(images, targets, None, teacher, draw)
    attention = method.look(images, targets, None, teacher, draw)["attention"]
    for b in range(5):
        own, partner = draw.perm[b].tolist()
        count = int(draw.count[b])
        order = sorted(range(49), key=lambda cell: -attention[partner].flatten()[cell].item())
        chosen = set(order[:count])
        for cell in range(49):
            y, x = 4 * (cell // 7), 4 * (cell % 7)
            source = images[partner if cell in chosen else own]
            tile = (b, slice(None), slice(y, y + 4), slice(x, x + 4))
            assert torch.equal(mixed.images[tile], source[tile[1:]])
        assert mixed.lam[b].tolist() == pytest.approx([1 - count / 49, count / 49])
        label = (1 - count / 49) * targets[own] + count / 49 * targets[partner]
        torch.testing.assert_close(mixed.targets[b], label)


def test_attention_is_the_mean_of_the_last_map(student: Any) -> None:
    images, targets = batch()
    teacher = Teacher(student).model.eval()
    seen = make(AttentiveCutMix, student, grid=2, patches=1).look(
        images, targets, None, teacher, None
    )
    with torch.no_grad():
        last = teacher.backbone.forward_features(images)
    assert last.shape[2:] == (2, 2)
    torch.testing.assert_close(seen["attention"], last.mean(dim=1))


def test_attentivecutmix_leaves_the_teacher_alone(student: Any) -> None:
    teacher = Teacher(student, "own").model
    kept, modes = state_of(teacher), [module.training for module in teacher.modules()]
    images, targets = batch()
    make(AttentiveCutMix, student).look(images, targets, None, teacher, None)
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())
    assert [module.training for module in teacher.modules()] == modes


def test_exactly_as_many_cells_even_where_all_are_alike() -> None:
    chosen = largest(torch.zeros(4, 7, 7), torch.tensor([1, 6, 30, 49]))
    assert chosen.flatten(1).sum(dim=1).tolist() == [1, 6, 30, 49]


def test_cells_cover_sizes_that_they_do_not_divide() -> None:
    cells = torch.arange(9).view(1, 3, 3)
    pixels = cells_to_pixels(cells, 7, 5)
    for y in range(7):
        for x in range(5):
            assert pixels[0, y, x] == cells[0, 3 * y // 7, 3 * x // 5]


def test_attentivemix_counts_follow_beta() -> None:
    method = make(AttentiveCutMix, network(), alpha=2.0)
    counts = [int(method.draw((4, 3, 8, 8), rng(k), 0).count[0]) for k in range(600)]
    assert min(counts) >= 1
    beta = scipy.stats.beta(2, 2)
    for k in (7, 16, 25, 37):
        below = sum(count < k for count in counts) / 600
        assert below == pytest.approx(beta.cdf(k / 49), abs=0.06)
    fixed = make(AttentiveCutMix, network()).draw((4, 3, 8, 8), rng(), 0)
    assert fixed.count.tolist() == [6] * 4


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretrained networks are built with drawn weights."""
    asked: list[str] = []

    def untrained(name: str, classes: int, *, pretrained: bool, **options: Any) -> Any:
        asked.append(f"{name} {pretrained}")
        return build_model(name, classes, **options)

    monkeypatch.setattr(attentivecutmix_module, "build_model", untrained)
    return asked


def test_a_network_of_its_own_attends(no_downloads: list[str]) -> None:
    images, targets = batch()
    before = torch.get_rng_state()
    method = make(AttentiveCutMix, None, network="resnet18", network_size=64, grid=2, patches=1)
    assert torch.equal(before, torch.get_rng_state())
    assert no_downloads == ["resnet18 True"]
    attention = method.look(images, targets, None, None, None)["attention"]
    large = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    own = method._network[0]
    with torch.no_grad():
        expected = own.backbone.forward_features(large).mean(dim=1)
    torch.testing.assert_close(attention, expected, atol=1e-5, rtol=1e-4)
    assert not list(method.parameters())
    assert not method.state_dict()
    assert not any(weight.requires_grad for weight in own.parameters())
    method.train()
    assert not own.training
    method.to(torch.float64)
    assert next(own.parameters()).dtype == torch.float64, "it moves with the method"


# ---------------------------------------------------------------------- SnapMix

BOXES = [[0, 6, 2, 9], [3, 4, 0, 16], [0, 16, 0, 16], [5, 12, 7, 8], [0, 0, 0, 0]]
TAKEN = [[4, 14, 1, 5], [0, 8, 8, 12], [2, 5, 3, 11], [0, 16, 0, 16], [0, 0, 0, 0]]


def snapmix_draw() -> SnapMixDraw:
    return SnapMixDraw(draw_partners(5, rng(3)), torch.tensor(BOXES), torch.tensor(TAKEN))


def test_snapmix_by_cropping_and_resizing(student: Any) -> None:
    images, targets = toy_images(5, size=SIZE)[0], torch.eye(5)
    maps = torch.rand(5, 4, 4, generator=rng(6))
    draw = snapmix_draw()
    mixed = make(SnapMix, student).mix(images, targets, draw, maps=maps)
    for b, (box, taken) in enumerate(zip(BOXES, TAKEN, strict=True)):
        own, partner = draw.perm[b].tolist()
        top, bottom, left, right = box
        first, end, begin, stop = taken
        expected = images[own].clone()
        if bottom > top:
            crop = images[partner : partner + 1, :, first:end, begin:stop]
            expected[:, top:bottom, left:right] = F.interpolate(
                crop, (bottom - top, right - left), mode="bilinear", align_corners=True
            )[0]
        torch.testing.assert_close(mixed.images[b], expected, atol=2e-5, rtol=0)
        large = F.interpolate(maps[:, None], (SIZE, SIZE), mode="bilinear")[:, 0]
        percent = [(m - m.min()) / (m - m.min()).sum() for m in large[[own, partner]]]
        weights = [
            1 - percent[0][top:bottom, left:right].sum().item(),
            percent[1][first:end, begin:stop].sum().item(),
        ]
        assert mixed.lam[b].tolist() == pytest.approx(weights, abs=1e-5)
        label = weights[0] * targets[own] + weights[1] * targets[partner]
        torch.testing.assert_close(mixed.targets[b], label, atol=1e-5, rtol=0)
    assert torch.equal(mixed.images[4], images[4])
    assert mixed.lam[4].tolist() == [1, 0]
    assert (mixed.lam.sum(dim=1) - 1).abs().max() > 0.1, "they need not sum to 1"


def test_snapmix_of_a_uniform_map_counts_the_pixels(student: Any) -> None:
    images, targets = toy_images(5, size=SIZE)[0], torch.eye(5)
    mixed = make(SnapMix, student).mix(images, targets, snapmix_draw(), maps=torch.ones(5, 4, 4))
    for lam, box, taken in zip(mixed.lam, BOXES, TAKEN, strict=True):
        areas = [(b[1] - b[0]) * (b[3] - b[2]) / SIZE**2 for b in (box, taken)]
        assert lam.tolist() == pytest.approx([1 - areas[0], areas[1]], abs=1e-5)


def test_a_box_onto_itself_changes_nothing() -> None:
    images = torch.rand(2, 3, 9, 13, generator=rng())
    box = torch.tensor([[2, 7, 3, 11], [0, 9, 0, 13]])
    same = resized_boxes(images, box, box)
    torch.testing.assert_close(same[0, :, 2:7, 3:11], images[0, :, 2:7, 3:11], atol=1e-5, rtol=0)
    torch.testing.assert_close(same[1], images[1], atol=1e-5, rtol=0)
    half = resized_boxes(images.half(), box, box)
    assert half.dtype == torch.float16


def test_snapmix_maps_are_the_classes_logits_place_by_place() -> None:
    """The mean of a class activation map is the class's logit: pooling is linear."""
    model, (images, targets) = network().eval(), batch()
    hard = F.one_hot(torch.arange(COUNT) % CLASSES, CLASSES).float()
    method = make(SnapMix, model)
    maps = method.look(images, hard, model, None, None)["maps"]
    assert maps.shape == (COUNT, 2, 2)
    with torch.no_grad():
        logits = (model(images) - model.heads["clean"].bias)[hard.bool()]
    torch.testing.assert_close(maps.mean(dim=(1, 2)), logits, atol=1e-4, rtol=1e-4)
    soft = method.look(images, targets, model, None, None)["maps"]
    by_class = torch.stack(
        [
            method.look(images, torch.eye(CLASSES)[[k] * COUNT], model, None, None)["maps"]
            for k in range(CLASSES)
        ],
        dim=1,
    )
    expected = (targets[:, :, None, None] * by_class).sum(dim=1)
    torch.testing.assert_close(soft, expected, atol=1e-4, rtol=1e-4)


def test_activation_maps_see_only_what_is_positive() -> None:
    features = torch.randn(2, 3, 4, 4, generator=rng())
    weight, targets = torch.randn(5, 3, generator=rng(1)), torch.eye(5)[[4, 2]]
    with torch.autocast("cpu", torch.bfloat16):
        maps = activation_maps(features, weight, targets)
    for b, label in enumerate((4, 2)):
        by_hand = sum(weight[label, c] * features[b, c].clamp_min(0) for c in range(3))
        assert isinstance(by_hand, Tensor)
        torch.testing.assert_close(maps[b], by_hand)
    torch.testing.assert_close(percent_maps(maps, 8, 8).sum(dim=(1, 2)), torch.ones(2))


def test_snapmix_looks_without_a_trace(student: Any) -> None:
    kept, modes = state_of(student), [module.training for module in student.modules()]
    images, targets = batch()
    seen = make(SnapMix, student).look(images, targets, student, None, None)
    assert not seen["maps"].requires_grad
    assert all(torch.equal(value, kept[name]) for name, value in student.state_dict().items())
    assert [module.training for module in student.modules()] == modes


def test_snapmix_boxes_are_independent_and_empty_together() -> None:
    draw = draw_snapmix(4000, 16, 24, 0.5, rng(), per_sample=True)
    sides = [(b[:, 1] - b[:, 0]).double() for b in (draw.box, draw.source)]
    empty = [(b[:, 1::2] <= b[:, 0::2]).any(dim=1) for b in (draw.box, draw.source)]
    assert torch.equal(empty[0], empty[1])
    assert 0 < empty[0].sum() < 4000
    filled = ~empty[0]
    correlation = torch.corrcoef(torch.stack([side[filled] for side in sides]))[0, 1]
    assert abs(correlation) < 0.06
    shared = draw_snapmix(10, 16, 24, 5.0, rng())
    assert len(shared.box.unique(dim=0)) == 1
    assert not torch.equal(shared.box, shared.source)


# ---------------------------------------------------------------------- GuidedMixup


def test_guidedmixup_pixel_by_pixel() -> None:
    images, targets = torch.rand(5, 3, 12, 16, generator=rng()), torch.eye(5)
    method = make(GuidedMixup, pairing="random", prob=1.0)
    draw = GuidedMixupDraw(draw_partners(5, rng(1)), mixed=True)
    mixed = method.sample(images, targets, None, None, draw)
    assert mixed.masks is not None
    maps = []
    for image in images:
        amplitude = spectral_residual_by_hand(gray_by_hand(image))
        saliency = blurred(blurred(torch.tensor(amplitude)[None], 7, 3.0), 7, 3.0)[0]
        maps.append(saliency / saliency.sum())
    for b, (own, partner) in enumerate(draw.perm.tolist()):
        weight = maps[own] / (maps[own] + maps[partner])
        expected = weight * images[own].double() + (1 - weight) * images[partner].double()
        torch.testing.assert_close(mixed.images[b].double(), expected, atol=1e-4, rtol=0)
        assert mixed.lam[b, 0].item() == pytest.approx(weight.mean().item(), abs=1e-4)
        label = weight.mean() * targets[own] + (1 - weight.mean()) * targets[partner]
        torch.testing.assert_close(mixed.targets[b].double(), label.double(), atol=1e-4, rtol=0)
        assert mixed.lam[b, 0] == mixed.masks[b, 0].mean()


def test_guidedmixup_by_gradients(student: Any) -> None:
    images, targets = batch()
    method = make(GuidedMixup, student, saliency="gradient", prob=1.0)
    draw = method.draw(images.shape, rng(), 0)
    seen = method.look(images, targets, student, None, draw)["saliency"]
    expected = blurred(gradient_saliency(student, images, targets), 7, 3.0)
    torch.testing.assert_close(seen, expected / expected.sum(dim=(1, 2), keepdim=True))


def test_guidedmixup_where_no_image_says_anything_is_half_and_half() -> None:
    images, targets = batch()
    draw = GuidedMixupDraw(draw_partners(COUNT, rng()), mixed=True)
    method = make(GuidedMixup, pairing="random")
    mixed = method.mix(images, targets, draw, saliency=torch.zeros(COUNT, SIZE, SIZE))
    half = (images + images[draw.perm[:, 1]]) / 2
    torch.testing.assert_close(mixed.images, half)


def test_guidedmixup_leaves_the_other_batches_as_they_are() -> None:
    images, targets = batch()
    method = make(GuidedMixup, prob=0.0)
    draw = method.draw(images.shape, rng(), 0)
    assert method.look(images, targets, None, None, draw) == {}
    mixed = method.mix(images, targets, draw)
    assert torch.equal(mixed.images, images)
    assert torch.equal(mixed.targets, targets)
    assert mixed.lam.tolist() == [[1, 0]] * COUNT


@pytest.mark.parametrize(
    ("settings", "share"),
    [({}, 0.5), ({"saliency": "gradient"}, 0.8), ({"prob": 0.2, "saliency": "gradient"}, 0.2)],
)
def test_guidedmixup_mixes_as_many_batches_as_the_paper(
    settings: dict[str, Any], share: float
) -> None:
    method = make(GuidedMixup, **settings)
    mixed = [method.draw((4, 3, 8, 8), rng(k), 0).mixed for k in range(500)]
    assert sum(mixed) / 500 == pytest.approx(share, abs=0.07)


def greedy_cycle(distance: np.ndarray[Any, Any]) -> list[int]:
    """The paper's partners: the farthest pair, then from each image to the farthest left."""
    distance = distance.copy()
    count = len(distance)
    np.fill_diagonal(distance, -np.inf)
    first, image = divmod(int(distance.argmax()), count)
    partner = [0] * count
    partner[first] = image
    distance[:, first] = -np.inf
    for _ in range(count - 2):
        partner[image] = int(distance[image].argmax())
        distance[:, image] = -np.inf
        image = partner[image]
    partner[image] = first
    return partner


def photographs(count: int, seed: int) -> Tensor:
    """Smooth noise with a few edges in it: the statistics of small photographs."""
    generator = rng(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    images = F.interpolate(coarse, (32, 32), mode="bilinear")
    corners = torch.randint(24, (count, 3, 2), generator=generator).tolist()
    sizes = torch.randint(3, 14, (count, 3), generator=generator).tolist()
    for image, places, sides in zip(images, corners, sizes, strict=True):
        for (y, x), side in zip(places, sides, strict=True):
            image[:, y : y + side, x : x + side] += torch.randn(3, 1, 1, generator=generator)
    return images + 0.1 * torch.randn(images.shape, generator=generator)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 16, 33, 128])
def test_partners_are_one_cycle_as_distant_as_the_greedy_one(count: int) -> None:
    ratios, gains = [], []
    for seed in range(4):
        maps = shares(blurred(spectral_saliency(photographs(count, seed)), 7, 3.0))
        distance = torch.cdist(maps.flatten(1), maps.flatten(1)).numpy()
        totals = []
        for rounds in (0, 4, 16):
            partner = distant_partners(maps, rounds).tolist()
            cycle, image = [], 0
            for _ in range(count):
                cycle.append(image)
                image = partner[image]
            assert sorted(cycle) == list(range(count))
            assert image == 0
            totals.append(distance[range(count), partner].sum())
        assert totals == sorted(totals), "exchanges never lose"
        greedy = distance[range(count), greedy_cycle(distance)].sum()
        ratios.append(totals[2] / greedy)
        gains.append(totals[2] / totals[0])
    if count > 15:
        assert min(ratios) > 0.96
        assert sum(ratios) / 4 > 0.99
        assert sum(gains) / 4 > 1.05, "the order of the batch is far from the greedy one"


def test_partners_of_one_image() -> None:
    assert distant_partners(torch.rand(1, 4, 4), 16).tolist() == [0]


def test_partners_do_not_depend_on_which_rows_are_mixed() -> None:
    images, targets = batch(8)
    method = make(GuidedMixup, prob=1.0)
    draw = method.draw(images.shape, rng(), 0)
    whole = method.sample(images, targets, None, None, draw)
    part = method.sample(images, targets, None, None, draw.rows(slice(2, 5)))
    assert sorted(whole.perm[:, 1].tolist()) == list(range(8))
    assert torch.equal(part.perm, whole.perm[2:5])


# ---------------------------------------------------------------------- SUMix


class Pooling(TinyClassifier):
    """Predictions that can be recomputed: the pooled features are means of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"clean": nn.Linear(3, CLASSES)})

    def features(self, images: Tensor, tap: int | None = None) -> Any:
        from adautomix.models import Features

        return Features(images.mean(dim=(2, 3)), None)


def softmax(values: list[float]) -> list[float]:
    highest = max(values)
    exponentials = [math.exp(value - highest) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def normalised(values: list[float]) -> list[float]:
    length = math.sqrt(sum(value**2 for value in values))
    return [value / length for value in values]


def sumix_by_hand(
    model: Any, method: Any, images: Tensor, labels: list[int], mixed: Mixed, scale: float
) -> tuple[float, float, list[float]]:
    """Cross-entropy, term of uncertainty, and λ' of the first sources; plain Python floats."""

    def predict(batch: Tensor) -> tuple[list[list[float]], list[list[float]]]:
        with torch.no_grad():
            pooled = model.features(batch).pooled
            doubt = method.uncertainty(pooled).double().tolist()
            return model.logits(pooled).double().tolist(), [normalised(softmax(u)) for u in doubt]

    logits, doubts = predict(images)
    mixed_logits, mixed_doubts = predict(mixed.images)
    total, uncertain, corrected = 0.0, 0.0, []
    for b, (own, partner) in enumerate(mixed.perm.tolist()):
        p_mix = softmax(mixed_logits[b])
        weights, terms = [], []
        for source, other, lam in (
            (own, partner, mixed.lam[b, 0].item()),
            (partner, own, mixed.lam[b, 1].item()),
        ):
            p = softmax(logits[source])
            p[labels[other]] = 0.0
            alpha = [
                scale * value
                for value in normalised(softmax([m - c for m, c in zip(p_mix, p, strict=True)]))
            ]
            weights.append(lam * math.exp(-alpha[labels[source]]))
            beta = [u + v for u, v in zip(doubts[source], mixed_doubts[b], strict=True)]
            like = [math.exp(-(a + u)) for a, u in zip(alpha, beta, strict=True)]
            terms.append(-lam * math.log(softmax(like)[labels[source]]))
        first = weights[0] / sum(weights)
        corrected.append(first)
        total -= first * math.log(p_mix[labels[own]])
        total -= (1 - first) * math.log(p_mix[labels[partner]])
        uncertain += sum(terms)
    return total / len(logits), uncertain / len(logits), corrected


def sumix(**settings: Any) -> tuple[Any, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Pooling()
        nn.init.normal_(model.heads["clean"].weight, std=3.0)  # type: ignore[arg-type]
    method = make(SUMix, model, **settings)
    nn.init.normal_(method.uncertainty.weight, std=3.0, generator=rng(5))
    return method, model


@pytest.mark.parametrize("scale", [None, 0.5, 30.0])
def test_sumix_sample_by_sample(scale: float | None) -> None:
    method, model = sumix(scale=scale, options={"per_sample": True}, gamma=0.7)
    images, _ = toy_images(COUNT)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    draw = method.draw(images.shape, rng(4), 0)
    sources = Sources(images, soft_targets(labels, CLASSES), {})
    losses = method.terms(sources, model, None, draw)
    mixed = method.mix(images, sources.targets, draw)
    expected = sumix_by_hand(model, method, images, labels.tolist(), mixed, scale or COUNT)
    assert losses["mixed"].item() == pytest.approx(expected[0], rel=1e-4)
    assert losses["uncertainty"].item() == pytest.approx(expected[1], rel=1e-4)
    assert losses["loss"].item() == pytest.approx(expected[0] + 0.7 * expected[1], rel=1e-4)
    assert set(losses) == {"loss", "mixed", "uncertainty", "captured"}
    assert len(set(expected[2])) == COUNT
    apart = max(abs(a - b) for a, b in zip(expected[2], mixed.lam[:, 0].tolist(), strict=True))
    assert apart > 0.01, "λ is corrected"


def test_lam_is_kept_where_the_network_sees_no_difference() -> None:
    labels = torch.eye(CLASSES)[torch.tensor([[0, 1], [2, 2], [4, 0]])]
    lam = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(corrected_lam(lam, torch.zeros(3, 2, CLASSES), labels), lam)
    everywhere = torch.full((3, 2, CLASSES), 1000.0)
    torch.testing.assert_close(corrected_lam(lam, everywhere, labels), lam)


def test_lam_moves_to_the_source_that_the_mix_looks_like() -> None:
    mixed = torch.tensor([[0.9, 0.05, 0.02, 0.02, 0.01]])
    clean = torch.tensor([[[0.9, 0.05, 0.02, 0.02, 0.01], [0.05, 0.9, 0.02, 0.02, 0.01]]])
    labels = torch.eye(CLASSES)[torch.tensor([[0, 1]])]
    alpha = semantic_distance(mixed, clean, labels, 10.0)
    torch.testing.assert_close(alpha.norm(dim=2), torch.full((1, 2), 10.0))
    lam = corrected_lam(torch.tensor([[0.5, 0.5]]), alpha, labels)
    # The mix is of class 0 as much as its first source is: nothing is far there; class 1 of the
    # second source is missing from it, which brings its difference below zero.
    assert lam.sum().item() == pytest.approx(1)
    assert lam[0, 1] > lam[0, 0], "as published: a lower share of the class counts as closer"


def test_soft_labels_average_what_hard_ones_give() -> None:
    alpha = 3 * torch.rand(4, 2, CLASSES, generator=rng())
    labels = torch.rand(4, 2, CLASSES, generator=rng(1)).softmax(dim=2)
    lam = torch.rand(4, 2, generator=rng(2)).softmax(dim=1)
    weights = lam * (labels * (-alpha).exp()).sum(dim=2)
    expected = weights / weights.sum(dim=1, keepdim=True)
    torch.testing.assert_close(corrected_lam(lam, alpha, labels), expected)
    torch.testing.assert_close(corrected_lam(lam, alpha, 3 * labels), expected)
    labels[0, 0] = 0
    assert torch.isfinite(corrected_lam(lam, alpha, labels)).all()


def test_sumix_gradients_go_where_they_should() -> None:
    """α and λ' are held fixed; the doubts teach the second head and the network, not the first."""
    images, labels = toy_images(COUNT)
    gradients = {}
    for gamma in (0.0, 1.0):
        method = make(SUMix, tiny_classifier(), gamma=gamma, scale=1.0)
        model = tiny_classifier()
        losses = method.losses(images, labels, model, None, 0)
        losses["loss"].backward()
        gradients[gamma] = gradients_of(model)
        second = method.uncertainty.weight.grad
        assert second is not None
        assert (second.abs().sum() > 0) == (gamma > 0)
    head = "heads.clean.weight"
    kept, other = (gradients[gamma][head] for gamma in (0.0, 1.0))
    assert kept is not None
    assert other is not None
    torch.testing.assert_close(kept, other)
    first, second = (gradients[gamma]["conv1.weight"] for gamma in (0.0, 1.0))
    assert first is not None
    assert second is not None
    assert not torch.allclose(first, second)


def test_sumix_in_parts_is_sumix_at_once() -> None:
    """Without batch norm's statistics: the partners' doubts keep their gradient."""
    images, targets = batch(6)
    method, model = make(SUMix, tiny_classifier(), scale=2.0), tiny_classifier().eval()
    draw = method.draw(images.shape, rng(), 0)
    whole = Sources(images, targets, {})
    method.terms(whole, model, None, draw)["loss"].backward()
    at_once = gradients_of(model)
    model.zero_grad()
    for own in (slice(0, 2), slice(2, 6)):
        part = Sources(images, targets, {}, own)
        share = (own.stop - own.start) / 6
        (share * method.terms(part, model, None, draw.rows(own))["loss"]).backward()
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, at_once[name], atol=1e-6, rtol=1e-4)


def test_sumix_of_a_large_batch_is_finite() -> None:
    method, model = sumix(scale=5000.0)
    images, labels = toy_images(COUNT)
    losses = method.losses(images, labels, model, None, 0)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])


def test_permuting_lam_changes_the_loss() -> None:
    method, model = sumix(options={"per_sample": True})
    images, labels = toy_images(COUNT)
    draw = method.draw(images.shape, rng(), 0)
    sources = Sources(images, soft_targets(labels, CLASSES), {})
    shuffled = type(draw)(draw.perm, draw.box.flip(0), draw.shared)
    one, other = (method.terms(sources, model, None, d)["loss"].item() for d in (draw, shuffled))
    assert one != pytest.approx(other, abs=1e-4)


def test_sumix_wraps_the_method_asked_for() -> None:
    images, targets = batch()
    method = make(SUMix, tiny_classifier(), mix="cutmix", options={"alpha": 0.3})
    plain = make(CutMix, alpha=0.3)
    mixed = method.mix(images, targets, method.draw(images.shape, rng(), 0))
    assert torch.equal(
        mixed.images, plain.mix(images, targets, plain.draw(images.shape, rng(), 0)).images
    )
    alone = make(SUMix, tiny_classifier(), mix="vanilla")
    losses = alone.losses(images, targets, tiny_classifier(), None, 0)
    assert torch.isfinite(losses["loss"])


# ---------------------------------------------------------------------- errors


def test_what_cannot_be_is_said_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"patches = 50: a grid of 7 has 49 cells"):
        make(AttentiveCutMix, network(), patches=50)
    for cls in (AttentiveCutMix, SnapMix):
        with pytest.raises(UsageError, match=f"{cls.name} looks at a feature map"):
            make(cls, tiny_classifier())
    with pytest.raises(UsageError, match="sumix looks inside"):
        make(SUMix)
    with pytest.raises(UsageError, match=f"sumix.mix = {AdAutoMix.name}: it takes more"):
        SUMix.Settings(mix="adautomix")
    with pytest.raises(UsageError, match="unknown method 'cutmx'"):
        SUMix.Settings(mix="cutmx")
    with pytest.raises(UsageError, match=r"sumix\.options\.alpha = -1"):
        SUMix.Settings(options={"alpha": -1})
    with pytest.raises(UsageError, match="320 channels and its head sees 1280"):
        make(SnapMix, build_model("efficientnet_b0", CLASSES, image_size=32, generator_seed=0))


# ---------------------------------------------------------------------- every method


@each
def test_ledger(cls: type[Method], settings: dict[str, Any], student: Any) -> None:
    mixed = sample(cls, settings, student)
    _, targets = batch()
    labels = torch.einsum("bn,bnk->bk", mixed.lam, targets[mixed.perm])
    torch.testing.assert_close(mixed.targets, labels)
    assert mixed.perm[:, 0].tolist() == list(range(COUNT))
    if cls is not SnapMix:
        torch.testing.assert_close(mixed.lam.sum(dim=1), torch.ones(COUNT))
    if mixed.masks is not None:
        torch.testing.assert_close(mixed.masks.sum(dim=1), torch.ones(COUNT, SIZE, SIZE))
        if cls is not SnapMix:
            torch.testing.assert_close(mixed.masks.mean(dim=(2, 3)), mixed.lam)


@each
def test_some_rows_are_those_rows_of_the_whole(
    cls: type[Method], settings: dict[str, Any], student: Any, teacher: Any
) -> None:
    method, (images, targets) = make(cls, student, **settings), batch()
    draw = method.draw(images.shape, rng(), 0)
    assert all(len(v) == COUNT for v in vars(draw).values() if isinstance(v, Tensor))
    seen = method.look(images, targets, student, teacher, draw)
    assert all(len(value) == COUNT and not value.requires_grad for value in seen.values())
    whole = method.mix(images, targets, draw, **seen)
    part = method.mix(images, targets, draw.rows(slice(1, 4)), **seen)
    torch.testing.assert_close(part.images, whole.images[1:4])
    torch.testing.assert_close(part.targets, whole.targets[1:4])
    torch.testing.assert_close(part.lam, whole.lam[1:4])
    assert torch.equal(part.perm, whole.perm[1:4])


@each
def test_an_image_mixed_with_itself_is_itself(
    cls: type[Method], settings: dict[str, Any], student: Any
) -> None:
    mixed = sample(cls, settings, student, count=1)
    images, targets = batch(1)
    if cls is not SnapMix:  # another box of the same image takes the place
        torch.testing.assert_close(mixed.images, images)
        torch.testing.assert_close(mixed.targets, targets)
    assert torch.isfinite(mixed.images).all()


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images(
    cls: type[Method], settings: dict[str, Any], dtype: torch.dtype, student: Any, teacher: Any
) -> None:
    method, (images, targets) = make(cls, student, **settings), batch()
    draw = method.draw(images.shape, rng(), 0)
    seen = method.look(images, targets, student, teacher, draw)
    images = images.to(dtype)
    half = method.mix(images, targets, draw, **seen)
    full = method.mix(images.float(), targets, draw, **seen)
    assert half.images.dtype == dtype
    assert half.targets.dtype == torch.float32
    torch.testing.assert_close(half.images.float(), full.images, atol=0.03, rtol=0.01)
    torch.testing.assert_close(half.targets, full.targets)


@each
def test_images_keep_their_layout_and_are_left_alone(
    cls: type[Method], settings: dict[str, Any], student: Any, teacher: Any
) -> None:
    method, (images, targets) = make(cls, student, **settings), batch()
    plain = images
    images = images.contiguous(memory_format=torch.channels_last)
    kept = images.clone(), targets.clone()
    draw = method.draw(images.shape, rng(), 0)
    seen = method.look(images, targets, student, teacher, draw)
    mixed = method.mix(images, targets, draw, **seen)
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)
    assert method.mix(plain, targets, draw, **seen).images.is_contiguous()
    mixed.images.mul_(2)
    mixed.targets.mul_(2)
    assert torch.equal(images, kept[0])
    assert torch.equal(targets, kept[1])


@each
def test_draws_depend_on_the_generator_alone(
    cls: type[Method], settings: dict[str, Any], student: Any
) -> None:
    method = make(cls, student, **settings)
    before = torch.get_rng_state()
    one, same, other = (vars(method.draw((40, 3, 16, 16), rng(seed), 0)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    for name, value in one.items():
        assert torch.equal(value, same[name]) if isinstance(value, Tensor) else value == same[name]
    assert not torch.equal(one["perm"], other["perm"])
    shared = [v for k, v in one.items() if k in ("lam", "box", "count")]
    assert all((len(v.unique(dim=0)) > 1) == bool(per_sample(settings)) for v in shared)


def per_sample(settings: dict[str, Any]) -> bool:
    return bool({**settings, **settings.get("options", {})}.get("per_sample"))


@each
def test_training_loss(
    cls: type[Method], settings: dict[str, Any], student: Any, teacher: Any
) -> None:
    """Finite; the student learns, the teacher does not, and labels may be hard."""
    method, images = make(cls, student, smoothing=0.1, **settings), batch()[0]
    labels = torch.arange(COUNT) % CLASSES
    model = network()
    losses = method.losses(images, labels, model, teacher, 0)
    soft = method.losses(images, soft_targets(labels, CLASSES), network(), teacher, 0)
    assert losses["loss"].item() == pytest.approx(soft["loss"].item(), rel=1e-5)
    losses["loss"].backward()
    for name, gradient in gradients_of(model).items():
        used = "heads.mixed" not in name
        assert (gradient is not None) == used, name
        assert gradient is None or torch.isfinite(gradient).all()
    assert all(gradient is None for gradient in gradients_of(teacher).values())
    assert 0 <= losses["captured"].item() <= 1


@each
def test_under_autocast(
    cls: type[Method], settings: dict[str, Any], student: Any, teacher: Any
) -> None:
    method, (images, targets) = make(cls, student, **settings), batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = method.losses(images, targets, network(), teacher, 0)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    assert losses["loss"].dtype == torch.float32


@pytest.mark.parametrize("detector", ["fine_grained", "spectral_residual"])
def test_saliencymix_is_one_graph(detector: str) -> None:
    method, (images, targets) = make(SaliencyMix, detector=detector), batch()
    draw = method.draw(images.shape, rng(), 0)
    torch.compiler.reset()
    whole: Any = torch.compile(method.mix, fullgraph=True, backend="eager")
    compiled, plain = whole(images, targets, draw), method.mix(images, targets, draw)
    torch.testing.assert_close(compiled.images, plain.images)
    torch.testing.assert_close(compiled.targets, plain.targets)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [(AttentiveCutMix, {}), (SnapMix, {}), (GuidedMixup, {"prob": 1.0}), (SUMix, {})],
)
def test_mixing_what_was_seen_is_one_graph(
    cls: type[Method], settings: dict[str, Any], student: Any, teacher: Any
) -> None:
    method, (images, targets) = make(cls, student, **settings), batch()
    draw = method.draw(images.shape, rng(), 0)
    seen = method.look(images, targets, student, teacher, draw)
    plain = method.mix(images, targets, draw, **seen)
    torch.compiler.reset()
    whole: Any = torch.compile(method.mix, fullgraph=True, backend="eager")
    compiled = whole(images, targets, draw, **seen)
    torch.testing.assert_close(compiled.images, plain.images, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(compiled.targets, plain.targets, atol=1e-5, rtol=1e-4)


def test_permuting_the_weights_of_snapmix_changes_the_loss(student: Any) -> None:
    images, targets = toy_images(5, size=SIZE)[0], torch.eye(5)
    method, model = make(SnapMix, student), network().eval()
    maps = torch.rand(5, 4, 4, generator=rng(6))
    logits = model(method.mix(images, targets, snapmix_draw(), maps=maps).images)
    losses = [
        method.cross_entropy(logits, method.mix(images, targets, snapmix_draw(), maps=m).targets)
        for m in (maps, maps.flip(0))
    ]
    assert losses[0].item() != pytest.approx(losses[1].item(), abs=1e-4)
