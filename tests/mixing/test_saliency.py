"""Saliency maps, compared with numpy, finite differences and OpenCV."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from given import rng, toys
from maps_by_hand import fine_grained_by_hand, gray_by_hand, spectral_residual_by_hand
from tiny import gradients_of, state_of, tiny_classifier
from torch import Tensor, nn

from adautomix.methods.guidedmixup import spectral_saliency
from adautomix.mixing import saliency
from adautomix.mixing.saliency import (
    fine_grained,
    fine_grained_of_bytes,
    gaussian_blur,
    gradient_saliency,
    normalize_sum,
    peak_positions,
    resize,
    spectral_residual,
    to_gray,
)


def test_spectral_residual_by_hand() -> None:
    images = torch.rand(3, 3, 12, 20, generator=rng())
    maps = spectral_residual(images, size=64)
    assert maps.shape == (3, 12, 20)
    for image, found in zip(images, maps, strict=True):
        by_hand = spectral_residual_by_hand(gray_by_hand(image))
        np.testing.assert_allclose(found.numpy(), by_hand, rtol=2e-3, atol=1e-5)


def test_spectral_residual_resizes_larger_images() -> None:
    images = torch.rand(2, 3, 40, 70, generator=rng())
    maps = spectral_residual(images, size=32)
    assert maps.shape == (2, 32, 32)
    small = resize(to_gray(images), 32, 32)
    torch.testing.assert_close(maps, spectral_residual(small[:, None].expand(-1, 3, -1, -1), 32))


def test_spectral_residual_does_not_depend_on_the_scale() -> None:
    images = torch.rand(2, 3, 16, 16, generator=rng())
    one, other = (normalize_sum(spectral_residual(images * scale, 64)) for scale in (1.0, 50.0))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_fine_grained_by_hand() -> None:
    images = torch.rand(2, 3, 17, 40, generator=rng())
    for image, found in zip(images, fine_grained(images), strict=True):
        by_hand = fine_grained_by_hand(gray_by_hand(image))
        np.testing.assert_allclose(found.numpy(), by_hand, rtol=1e-3, atol=1e-4)


PARTS = ("image", "gray", "map")

# Output of OpenCV 5.0's StaticSaliencyFineGrained for `opencvs_image`, every fourth pixel.
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


def test_fine_grained_equals_opencvs_up_to_rounding() -> None:
    maps = fine_grained(opencvs_image())
    torch.testing.assert_close(maps[0, 2::4, 2::4], torch.tensor(OPENCV), atol=0.025, rtol=0)
    assert peak_positions(maps).tolist() == [[10, 30]]


def correlation(first: Tensor, second: Tensor) -> float:
    return torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item()


@pytest.mark.parametrize("k", [0, 1])
def test_fine_grained_of_bytes_equals_opencvs(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    """Exactly, given OpenCV's blurred gray image, whose last bits, which are read, are its own."""
    with np.load(Path(__file__).parents[1] / "golden" / "opencv_float_saliency.npz") as file:
        image, gray, expected = (torch.from_numpy(file[f"{part}{k}"]) for part in PARTS)
    normalized = ((image / 255 - 0.5) / 0.25).permute(2, 0, 1)[None]
    found = fine_grained_of_bytes(normalized)[0]
    assert correlation(found, expected.float()) > 0.97
    blurred = saliency._twice_blurred(to_gray(normalized.flip(1)))
    torch.testing.assert_close(blurred[0], gray, atol=1e-6, rtol=0)
    monkeypatch.setattr(saliency, "_twice_blurred", lambda _: gray[None])
    assert torch.equal(fine_grained_of_bytes(normalized)[0], expected.float())


def test_fine_grained_of_bytes_has_little_to_do_with_the_image() -> None:
    normalized = (opencvs_image() / 255 - 0.5) / 0.25
    found = fine_grained(normalized), fine_grained_of_bytes(normalized)
    assert abs(correlation(*found)) < 0.15


def test_fine_grained_does_not_depend_on_scale_and_offset() -> None:
    images = torch.rand(2, 3, 16, 24, generator=rng())
    torch.testing.assert_close(
        fine_grained(images), fine_grained(5 * images - 2), atol=1e-4, rtol=0
    )


