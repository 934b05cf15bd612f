"""Catch-up Mix compared with a network that is run stage by stage, channel by channel."""

import pytest
import torch
import torch.nn.functional as F
from given import make, network, rng, telling_network, toys
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods.base import MixInputs
from adautomix.methods.catchupmix import CatchUpMix, weaker_channels
from adautomix.methods.manifoldmix import ManifoldMixParams
from adautomix.mixing.params import draw_partners


def mix_by_hand(hidden: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    """Sort the channels of each pair by |a| - |b| in plain Python; channels come second."""
    mixes = []
    for (one, other), share in zip(perm.tolist(), lam[:, 0].tolist(), strict=True):
        a, b = hidden[one], hidden[other]
        difference = [
            float(a[c].detach().norm() - b[c].detach().norm()) for c in range(hidden.shape[1])
        ]
        order = sorted(range(len(difference)), key=difference.__getitem__)
        mix = b.clone()
        for c in order[: round(share * len(order))]:
            mix[c] = a[c]
        mixes.append(mix)
    return torch.stack(mixes)


def test_the_smaller_norms_are_kept_by_hand() -> None:
    first = torch.tensor([[[3.0], [1.0], [0.0], [2.0]]])
    second = torch.tensor([[[1.0], [4.0], [0.5], [2.0]]])  # differences: 2, -3, -0.5, 0
    for lam, kept in (
        (0.0, []),
        (0.25, [1]),
        (0.5, [1, 2]),
        (0.75, [1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ):
        chosen = weaker_channels(first, second, torch.tensor([lam]))
        assert chosen[0].nonzero()[:, 0].tolist() == kept


@pytest.mark.parametrize("stage", [1, 3, 4])
def test_loss_and_gradients_by_hand(stage: int) -> None:
    images, targets = toys(5)
    lam = torch.tensor([0.1, 0.35, 0.5, 0.62, 0.9])
    params = ManifoldMixParams(draw_partners(5, rng(1)), torch.stack([lam, 1 - lam], dim=1), stage)
    student = telling_network().eval()
    method = make(CatchUpMix, student)
    losses = method.compute_loss(MixInputs(images, targets, {}), student, None, params)
    net = student.backbone
    hidden = net.maxpool(net.act1(net.bn1(net.conv1(images))))
    for number, layer in enumerate((net.layer1, net.layer2, net.layer3, net.layer4), start=1):
        hidden = layer(hidden)
        if number == stage:
            hidden = mix_by_hand(hidden, params.perm, params.lam)
    logits = student.logits(net.forward_head(hidden, pre_logits=True))
    labels = lam[:, None] * targets + (1 - lam)[:, None] * targets[params.perm[:, 1]]
    expected = F.cross_entropy(logits, labels)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    weights = [net.conv1.weight, net.layer1[0].conv1.weight, student.heads["clean"].weight]
    ours = torch.autograd.grad(losses["loss"], weights)
    theirs = torch.autograd.grad(expected, weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_channels_of_a_transformer_are_the_embedding() -> None:
    method = make(CatchUpMix, network("vit_tiny_patch16_224"))
    hidden = torch.randn(4, 17, method.channels[0], generator=rng(2))
    lam = torch.full((4, 2), 0.5)
    params = ManifoldMixParams(draw_partners(4, rng(3)), lam, 1)
    mixed = method.mix_channels(hidden, params.perm, params)
    expected = mix_by_hand(hidden.movedim(-1, 1), params.perm, lam).movedim(1, -1)
    assert torch.equal(mixed, expected)


def test_every_stage_is_drawn_up_to_the_deepest() -> None:
    for deepest, expected in ((None, {1, 2, 3, 4}), (2, {1, 2})):
        method = make(CatchUpMix, network(), deepest=deepest)
        drawn = {method.make_params((4, 3, 16, 16), rng(seed), 0).stage for seed in range(60)}
        assert drawn == expected
    with pytest.raises(UsageError, match=r"catchupmix.deepest = 5: resnet18 has 4 stages"):
        make(CatchUpMix, network(), deepest=5)
