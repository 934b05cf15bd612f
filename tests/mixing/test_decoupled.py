"""The decoupled regularizer in plain floats, and compared with openmixup's definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from given import make, rng, toys
from tiny import tiny_classifier
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods.cutmix import CutMix
from adautomix.methods.manifoldmix import ManifoldMix
from adautomix.mixing.decoupled import decoupled_regularizer
from adautomix.mixing.settings import MixSettings

LOGITS = torch.randn(5, 6, generator=rng(1)) * 2
TARGETS = torch.zeros(5, 6)
for row, weights in enumerate(
    ({0: 0.3, 4: 0.7}, {1: 0.6, 2: 0.4}, {3: 1.0}, {0: 0.2, 1: 0.5, 5: 0.3}, {2: 0.9998, 5: 2e-4})
):
    for label, value in weights.items():
        TARGETS[row, label] = value


def test_by_hand() -> None:
    total = 0.0
    for row, classes in enumerate(([0, 4], [1, 2], [], [0, 1, 5], [])):
        z = LOGITS[row].double().tolist()
        others = sum(math.exp(z[c]) for c in range(6) if c not in classes)
        total += sum(-math.log(math.exp(z[i]) / (math.exp(z[i]) + others)) for i in classes)
    assert decoupled_regularizer(LOGITS, TARGETS).item() == pytest.approx(total / 5, rel=1e-5)


def openmixup_loss(logits: Tensor, targets: Tensor, eta: float) -> Tensor:
    """Its soft loss for rows that all mix two classes by the same λ, not 1/2."""
    loss = -(targets * logits.log_softmax(dim=1)).sum(dim=1)
    mixed = targets > 1e-3
    for lam in targets[0][mixed[0]].tolist():
        chosen = (targets == lam) | ~mixed
        rows = logits[chosen].view(len(logits), -1)
        hot = (targets[chosen].view(len(logits), -1) > 0).float()
        loss = loss + eta * -(hot * rows.log_softmax(dim=1)).sum(dim=1)
    return loss.mean()


def test_cross_entropy_plus_the_term_is_openmixups_loss() -> None:
    targets = torch.zeros(4, 6)
    for row, (first, second) in enumerate(((0, 3), (5, 1), (2, 4), (4, 0))):
        targets[row, first], targets[row, second] = 0.25, 0.75
    ours = F.cross_entropy(LOGITS[:4], targets) + 0.1 * decoupled_regularizer(LOGITS[:4], targets)
    assert ours.item() == pytest.approx(openmixup_loss(LOGITS[:4], targets, 0.1).item(), rel=1e-6)


def test_class_weights_multiply_the_terms_of_their_class() -> None:
    weights = torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0, 0.0])
    others = LOGITS[0, [1, 2, 3, 5]].exp().sum()
    expected = -2 * (LOGITS[0, 4].exp() / (LOGITS[0, 4].exp() + others)).log() / 5
    ours = decoupled_regularizer(LOGITS, TARGETS, weights)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_are_finite_where_all_classes_are_mixed() -> None:
    logits = LOGITS.clone().requires_grad_()
    decoupled_regularizer(logits, torch.full((5, 6), 1 / 6)).backward()
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


def test_the_switch_adds_the_term_to_the_loss_of_a_method() -> None:
    images, targets = toys()
    targets = torch.eye(targets.shape[1])[torch.arange(len(images)) % targets.shape[1]]
    student, plain, decoupled = tiny_classifier().eval(), make(CutMix), make(CutMix)
    decoupled.plan(None, MixSettings(decouple=0.3), 0)
    losses = [m.losses(images, targets, student, None, 1)["loss"] for m in (plain, decoupled)]
    params = plain.params_for_step(images.shape, 1)
    mixed = plain.mix(images, targets, params)
    term = decoupled_regularizer(student(mixed.images), mixed.targets)
    assert term.item() > 0
    assert (losses[1] - losses[0]).item() == pytest.approx(0.3 * term.item(), rel=1e-4)


def test_methods_and_losses_without_such_a_term_are_refused() -> None:
    with pytest.raises(UsageError, match=r"mix\.decouple: the loss of manifoldmix is more than"):
        ManifoldMix.check_decoupled(0.1, "cross_entropy")
    method = make(CutMix)
    method.use_loss("bce")
    with pytest.raises(UsageError, match=r"mix\.decouple is defined for loss = cross_entropy"):
        method.plan(None, MixSettings(decouple=0.1), 0)
    method = make(CutMix)
    method.plan(None, MixSettings(decouple=0.1), 0)
    with pytest.raises(UsageError, match=r"mix\.decouple is defined for loss = cross_entropy"):
        method.use_loss("bce")
