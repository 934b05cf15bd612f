"""Saliency Grafting, cell by cell."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from given import batch, blobs, network, rng
from tiny import CLASSES
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods.base_feature import replaced_output
from adautomix.methods.puzzlemix import cell_sums
from adautomix.methods.saliencygrafting import (
    SaliencyGrafting,
    SaliencyGraftingParams,
    SaliencyGraftingSettings,
    calibrated_lam,
    draw_saliencygrafting,
    feature_saliency,
    informative_tap,
    is_informative,
    salient_cells,
)
from adautomix.models import build_model


def grafting(**settings: Any) -> SaliencyGrafting:
    return SaliencyGrafting(
        SaliencyGraftingSettings(**settings), num_classes=CLASSES, model=network()
    )


def test_feature_saliency_by_hand() -> None:
    """`|Σ_c f ∂CE/∂f|` of each image alone, from a forward that keeps the map's gradient."""
    student = network().eval()
    images, targets = batch(3, 16, 16)[0], torch.rand(3, CLASSES, generator=rng(2)).softmax(dim=1)
    maps = feature_saliency(student, images, targets, 3)
    assert maps.shape == (3, 4, 4)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(3))
    kept: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    hook = student.get_submodule(student.stages[2]).register_forward_hook(keep)
    for b in range(3):
        F.cross_entropy(student(images[b : b + 1]), targets[b : b + 1]).backward()
        feature = kept.pop()
        assert feature.grad is not None
        raw = (feature * feature.grad).sum(dim=1).abs()[0].detach()
        torch.testing.assert_close(maps[b], raw / raw.sum(), atol=1e-5, rtol=1e-3)
    hook.remove()


TRANSFORMERS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"image_size": 32, "options": {"patch_size": 8, "depth": 3}},
    "swin_tiny_patch4_window7_224": {"image_size": 32, "options": {"depths": (1, 1, 1, 1)}},
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_saliency_of_a_transformer_by_hand(name: str) -> None:
    """The derivative along each position's features: the loss change under `f (1 + ε)`, over ε."""
    student = build_model(name, CLASSES, width=0.25, seed=0, **TRANSFORMERS[name])
    student = student.double().eval()
    size = TRANSFORMERS[name]["image_size"]
    images, targets = batch(2, size, size)[0].double(), torch.eye(CLASSES)[:2]
    height, width = student.tap_shape(1)[1:]
    maps = feature_saliency(student, images, targets, 1)
    assert maps.shape == (2, height, width)
    places = list(itertools.product(range(height), range(width)))[:: max(1, height * width // 16)]
    slopes = torch.zeros(2, height, width)
    ahead = 1 if name.startswith("vit") else 0
    for y, x in places:
        losses = []
        for factor in (1 - 1e-4, 1 + 1e-4):

            def scaled(
                out: Tensor, place: int = ahead + y * width + x, by: float = factor
            ) -> Tensor:
                flat = out.flatten(1, -2).clone()
                flat[:, place] *= by
                return flat.view_as(out)

            with replaced_output(student, student.stages[0], scaled), torch.no_grad():
                losses.append(F.cross_entropy(student(images), targets, reduction="none"))
        slopes[:, y, x] = (losses[1] - losses[0]).abs()
    rows, columns = torch.tensor(places).unbind(dim=1)
    mean = slopes[:, rows, columns].sum(dim=1) / maps[:, rows, columns].sum(dim=1)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(2))
    expected = slopes[:, rows, columns] / mean[:, None]
    torch.testing.assert_close(maps[:, rows, columns], expected, atol=1e-4, rtol=1e-2)


@pytest.mark.slow
def test_a_normalized_stage_is_uninformative() -> None:
    """Layer norm ignores the norm of features, so no position is salient."""
    convnext = build_model("convnext_tiny", CLASSES, stem="cifar", width=0.125, image_size=16)
    vit = build_model("vit_tiny_patch16_224", CLASSES, width=0.25, image_size=32)
    assert [is_informative(convnext, tap) for tap in (1, 2, 3, 4)] == [False, False, False, True]
    assert [is_informative(vit, tap) for tap in (6, 10, 11, 12)] == [True, True, False, False]
    assert informative_tap(convnext, None) == 4
    assert informative_tap(vit, None) == 6
    with pytest.raises(UsageError, match=r"saliencygrafting\.tap = 3: convnext_tiny normalizes"):
        informative_tap(convnext, 3)


def test_grafting_cell_by_cell() -> None:
    images, targets = batch(5, 16, 16)
    method = grafting(cells=4)
    rows = torch.arange(5)
    picked = torch.rand(5, 4, 4, generator=rng(3)) < 0.6
    params = SaliencyGraftingParams(torch.stack([rows, rows.roll(1)], dim=1), picked)
    saliency = cell_sums(blobs(5, 16), 4)
    mixed = method.mix(images, targets, params, saliency=saliency)
    assert mixed.masks is not None
    grafts = 0
    for b in range(5):
        partner = saliency[b - 1].double()
        weights = np.exp((partner / partner.max() / 0.2).numpy())
        weights = weights / weights.sum()
        kept = added = 0.0
        for y, x in itertools.product(range(4), repeat=2):
            here = slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4)
            graft = bool(picked[b, y, x]) and weights[y, x] > weights.mean()
            grafts += graft
            source = images[b - 1 if graft else b]
            assert torch.equal(mixed.images[b, :, *here], source[:, *here])
            kept += 0.0 if graft else float(saliency[b, y, x]) ** 2
            added += float(partner[y, x]) ** 2 if graft else 0.0
        kept = math.sqrt(kept) / float(saliency[b].norm())
        added = math.sqrt(added) / float(partner.norm())
        label = [0.0] * 5
        label[b], label[b - 1] = kept / (kept + added), added / (kept + added)
        assert mixed.targets[b].tolist() == pytest.approx(label, abs=1e-5)
    assert 5 < grafts < 40