def test_maps_of_a_constant_image_are_finite() -> None:
    images = torch.full((2, 3, 16, 16), 0.3)
    assert torch.isfinite(fine_grained(images)).all()
    assert torch.isfinite(spectral_saliency(images)).all()


def test_peak_positions_are_rows_and_columns() -> None:
    maps = torch.zeros(3, 5, 9)
    maps[0, 4, 2] = maps[1, 0, 8] = maps[2, 3, 0] = 1
    assert peak_positions(maps).tolist() == [[4, 2], [0, 8], [3, 0]]


def test_normalized_maps_sum_to_one_and_are_uniform_without_saliency() -> None:
    maps = torch.rand(4, 3, 5, generator=rng())
    maps[1] = 0
    maps[2, 0, 0] = float("inf")
    maps[3, 1, 1] = float("nan")
    found = normalize_sum(maps)
    torch.testing.assert_close(found.sum(dim=(1, 2)), torch.ones(4))
    torch.testing.assert_close(found[0], maps[0] / maps[0].sum())
    assert torch.equal(found[1:], torch.full((3, 3, 5), 1 / 15))


def test_blur_is_a_mirrored_gaussian() -> None:
    maps = torch.rand(2, 9, 11, generator=rng())
    weights = np.exp(-0.5 * (np.arange(-3, 4) / 3.0) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    for before, after in zip(maps, gaussian_blur(maps, 7, 3.0), strict=True):
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


def test_gradient_saliency_by_finite_differences() -> None:
    """For a network in float64, pixel by pixel, with batch norm in evaluation mode."""
    model = tiny_classifier().double().eval()
    images, targets = toys(2)
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
def test_gradient_saliency_changes_nothing(training: bool) -> None:
    model = tiny_classifier(dropout=0.5).train(training)
    model.bn2.eval()
    modes = [module.training for module in model.modules()]
    kept, images = state_of(model), toys()[0]
    images.requires_grad_()
    before = torch.get_rng_state()
    with torch.no_grad():
        found = gradient_saliency(model, images, toys()[1])
    assert not found.requires_grad
    assert torch.equal(before, torch.get_rng_state()), "dropout is off"
    assert images.grad is None
    assert all(gradient is None for gradient in gradients_of(model).values())
    assert [module.training for module in model.modules()] == modes
    assert all(module.track_running_stats for module in (model.bn1, model.bn2))
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name]), name


def test_gradient_saliency_uses_the_given_head() -> None:
    model, (images, targets) = tiny_classifier(), toys()
    clean, mixed = (gradient_saliency(model, images, targets, head) for head in ("clean", "mixed"))
    assert torch.equal(clean, gradient_saliency(model, images, targets))
    assert not torch.allclose(clean, mixed)


def test_gradient_saliency_does_not_depend_on_the_batch() -> None:
    model, (images, targets) = tiny_classifier().eval(), toys()
    together = gradient_saliency(model, images, targets)
    alone = [gradient_saliency(model, images[b : b + 1], targets[b : b + 1]) for b in range(7)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(together.sum(dim=(1, 2)), torch.ones(7))


@pytest.mark.slow
def test_gradient_saliency_under_autocast_and_compiled() -> None:
    model, (images, targets) = tiny_classifier(), toys()
    plain = gradient_saliency(model, images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        half = gradient_saliency(model, images, targets)
    assert half.dtype == torch.float32
    correlation = torch.corrcoef(torch.stack([plain.flatten(), half.flatten()]))[0, 1]
    assert correlation > 0.99
    compiled = torch.compile(gradient_saliency, backend="eager")
    torch.testing.assert_close(compiled(model, images, targets), plain, atol=1e-6, rtol=1e-3)


def test_gradient_saliency_of_a_flat_loss_is_uniform() -> None:
    model, (images, targets) = tiny_classifier(), toys()
    nn.init.zeros_(model.heads["clean"].weight)
    found = gradient_saliency(model, images, targets)
    assert torch.equal(found, torch.full_like(found, 1 / 16**2))
