"""RegMixup recomputed in plain floats, and against the authors' single mean over both batches."""

import pytest
import torch
import torch.nn.functional as F
from given import make, rng, toys
from tiny import CLASSES, tiny_classifier

from adautomix.methods.base import MixInputs
from adautomix.methods.mixup import MixupParams
from adautomix.methods.regmixup import RegMixup
from adautomix.mixing.params import draw_partners


def params_of(count: int) -> MixupParams:
    lam = torch.tensor([0.3, 0.7]).repeat(count, 1)
    return MixupParams(draw_partners(count, rng(4)), lam)


@pytest.mark.parametrize("eta", [0.0, 1.0, 0.5])
def test_the_loss_by_hand(eta: float) -> None:
    images, targets = toys()
    student, params = tiny_classifier().eval(), params_of(len(images))
    method = make(RegMixup, eta=eta)
    losses = method.compute_loss(MixInputs(images, targets, {}), student, None, params)
    clean = mixed = 0.0
    for b, (_, partner) in enumerate(params.perm.tolist()):
        image = 0.3 * images[b] + 0.7 * images[partner]
        label = 0.3 * targets[b] + 0.7 * targets[partner]
        clean -= (targets[b] * student(images[b : b + 1])[0].log_softmax(dim=0)).sum().item()
        mixed -= (label * student(image[None])[0].log_softmax(dim=0)).sum().item()
    expected = (clean + eta * mixed) / (1 + eta) / len(images)
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["clean"].item() == pytest.approx(clean / len(images), rel=1e-5)
    assert losses["mixed"].item() == pytest.approx(mixed / len(images), rel=1e-5)


def test_the_default_is_the_loss_of_the_authors_code() -> None:
    """One forward pass in training mode, one mean of λ CE(·, a) + (1 - λ) CE(·, b) over 2B rows."""
    images, _ = toys()
    labels = torch.arange(len(images)) % CLASSES
    student, params = tiny_classifier().train(), params_of(len(images))
    partner = params.perm[:, 1]
    logits = student(torch.cat([images, 0.3 * images + 0.7 * images[partner]]))
    first, second = torch.cat([labels, labels]), torch.cat([labels, labels[partner]])
    theirs = 0.3 * F.cross_entropy(logits, first) + 0.7 * F.cross_entropy(logits, second)
    sources = MixInputs(images, F.one_hot(labels, CLASSES).float(), {})
    ours = make(RegMixup).compute_loss(sources, tiny_classifier().train(), None, params)
    assert ours["loss"].item() == pytest.approx(theirs.item(), rel=1e-6)


def test_lam_is_near_one_half_by_default() -> None:
    params = make(RegMixup, per_sample=True).make_params((4000, 3, 8, 8), rng(), 0)
    # The standard deviation of Beta(10, 10) is 1 / (2 √21).
    assert params.lam[:, 0].std().item() == pytest.approx(0.109, abs=0.006)
    assert params.lam[:, 0].mean().item() == pytest.approx(0.5, abs=0.01)