def test_uniform_saliency_weighs_by_the_square_root_of_the_area() -> None:
    grafted = torch.zeros(1, 8, 8, dtype=torch.bool)
    grafted[0, :2, :8] = True
    lam = calibrated_lam(torch.full((1, 2, 8, 8), 1 / 64), grafted)[0]
    assert (lam[1] / lam[0]).item() == pytest.approx(math.sqrt(16 / 48))
    nothing = calibrated_lam(torch.full((1, 2, 8, 8), 1 / 64), torch.zeros_like(grafted))
    assert nothing.tolist() == [[1, 0]]


def test_temperature_controls_how_many_cells_are_salient() -> None:
    maps = cell_sums(blobs(20), 8)
    shares = [
        salient_cells(maps, temperature).float().mean().item() for temperature in (0.01, 0.2, 100.0)
    ]
    assert shares[0] == pytest.approx(1 / 64, abs=0.01)
    assert shares[0] < shares[1] < shares[2]
    mean = maps.mean(dim=(1, 2), keepdim=True)
    assert ((maps > mean) == salient_cells(maps, 100.0)).float().mean() > 0.98
    peak = maps.flatten(1).argmax(dim=1)
    assert salient_cells(maps, 0.01).flatten(1).gather(1, peak[:, None]).all()


def test_without_saliency_nothing_is_grafted() -> None:
    images, targets = batch(3, 16, 16)
    mixed = grafting().mix(
        images,
        targets,
        grafting().make_params(images.shape, rng(), 0),
        saliency=torch.full((3, 8, 8), 1 / 64),
    )
    assert torch.equal(mixed.images, images)
    assert torch.equal(mixed.targets, targets)


def test_probabilities_of_a_graft_are_beta() -> None:
    """The number of cells is beta-binomial."""
    counts = draw_saliencygrafting(4000, 8, 2.0, rng()).picked.sum(dim=(1, 2)).double()
    expected = scipy.stats.betabinom(64, 2, 2)
    assert counts.mean().item() == pytest.approx(expected.mean(), rel=0.03)
    assert counts.var().item() == pytest.approx(expected.var(), rel=0.06)
