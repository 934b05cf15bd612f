"""GuidedMixup, pixel by pixel; partners compared with the paper's greedy ones."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from given import make, rng, telling_network, toys
from maps_by_hand import gray_by_hand, spectral_residual_by_hand
from torch import Tensor

from adautomix.methods.guidedmixup import (
    GuidedMixup,
    GuidedMixupParams,
    distant_partners,
    spectral_saliency,
)
from adautomix.mixing.params import draw_partners
from adautomix.mixing.saliency import gaussian_blur, gradient_saliency, normalize_sum


@pytest.fixture(scope="module")
def student() -> Any:
    return telling_network()


def test_guidedmixup_pixel_by_pixel() -> None:
    images, targets = torch.rand(5, 3, 12, 16, generator=rng()), torch.eye(5)
    method = make(GuidedMixup, pairing="random", prob=1.0)
    params = GuidedMixupParams(draw_partners(5, rng(1)), mixed=True)
    mixed = method.mix_batch(images, targets, None, None, params)
    assert mixed.masks is not None
    maps = []
    for image in images:
        amplitude = spectral_residual_by_hand(gray_by_hand(image))
        saliency = gaussian_blur(gaussian_blur(torch.tensor(amplitude)[None], 7, 3.0), 7, 3.0)[0]
        maps.append(saliency / saliency.sum())
    for b, (own, partner) in enumerate(params.perm.tolist()):
        weight = maps[own] / (maps[own] + maps[partner])
        expected = weight * images[own].double() + (1 - weight) * images[partner].double()
        torch.testing.assert_close(mixed.images[b].double(), expected, atol=1e-4, rtol=0)
        assert mixed.lam[b, 0].item() == pytest.approx(weight.mean().item(), abs=1e-4)
        label = weight.mean() * targets[own] + (1 - weight.mean()) * targets[partner]
        torch.testing.assert_close(mixed.targets[b].double(), label.double(), atol=1e-4, rtol=0)
        assert mixed.lam[b, 0] == mixed.masks[b, 0].mean()


def test_guidedmixup_by_gradients(student: Any) -> None:
    images, targets = toys()
    method = make(GuidedMixup, student, saliency="gradient", prob=1.0)
    params = method.make_params(images.shape, rng(), 0)
    features = method.extract_features(images, targets, student, None, params)["saliency"]
    expected = gaussian_blur(gradient_saliency(student, images, targets), 7, 3.0)
    torch.testing.assert_close(features, expected / expected.sum(dim=(1, 2), keepdim=True))


def test_guidedmixup_without_saliency_is_half_and_half() -> None:
    images, targets = toys()
    params = GuidedMixupParams(draw_partners(7, rng()), mixed=True)
    method = make(GuidedMixup, pairing="random")
    mixed = method.mix(images, targets, params, saliency=torch.zeros(7, 16, 16))
    half = (images + images[params.perm[:, 1]]) / 2
    torch.testing.assert_close(mixed.images, half)


def test_guidedmixup_does_not_change_unmixed_batches() -> None:
    images, targets = toys()
    method = make(GuidedMixup, prob=0.0)
    params = method.make_params(images.shape, rng(), 0)
    assert method.extract_features(images, targets, None, None, params) == {}
    mixed = method.mix(images, targets, params)
    assert torch.equal(mixed.images, images)
    assert torch.equal(mixed.targets, targets)
    assert mixed.lam.tolist() == [[1, 0]] * 7


@pytest.mark.parametrize(
    ("settings", "share"),
    [({}, 0.5), ({"saliency": "gradient"}, 0.8), ({"prob": 0.2, "saliency": "gradient"}, 0.2)],
)
def test_guidedmixup_mixes_as_many_batches_as_the_paper(
    settings: dict[str, Any], share: float
) -> None:
    method = make(GuidedMixup, **settings)
    mixed = [method.make_params((4, 3, 8, 8), rng(k), 0).mixed for k in range(500)]
    assert sum(mixed) / 500 == pytest.approx(share, abs=0.07)


def greedy_cycle(distance: np.ndarray[Any, Any]) -> list[int]:
    """The paper's partners: the farthest pair, then always the farthest remaining image."""
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
    """Smooth noise with a few edges, with statistics like those of small photographs."""
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
        maps = normalize_sum(gaussian_blur(spectral_saliency(photographs(count, seed)), 7, 3.0))
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
        assert totals == sorted(totals), "exchanges never reduce the total"
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
    images, targets = toys(8)
    method = make(GuidedMixup, prob=1.0)
    params = method.make_params(images.shape, rng(), 0)
    whole = method.mix_batch(images, targets, None, None, params)
    part = method.mix_batch(images, targets, None, None, params.rows(slice(2, 5)))
    assert sorted(whole.perm[:, 1].tolist()) == list(range(8))
    assert torch.equal(part.perm, whole.perm[2:5])
