"""SnapMix compared with cropping and resizing; maps compared with logits."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from given import make, rng, telling_network, toys
from tiny import CLASSES, state_of, toy_images
from torch import Tensor

from adautomix.methods.snapmix import (
    SnapMix,
    SnapMixParams,
    activation_maps,
    draw_snapmix,
    percent_maps,
    resize_boxes,
)
from adautomix.mixing.params import draw_partners


@pytest.fixture(scope="module")
def student() -> Any:
    return telling_network()


BOXES = [[0, 6, 2, 9], [3, 4, 0, 16], [0, 16, 0, 16], [5, 12, 7, 8], [0, 0, 0, 0]]


TAKEN = [[4, 14, 1, 5], [0, 8, 8, 12], [2, 5, 3, 11], [0, 16, 0, 16], [0, 0, 0, 0]]


def snapmix_params() -> SnapMixParams:
    return SnapMixParams(draw_partners(5, rng(3)), torch.tensor(BOXES), torch.tensor(TAKEN))


def test_snapmix_by_cropping_and_resizing(student: Any) -> None:
    images, targets = toy_images(5, size=16)[0], torch.eye(5)
    maps = torch.rand(5, 4, 4, generator=rng(6))
    params = snapmix_params()
    mixed = make(SnapMix, student).mix(images, targets, params, maps=maps)
    for b, (box, taken) in enumerate(zip(BOXES, TAKEN, strict=True)):
        own, partner = params.perm[b].tolist()
        top, bottom, left, right = box
        first, end, begin, stop = taken
        expected = images[own].clone()
        if bottom > top:
            crop = images[partner : partner + 1, :, first:end, begin:stop]
            expected[:, top:bottom, left:right] = F.interpolate(
                crop, (bottom - top, right - left), mode="bilinear", align_corners=True
            )[0]
        torch.testing.assert_close(mixed.images[b], expected, atol=2e-5, rtol=0)
        large = F.interpolate(maps[:, None], (16, 16), mode="bilinear")[:, 0]
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
    images, targets = toy_images(5, size=16)[0], torch.eye(5)
    mixed = make(SnapMix, student).mix(images, targets, snapmix_params(), maps=torch.ones(5, 4, 4))
    for lam, box, taken in zip(mixed.lam, BOXES, TAKEN, strict=True):
        areas = [(b[1] - b[0]) * (b[3] - b[2]) / 16**2 for b in (box, taken)]
        assert lam.tolist() == pytest.approx([1 - areas[0], areas[1]], abs=1e-5)


def test_a_box_onto_itself_changes_nothing() -> None:
    images = torch.rand(2, 3, 9, 13, generator=rng())
    box = torch.tensor([[2, 7, 3, 11], [0, 9, 0, 13]])
    same = resize_boxes(images, box, box)
    torch.testing.assert_close(same[0, :, 2:7, 3:11], images[0, :, 2:7, 3:11], atol=1e-5, rtol=0)
    torch.testing.assert_close(same[1], images[1], atol=1e-5, rtol=0)
    half = resize_boxes(images.half(), box, box)
    assert half.dtype == torch.float16


def test_snapmix_maps_average_to_the_logits() -> None:
    """Pooling is linear, so the mean of a class activation map is the logit of the class."""
    model, (images, targets) = telling_network().eval(), toys()
    hard = F.one_hot(torch.arange(7) % CLASSES, CLASSES).float()
    method = make(SnapMix, model)
    maps = method.extract_features(images, hard, model, None, None)["maps"]
    assert maps.shape == (7, 2, 2)
    with torch.no_grad():
        logits = (model(images) - model.heads["clean"].bias)[hard.bool()]
    torch.testing.assert_close(maps.mean(dim=(1, 2)), logits, atol=1e-4, rtol=1e-4)
    soft = method.extract_features(images, targets, model, None, None)["maps"]
    by_class = torch.stack(
        [
            method.extract_features(images, torch.eye(CLASSES)[[k] * 7], model, None, None)["maps"]
            for k in range(CLASSES)
        ],
        dim=1,
    )
    expected = (targets[:, :, None, None] * by_class).sum(dim=1)
    torch.testing.assert_close(soft, expected, atol=1e-4, rtol=1e-4)


def test_activation_maps_use_positive_features_only() -> None:
    features = torch.randn(2, 3, 4, 4, generator=rng())
    weight, targets = torch.randn(5, 3, generator=rng(1)), torch.eye(5)[[4, 2]]
    with torch.autocast("cpu", torch.bfloat16):
        maps = activation_maps(features, weight, targets)
    for b, label in enumerate((4, 2)):
        by_hand = sum(weight[label, c] * features[b, c].clamp_min(0) for c in range(3))
        assert isinstance(by_hand, Tensor)
        torch.testing.assert_close(maps[b], by_hand)
    torch.testing.assert_close(percent_maps(maps, 8, 8).sum(dim=(1, 2)), torch.ones(2))


def test_extracting_maps_changes_nothing(student: Any) -> None:
    kept, modes = state_of(student), [module.training for module in student.modules()]
    images, targets = toys()
    features = make(SnapMix, student).extract_features(images, targets, student, None, None)
    assert not features["maps"].requires_grad
    assert all(torch.equal(value, kept[name]) for name, value in student.state_dict().items())
    assert [module.training for module in student.modules()] == modes


def test_snapmix_boxes_are_independent_and_empty_together() -> None:
    params = draw_snapmix(4000, 16, 24, 0.5, rng(), per_sample=True)
    sides = [(b[:, 1] - b[:, 0]).double() for b in (params.box, params.source)]
    empty = [(b[:, 1::2] <= b[:, 0::2]).any(dim=1) for b in (params.box, params.source)]
    assert torch.equal(empty[0], empty[1])
    assert 0 < empty[0].sum() < 4000
    filled = ~empty[0]
    correlation = torch.corrcoef(torch.stack([side[filled] for side in sides]))[0, 1]
    assert abs(correlation) < 0.06
    shared = draw_snapmix(10, 16, 24, 5.0, rng())
    assert len(shared.box.unique(dim=0)) == 1
    assert not torch.equal(shared.box, shared.source)


def test_permuting_the_weights_of_snapmix_changes_the_loss(student: Any) -> None:
    images, targets = toy_images(5, size=16)[0], torch.eye(5)
    method, model = make(SnapMix, student), telling_network().eval()
    maps = torch.rand(5, 4, 4, generator=rng(6))
    logits = model(method.mix(images, targets, snapmix_params(), maps=maps).images)
    losses = [
        method.cross_entropy(logits, method.mix(images, targets, snapmix_params(), maps=m).targets)
        for m in (maps, maps.flip(0))
    ]
    assert losses[0].item() != pytest.approx(losses[1].item(), abs=1e-4)
