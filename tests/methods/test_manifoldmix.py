"""Manifold Mixup compared with a network that is run stage by stage."""

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from given import compiled, make, network, rng, staged
from tiny import CLASSES, state_of, toy_images
from torch import Tensor

from adautomix.methods.base import MixInputs
from adautomix.methods.manifoldmix import ManifoldMix, ManifoldMixParams
from adautomix.methods.mixup import Mixup, MixupParams
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.ops import soft_targets
from adautomix.mixing.params import draw_partners
from adautomix.models import Classifier

NETWORKS = pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_tiny_patch16_224"])


def resnet_by_hand(model: Classifier, images: Tensor, params: ManifoldMixParams) -> Tensor:
    """Run the network stage by stage and mix hidden states one by one after `params.stage`."""
    net = model.backbone
    hidden = net.maxpool(net.act1(net.bn1(net.conv1(images))))
    for number, stage in enumerate((net.layer1, net.layer2, net.layer3, net.layer4), start=1):
        hidden = stage(hidden)
        if number == params.stage:
            mixes = [
                sum(lam * hidden[source] for source, lam in zip(sources, shares, strict=True))
                for sources, shares in zip(params.perm.tolist(), params.lam.tolist(), strict=True)
            ]
            hidden = torch.stack(mixes)
    return model.logits(net.forward_head(hidden, pre_logits=True))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("stage", [1, 2, 4])
def test_hidden_states_are_mixed_by_hand(stage: int, per_sample: bool) -> None:
    """The loss and all gradients, which flow through both sources of each mix."""
    images, labels = toy_images(5)
    model, twin = network(), network()
    method = make(ManifoldMix, model, per_sample=per_sample, deepest=4)
    drawn = method.make_params(images.shape, rng(2), 0)
    params = ManifoldMixParams(drawn.perm, drawn.lam, stage)
    sources = method.prepare(images, labels, model, None, params)
    loss = method.compute_loss(sources, model, None, params)["loss"]
    loss.backward()
    targets = torch.einsum(
        "bn,bnk->bk", params.lam, F.one_hot(labels, CLASSES)[params.perm].float()
    )
    expected = (
        -(targets * resnet_by_hand(twin, images, params).log_softmax(dim=1)).sum(dim=1).mean()
    )
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    theirs = dict(twin.named_parameters())
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, theirs[name].grad, atol=2e-6, rtol=1e-4)
    assert model.backbone.conv1.weight.grad.abs().max() > 0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name])


def test_stage_0_is_mixup() -> None:
    images, labels = toy_images(7)
    model = network()
    method = make(ManifoldMix, model)
    drawn = method.make_params(images.shape, rng(), 0)
    params = ManifoldMixParams(drawn.perm, drawn.lam, 0)
    before = state_of(model)
    sources = method.prepare(images, labels, model, None, params)
    ours = method.compute_loss(sources, model, None, params)
    model.load_state_dict(before)
    mixup = make(Mixup)
    theirs = mixup.compute_loss(sources, model, None, MixupParams(params.perm, params.lam))
    assert ours["loss"].item() == theirs["loss"].item()
    assert ours["mixture_accuracy"].item() == theirs["mixture_accuracy"].item()


@NETWORKS
@pytest.mark.parametrize("stage", [1, 2])
def test_lam_of_one_is_the_clean_forward_pass(name: str, stage: int) -> None:
    images, labels = toy_images(4)
    model = network(name).eval()
    method = make(ManifoldMix, model)
    lam = torch.tensor([1.0, 0.0]).expand(4, 2)
    params = ManifoldMixParams(draw_partners(4, rng()), lam, stage)
    loss = method.compute_loss(
        method.prepare(images, labels, model, None, params), model, None, params
    )
    expected = F.cross_entropy(model(images), labels)
    assert loss["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_parts_of_a_batch_add_up_to_the_batch(name: str, stage: int) -> None:
    """Partners may be in another part; without batch norm the parts add up to the whole."""
    images, labels = toy_images(6)
    model = network(name)
    method = make(ManifoldMix, model, per_sample=True)
    drawn = method.make_params(images.shape, rng(2), 0)
    params = ManifoldMixParams(drawn.perm, drawn.lam, stage)
    sources = method.prepare(images, labels, model, None, params)
    whole = method.compute_loss(sources, model, None, params)["loss"]
    parts = 0.0
    for own in (slice(0, 2), slice(2, 6)):
        part = MixInputs(sources.images, sources.targets, {}, own)
        share = (own.stop - own.start) / 6
        parts += share * method.compute_loss(part, model, None, params.rows(own))["loss"].item()
    assert whole.item() == pytest.approx(parts, rel=1e-5)


def test_stages_are_uniform() -> None:
    method = make(ManifoldMix, staged(), deepest=1)
    images, _ = toy_images(4)
    stages = [method.params_for_step(images.shape, step).stage for step in range(300)]
    assert set(stages) == {0, 1}
    assert scipy.stats.binomtest(sum(stages), 300).pvalue > 0.001
    lams = [method.params_for_step(images.shape, step).lam[0, 0].item() for step in range(300)]
    assert scipy.stats.kstest(lams, "beta", (2.0, 2.0)).pvalue > 0.001


def test_manifoldmix_in_half_precision() -> None:
    images, labels = toy_images(5)
    model = network()
    method = make(ManifoldMix, model)
    drawn = method.make_params(images.shape, rng(2), 0)
    params = ManifoldMixParams(drawn.perm, drawn.lam, 2)
    sources = method.prepare(images, labels, model, None, params)
    full = method.compute_loss(sources, model, None, params)["loss"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method.compute_loss(sources, model, None, params)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(full, rel=0.02)


def test_mixture_accuracy_uses_the_mixed_labels() -> None:
    images, labels = toy_images(6)
    model = staged().eval()
    method = make(ManifoldMix, model, deepest=1)
    drawn = method.make_params(images.shape, rng(), 0)
    params = ManifoldMixParams(drawn.perm, drawn.lam, 0)
    mixed = method.mix_batch(images, soft_targets(labels, CLASSES), model, None, params)
    losses = method.compute_loss(
        method.prepare(images, labels, model, None, params), model, None, params
    )
    expected = mixture_accuracy(model(mixed.images), mixed.targets)
    assert losses["mixture_accuracy"].item() == expected.item()


@pytest.mark.slow
def test_a_step_of_manifoldmix_is_one_graph() -> None:
    """Each stage compiles to its own graph, which is not reused for another stage."""
    model = staged()
    method = make(ManifoldMix, model, deepest=1)
    images, labels = toy_images(6)

    def work(params: ManifoldMixParams) -> Tensor:
        sources = method.prepare(images, labels, model, None, params)
        loss: Tensor = method.compute_loss(sources, model, None, params)["loss"]
        return loss

    before = state_of(model)
    with compiled(work) as graph:
        for step in range(6):
            params = method.params_for_step(images.shape, step)
            expected = work(params)
            model.load_state_dict(before)
            torch.testing.assert_close(graph(params), expected)
            model.load_state_dict(before)
