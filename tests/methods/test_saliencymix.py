"""SaliencyMix, pixel by pixel."""

import math
from typing import Any

import pytest
import scipy.stats
import torch
from given import make, rng, toys
from maps_by_hand import fine_grained_by_hand, gray_by_hand
from tiny import CLASSES

from adautomix.methods.saliencymix import SaliencyMix, SaliencyMixParams
from adautomix.mixing.boxes import boxes_around
from adautomix.mixing.params import draw_partners
from adautomix.mixing.saliency import fine_grained_of_bytes, peak_positions


def test_saliencymix_pixel_by_pixel() -> None:
    images, targets = torch.rand(5, 3, 14, 20, generator=rng()), torch.eye(5)
    shares_of_box = torch.tensor([0.3, 0.05, 1.0, 0.0, 0.7])
    params = SaliencyMixParams(
        draw_partners(5, rng(4)), torch.stack([1 - shares_of_box, shares_of_box], dim=1)
    )
    mixed = make(SaliencyMix).mix(images, targets, params)
    assert mixed.masks is not None
    for b in range(5):
        own, partner = params.perm[b].tolist()
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


def test_saliencymix_boxes_are_those_of_cutmix_around_the_peak() -> None:
    center = torch.tensor([[3, 9], [13, 0], [7, 10]])
    boxes = boxes_around(center, torch.tensor([0.25, 0.25, 1.0]), 14, 20)
    assert boxes.tolist() == [[0, 6, 4, 14], [10, 14, 0, 5], [0, 14, 0, 20]]


def test_saliencymix_spectral_peak_is_where_the_square_is() -> None:
    images = 0.02 * torch.randn(8, 3, 32, 32, generator=rng())
    corners = torch.randint(2, 24, (8, 2), generator=rng(3))
    for image, (y, x) in zip(images, corners.tolist(), strict=True):
        image[:, y : y + 5, x : x + 5] += 1
    tiny_box = torch.tensor([[0.99, 0.01]]).expand(8, 2)
    params = SaliencyMixParams(draw_partners(8, rng()), tiny_box)
    method = make(SaliencyMix, detector="spectral_residual")
    mixed = method.mix(images, torch.eye(8)[:, :CLASSES], params)
    assert mixed.masks is not None
    where = peak_positions(mixed.masks[:, 1])  # the first pixel of the box: its center less one
    distance = (where + 1 - (corners[params.perm[:, 1]] + 2)).abs().amax(dim=1)
    assert (distance <= 4).all()


def test_saliencymix_mixes_batches_with_probability_prob() -> None:
    method = make(SaliencyMix, prob=0.3)
    mixed = [bool(method.make_params((4, 3, 8, 8), rng(k), 0).lam[0, 1] > 0) for k in range(400)]
    assert sum(mixed) / 400 == pytest.approx(0.3, abs=0.08)
    lam = torch.cat(
        [
            make(SaliencyMix, per_sample=True, alpha=0.5)
            .make_params((500, 3, 8, 8), rng(k), 0)
            .lam[:, 0]
            for k in range(4)
        ]
    )
    assert scipy.stats.kstest(lam.numpy(), scipy.stats.beta(0.5, 0.5).cdf).pvalue > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["fine_grained", "spectral_residual"])
def test_saliencymix_is_one_graph(detector: str) -> None:
    method, (images, targets) = make(SaliencyMix, detector=detector), toys()
    params = method.make_params(images.shape, rng(), 0)
    torch.compiler.reset()
    whole: Any = torch.compile(method.mix, fullgraph=True, backend="eager")
    compiled, plain = whole(images, targets, params), method.mix(images, targets, params)
    torch.testing.assert_close(compiled.images, plain.images)
    torch.testing.assert_close(compiled.targets, plain.targets)


def test_released_saliency_is_one_place_for_the_batch() -> None:
    """The peak of the first partner's map, as OpenCV computes it from float images."""
    images, targets = torch.randn(5, 3, 24, 32, generator=rng()), torch.eye(5)
    lam = torch.tensor([[0.8, 0.2]]).expand(5, 2)
    params = SaliencyMixParams(draw_partners(5, rng(4)), lam)
    mixed = make(SaliencyMix, saliency="released").mix(images, targets, params)
    first = images[params.perm[0, 1]][None]
    center = peak_positions(fine_grained_of_bytes(first))
    top, bottom, left, right = boxes_around(center, lam[:1, 1], 24, 32)[0].tolist()
    expected = images.clone()
    expected[:, :, top:bottom, left:right] = images[params.perm[:, 1], :, top:bottom, left:right]
    assert torch.equal(mixed.images, expected)
    by_paper = make(SaliencyMix).mix(images, targets, params)
    assert not torch.equal(by_paper.images, expected)
