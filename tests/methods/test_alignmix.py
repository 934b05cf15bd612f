"""AlignMix: plans compared with Sinkhorn in numpy, and mixes recomputed map by map."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from given import batch, network, rng
from tiny import CLASSES

from adautomix.methods.alignmix import (
    AlignMix,
    AlignMixParams,
    AlignMixSettings,
    mix_aligned,
    transport_plan,
)
from adautomix.methods.base import MixInputs
from adautomix.mixing.ops import soft_targets
from adautomix.models import Classifier


def alignmix(student: Classifier | None = None, **settings: Any) -> AlignMix:
    return AlignMix(AlignMixSettings(**settings), num_classes=CLASSES, model=student or network())


def align_params(count: int, *, move_first: bool) -> AlignMixParams:
    rows = torch.arange(count)
    share = torch.rand(count, generator=rng(6))
    lam = torch.stack([share, 1 - share], dim=1)
    perm = torch.stack([rows, rows.roll(1)], dim=1)
    return AlignMixParams(perm, lam, features=True, move_first=move_first)


def sinkhorn_by_hand(first: Any, second: Any, epsilon: float, iterations: int) -> Any:
    """R = r P in float64, from potentials u and v."""
    cost = ((first[:, None] - second[None]) ** 2).sum(axis=2)
    r = len(first)
    u = v = np.zeros(r)
    for _ in range(iterations):
        u = epsilon * (-math.log(r) - scipy.special.logsumexp((v[None] - cost) / epsilon, axis=1))
        v = epsilon * (
            -math.log(r) - scipy.special.logsumexp((u[:, None] - cost) / epsilon, axis=0)
        )
    return r * np.exp((u[:, None] + v[None] - cost) / epsilon)


@pytest.mark.parametrize("iterations", [1, 5, 60])
def test_plan_by_hand(iterations: int) -> None:
    first, second = torch.rand(2, 3, 9, 6, generator=rng())
    plan = transport_plan(first, second, 0.1, iterations)
    for b in range(3):
        expected = sinkhorn_by_hand(
            first[b].double().numpy(), second[b].double().numpy(), 0.1, iterations
        )
        torch.testing.assert_close(plan[b].double(), torch.from_numpy(expected), atol=1e-4, rtol=0)
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(3, 9), atol=1e-5, rtol=0)


def test_plan_has_uniform_margins() -> None:
    first, second = torch.rand(2, 4, 16, 5, generator=rng())
    plan = transport_plan(first, second, 0.1, 100)
    for axis in (1, 2):
        torch.testing.assert_close(plan.sum(dim=axis), torch.ones(4, 16), atol=1e-3, rtol=0)


def test_rows_of_a_plan_are_off_where_distances_are_large() -> None:
    """The figures of the module docstring, for maps with 512 channels."""
    first, second = torch.rand(2, 32, 16, 512, generator=rng())
    distance = torch.cdist(first, second).square().mean()
    for size, least, most in ((10, 0, 0.001), (1000, 0.23, 0.35)):
        scale = (size / distance).sqrt()
        plan = transport_plan(scale * first, scale * second, 0.1, 100)
        torch.testing.assert_close(plan.sum(dim=1), torch.ones(32, 16), atol=1e-4, rtol=0)
        assert least < (plan.sum(dim=2) - 1).abs().mean() < most


def test_alignment_undoes_a_permutation() -> None:
    first = torch.randn(2, 16, 8, generator=rng())
    order = torch.randperm(16, generator=rng(1))
    second = first[:, order]
    plan = transport_plan(first, second, 0.05, 100)
    lam = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    mixed = mix_aligned(first, second, lam, plan, move_first=False)
    torch.testing.assert_close(mixed, first, atol=1e-3, rtol=0)
    mixed = mix_aligned(first, second, lam, plan, move_first=True)
    torch.testing.assert_close(mixed, second, atol=1e-3, rtol=0)


@pytest.mark.parametrize("move_first", [False, True])
@pytest.mark.parametrize("layout", ["channels first", "channels last", "tokens"])
def test_alignmix_map_by_map(move_first: bool, layout: str) -> None:
    student = network()
    method = alignmix(student, iterations=20)
    method.channels = 6
    maps = torch.rand(5, 6, 3, 4, generator=rng(2))
    if layout == "channels last":
        maps = maps.permute(0, 2, 3, 1)
    elif layout == "tokens":
        maps = maps.flatten(2).mT
    params = align_params(5, move_first=move_first)
    mixed = method.mix_maps(maps, params.perm, params)
    assert mixed.shape == maps.shape
    rows = maps.flatten(2).mT if layout == "channels first" else maps.flatten(1, -2)
    result = mixed.flatten(2).mT if layout == "channels first" else mixed.flatten(1, -2)
    for b in range(5):
        first, second = (rows[i].double().numpy() for i in (b, b - 1))
        plan = sinkhorn_by_hand(first, second, 0.1, 20)
        lam = float(params.lam[b, 0])
        moved = (plan.T @ first, second) if move_first else (first, plan @ second)
        expected = lam * moved[0] + (1 - lam) * moved[1]
        torch.testing.assert_close(
            result[b].double(), torch.from_numpy(expected), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("move_first", [False, True])
def test_loss_of_alignmix(move_first: bool) -> None:
    """For a ResNet: mix the last maps, average over positions, classify."""
    student = network().eval()
    method = alignmix(student)
    images, labels = batch(6, 16, 16)[0], torch.arange(6) % CLASSES
    targets = soft_targets(labels, CLASSES)
    params = align_params(6, move_first=move_first)
    loss = method.compute_loss(MixInputs(images, targets, {}), student, None, params)["loss"]
    maps = student.feature_map(images, 4)
    mixed = method.mix_maps(maps, params.perm, params)
    labels_mixed = (params.lam[:, :, None] * targets[params.perm]).sum(dim=1)
    expected = F.cross_entropy(student.logits(mixed.mean(dim=(2, 3))), labels_mixed)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_mean_over_positions_does_not_see_the_second_move() -> None:
    """Columns sum to 1, so the mean of A' Rᵀ is that of A', as the module docstring says."""
    method = alignmix()
    method.channels = 8
    maps = 20 * torch.rand(6, 8, 4, 4, generator=rng(2))  # distances of some hundred
    means = maps.mean(dim=(2, 3))
    for move_first in (False, True):
        params = align_params(6, move_first=move_first)
        mixed = method.mix_maps(maps, params.perm, params).mean(dim=(2, 3))
        plain = (params.lam[:, :, None] * means[params.perm]).sum(dim=1)
        assert torch.allclose(mixed, plain, atol=1e-3) == (not move_first)


def test_gradients_flow_through_both_maps_and_not_through_the_plan() -> None:
    maps = torch.rand(2, 6, 2, 2, generator=rng(), requires_grad=True)
    method = alignmix()
    method.channels = 6
    params = AlignMixParams(
        torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.75]]), features=True, move_first=False
    )
    method.mix_maps(maps, params.perm, params).sum().backward()
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad[0], torch.full((6, 2, 2), 0.25))
    torch.testing.assert_close(maps.grad[1], torch.full((6, 2, 2), 0.75), atol=1e-4, rtol=0)


def test_alignmix_of_images_is_mixup() -> None:
    student = network().eval()
    method = alignmix(student, features=0.0)
    images, labels = batch(6, 16, 16)[0], torch.arange(6) % CLASSES
    params: Any = method.params_for_step(images.shape, 0)
    assert not params.features
    losses = method.losses(images, labels, student, student, 0)
    mixed = torch.stack(
        [
            params.lam[b, 0] * images[b] + params.lam[b, 1] * images[int(params.perm[b, 1])]
            for b in range(6)
        ]
    )
    targets = (params.lam[:, :, None] * soft_targets(labels, CLASSES)[params.perm]).sum(dim=1)
    expected = F.cross_entropy(student(mixed), targets)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("move_first", [False, True])
def test_alignmix_in_parts(move_first: bool) -> None:
    """Without batch statistics, the mean over the parts is the loss of the whole batch."""
    student = network().eval()
    method = alignmix(student)
    images, targets = batch(6, 16, 16)[0], torch.eye(6)[:, :CLASSES]
    params = align_params(6, move_first=move_first)
    whole = method.compute_loss(MixInputs(images, targets, {}), student, None, params)["loss"]
    parts = [
        method.compute_loss(MixInputs(images, targets, {}, own), student, None, params.rows(own))[
            "loss"
        ]
        for own in (slice(0, 3), slice(3, 6))
    ]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts) / 2, rel=1e-5)


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_tiny_patch16_224"])
def test_alignmix_of_other_networks(name: str) -> None:
    student = network(name)
    method = alignmix(student, features=1.0)
    losses = method.losses(batch(3, 16, 16)[0], torch.arange(3), student, student, 0)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])


def test_random_choices_of_alignmix() -> None:
    method = alignmix()
    draws = [method.make_params((3, 3, 16, 16), rng(seed), 0) for seed in range(400)]
    for features, move_first in itertools.product((False, True), repeat=2):
        count = sum((d.features, d.move_first) == (features, move_first) for d in draws)
        assert 70 < count < 130
    lam = torch.stack([params.lam[0, 0] for params in draws])
    assert scipy.stats.kstest(lam.numpy(), scipy.stats.beta(2, 2).cdf).pvalue > 0.001
