"""SUMix, sample by sample in plain floats."""

import math
from typing import Any

import pytest
import torch
from given import make, rng, toys
from tiny import CLASSES, TinyClassifier, gradients_of, tiny_classifier, toy_images
from torch import Tensor, nn

from adautomix.methods.base import MixInputs
from adautomix.methods.cutmix import CutMix
from adautomix.methods.sumix import SUMix, corrected_lam, semantic_distance
from adautomix.mixing.ops import Mixed, soft_targets


class Pooling(TinyClassifier):
    """A network that is easy to recompute: its pooled features are means of the pixels."""

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


def normalized(values: list[float]) -> list[float]:
    length = math.sqrt(sum(value**2 for value in values))
    return [value / length for value in values]


def sumix_by_hand(
    model: Any, method: Any, images: Tensor, labels: list[int], mixed: Mixed, scale: float
) -> tuple[float, float, list[float]]:
    """Cross-entropy, uncertainty term, and λ' of the first sources, in plain Python floats."""

    def predict(batch: Tensor) -> tuple[list[list[float]], list[list[float]]]:
        with torch.no_grad():
            pooled = model.features(batch).pooled
            doubt = method.uncertainty(pooled).double().tolist()
            return model.logits(pooled).double().tolist(), [normalized(softmax(u)) for u in doubt]

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
                for value in normalized(softmax([m - c for m, c in zip(p_mix, p, strict=True)]))
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
    images, _ = toy_images(7)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    params = method.make_params(images.shape, rng(4), 0)
    sources = MixInputs(images, soft_targets(labels, CLASSES), {})
    losses = method.compute_loss(sources, model, None, params)
    mixed = method.mix(images, sources.targets, params)
    expected = sumix_by_hand(model, method, images, labels.tolist(), mixed, scale or 7)
    assert losses["mixed"].item() == pytest.approx(expected[0], rel=1e-4)
    assert losses["uncertainty"].item() == pytest.approx(expected[1], rel=1e-4)
    assert losses["loss"].item() == pytest.approx(expected[0] + 0.7 * expected[1], rel=1e-4)
    assert set(losses) == {"loss", "mixed", "uncertainty", "mixture_accuracy"}
    assert len(set(expected[2])) == 7
    apart = max(abs(a - b) for a, b in zip(expected[2], mixed.lam[:, 0].tolist(), strict=True))
    assert apart > 0.01, "λ is corrected"


def test_lam_is_unchanged_if_predictions_are_equal() -> None:
    labels = torch.eye(CLASSES)[torch.tensor([[0, 1], [2, 2], [4, 0]])]
    lam = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(corrected_lam(lam, torch.zeros(3, 2, CLASSES), labels), lam)
    everywhere = torch.full((3, 2, CLASSES), 1000.0)
    torch.testing.assert_close(corrected_lam(lam, everywhere, labels), lam)


def test_lam_moves_to_the_source_the_mix_resembles() -> None:
    mixed = torch.tensor([[0.9, 0.05, 0.02, 0.02, 0.01]])
    clean = torch.tensor([[[0.9, 0.05, 0.02, 0.02, 0.01], [0.05, 0.9, 0.02, 0.02, 0.01]]])
    labels = torch.eye(CLASSES)[torch.tensor([[0, 1]])]
    alpha = semantic_distance(mixed, clean, labels, 10.0)
    torch.testing.assert_close(alpha.norm(dim=2), torch.full((1, 2), 10.0))
    lam = corrected_lam(torch.tensor([[0.5, 0.5]]), alpha, labels)
    # The mix is predicted as class 0 like its first source, so their distance is small. Class 1 of
    # the second source is missing from it, which makes the difference negative.
    assert lam.sum().item() == pytest.approx(1)
    assert lam[0, 1] > lam[0, 0], "as published: a lower probability of the class counts as closer"


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


def test_sumix_gradients() -> None:
    """α and λ' are constants; the uncertainty trains the second head and the network only."""
    images, labels = toy_images(7)
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
    """Without batch norm statistics; the uncertainty of partners keeps its gradient."""
    images, targets = toys(6)
    method, model = make(SUMix, tiny_classifier(), scale=2.0), tiny_classifier().eval()
    params = method.make_params(images.shape, rng(), 0)
    whole = MixInputs(images, targets, {})
    method.compute_loss(whole, model, None, params)["loss"].backward()
    at_once = gradients_of(model)
    model.zero_grad()
    for own in (slice(0, 2), slice(2, 6)):
        part = MixInputs(images, targets, {}, own)
        share = (own.stop - own.start) / 6
        (share * method.compute_loss(part, model, None, params.rows(own))["loss"]).backward()
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, at_once[name], atol=1e-6, rtol=1e-4)


def test_sumix_of_a_large_batch_is_finite() -> None:
    method, model = sumix(scale=5000.0)
    images, labels = toy_images(7)
    losses = method.losses(images, labels, model, None, 0)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])


def test_permuting_lam_changes_the_loss() -> None:
    method, model = sumix(options={"per_sample": True})
    images, labels = toy_images(7)
    params = method.make_params(images.shape, rng(), 0)
    sources = MixInputs(images, soft_targets(labels, CLASSES), {})
    shuffled = type(params)(params.perm, params.box.flip(0), params.shared)
    one, other = (
        method.compute_loss(sources, model, None, d)["loss"].item() for d in (params, shuffled)
    )
    assert one != pytest.approx(other, abs=1e-4)


def test_sumix_wraps_the_named_method() -> None:
    images, targets = toys()
    method = make(SUMix, tiny_classifier(), mix="cutmix", options={"alpha": 0.3})
    plain = make(CutMix, alpha=0.3)
    mixed = method.mix(images, targets, method.make_params(images.shape, rng(), 0))
    assert torch.equal(
        mixed.images, plain.mix(images, targets, plain.make_params(images.shape, rng(), 0)).images
    )
    alone = make(SUMix, tiny_classifier(), mix="vanilla")
    losses = alone.losses(images, targets, tiny_classifier(), None, 0)
    assert torch.isfinite(losses["loss"])
