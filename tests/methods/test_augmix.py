"""AugMix recomputed view by view, and its divergence in plain floats."""

import contextlib
import math

import pytest
import torch
from given import make, rng, toys
from tiny import tiny_classifier

from adautomix.methods.augmix import AugMix, AugMixParams, augmented_views, jensen_shannon
from adautomix.methods.base import MixInputs
from adautomix.mixing.image_chains import apply_chain


def kl_by_hand(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_the_divergence_by_hand() -> None:
    logits = torch.randn(9, 4, generator=rng(2))
    probabilities = logits.softmax(dim=1).double().tolist()
    total = 0.0
    for image in range(3):
        p = [probabilities[image + 3 * view] for view in range(3)]
        mean = [sum(column) / 3 for column in zip(*p, strict=True)]
        total += sum(kl_by_hand(row, mean) for row in p) / 3
    assert jensen_shannon(logits, 3).item() == pytest.approx(total / 3, rel=1e-5)
    assert jensen_shannon(logits[:3].repeat(3, 1), 3).item() == pytest.approx(0, abs=1e-6)


def test_views_by_hand() -> None:
    images, _ = toys(4)
    method = make(AugMix, width=2, depth=2)
    params = method.make_params(images.shape, rng(1), 0)
    low, high = torch.tensor([-0.2, 0.0, 0.1]), torch.tensor([1.3, 1.0, 1.1])
    low, high = (bound.view(1, 3, 1, 1) for bound in (low, high))
    views = augmented_views(images, params, (low, high)).unflatten(0, (2, 4))
    for b in range(4):
        pixels = ((images[b] - low[0]) / (high - low)[0] * 255).round().clamp(0, 255)[None]
        for view in range(2):
            mix = torch.zeros_like(images[b])
            for chain in range(2):
                place = (slice(b, b + 1), view, chain)
                changed = apply_chain(
                    pixels, params.operations[place], params.levels[place], params.depths[place]
                )
                back = changed[0] / 255 * (high - low)[0] + low[0]
                mix += params.weights[b, view, chain] * back
            blend = params.blend[b, view]
            expected = (1 - blend) * images[b] + blend * mix
            torch.testing.assert_close(views[view, b], expected, atol=1e-5, rtol=0)


def test_the_loss_is_clean_cross_entropy_plus_the_divergence() -> None:
    images, targets = toys()
    student, method = tiny_classifier().eval(), make(AugMix, jsd_weight=5.0)
    params = method.make_params(images.shape, rng(3), 0)
    losses = method.compute_loss(MixInputs(images, targets, {}), student, None, params)
    views = augmented_views(images, params, method.pixel_range(images))
    logits = torch.cat([student(images), student(views[:7]), student(views[7:])])
    clean = -(targets * logits[:7].log_softmax(dim=1)).sum(dim=1).mean()
    expected = clean + 5 * jensen_shannon(logits, 3)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses["clean"].item() == pytest.approx(clean.item(), rel=1e-5)
    assert losses["divergence"].item() > 0


def test_draws_have_the_stated_ranges() -> None:
    method = make(AugMix, severity=4.0)
    params = method.make_params((500, 3, 8, 8), rng(), 0)
    assert isinstance(params, AugMixParams)
    assert set(params.operations.unique().tolist()) == set(range(9))
    assert set(params.depths.unique().tolist()) == {1, 2, 3}
    strengths = params.levels.abs()
    assert strengths.min() >= 0.1
    assert 3.9 < strengths.max() <= 4
    assert (params.levels > 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(params.weights.sum(dim=2), torch.ones(500, 2))
    # Dirichlet(1, 1, 1): each weight has mean 1/3 and variance 1/18.
    assert params.weights.var().item() == pytest.approx(1 / 18, abs=0.005)
    assert params.blend.mean().item() == pytest.approx(0.5, abs=0.03)


def test_parts_of_a_batch_have_the_loss_of_the_whole() -> None:
    images, targets = toys(6)
    student, params = tiny_classifier().eval(), make(AugMix).make_params((6, 3, 16, 16), rng(4), 0)
    method = make(AugMix)
    whole = method.compute_loss(MixInputs(images, targets, {}), student, None, params)["loss"]
    parts = []
    for rows in (slice(0, 3), slice(3, 6)):
        sources = MixInputs(images, targets, {}, rows)
        parts.append(method.compute_loss(sources, student, None, params.rows(rows))["loss"])
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-5)


def test_nothing_reads_a_tensor_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which has no values, reading one fails."""
    # Autocast does not support the meta device; it is only ever disabled here.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    meta = torch.device("meta")
    images, method = toys(4)[0].to(meta), make(AugMix).to(meta)
    params = make(AugMix).make_params(images.shape, rng(), 0).to(meta)
    assert method.views(images, params, method.pixel_range(images)).shape == (8, 3, 16, 16)
