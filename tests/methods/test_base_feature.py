"""Replacing hidden states inside a network."""

import pytest
import torch
from given import make, network
from tiny import toy_images
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods.base_feature import replaced_output, with_partners
from adautomix.methods.manifoldmix import ManifoldMix
from adautomix.methods.recursivemix import RecursiveMix

NETWORKS = pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_tiny_patch16_224"])


@NETWORKS
def test_taps_are_outputs_of_the_stages(name: str) -> None:
    model = network(name).eval()
    images, _ = toy_images(3)
    found: dict[str, Tensor] = {}
    for path in model.stages:
        model.get_submodule(path).register_forward_hook(
            lambda module, args, out, path=path: found.__setitem__(path, out)
        )
    for tap, path in enumerate(model.stages, start=1):
        feature_map = model.features(images, tap).tap
        assert feature_map is not None
        out = found[path]
        if out.ndim == 3:  # tokens, the class token first
            out = out[:, 1:].transpose(1, 2).unflatten(2, feature_map.shape[2:])
        torch.testing.assert_close(out, feature_map)


def test_methods_that_look_inside_need_a_network_with_stages() -> None:
    for cls in (ManifoldMix, RecursiveMix):
        with pytest.raises(UsageError, match=rf"{cls.name} looks inside the network: pass model="):
            make(cls, torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match=r"manifoldmix.deepest = 5: resnet18 has 4 stages"):
        make(ManifoldMix, network(), deepest=5)


def test_partners_of_a_part() -> None:
    images, perm = torch.arange(6.0)[:, None], torch.tensor([[2, 5], [3, 0]])
    needed, places = with_partners(images, perm)
    assert needed[:, 0].tolist() == [2, 3, 5, 0]
    assert torch.equal(needed[places][..., 0], perm.float())
    everything, same_perm = with_partners(images[:2], perm)
    assert everything is not None
    assert same_perm is perm


def test_the_network_is_restored() -> None:
    model = network()
    modules, keys = list(model.modules()), list(model.state_dict())
    stage = model.get_submodule(model.stages[1])
    with replaced_output(model, model.stages[1], lambda hidden: 2 * hidden):
        assert model.get_submodule(model.stages[1]) is not stage
    with (
        pytest.raises(ZeroDivisionError),
        replaced_output(model, model.stages[1], lambda hidden: hidden),
    ):
        _ = 1 / 0
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert list(model.state_dict()) == keys
