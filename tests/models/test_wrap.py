"""Networks that the user already has, behind the interface that methods expect."""

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.models import build_model, evaluating, wrap_model
from adautomix.models.wrap import WrappedClassifier


class Plain(nn.Module):
    """Two convolutions and a linear layer, as somebody might write them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.top = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.top(self.body(x)).flatten(1))
        return logits


def plain() -> WrappedClassifier:
    torch.manual_seed(0)
    return wrap_model(Plain(), tap="body", head="out", image_size=16)


NETWORKS: dict[str, tuple[Any, int, int]] = {
    # name: (maker, image size, channels of the default tap)
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=5), 32, 256),
    "torchvision convnext_tiny": (lambda: torchvision.models.convnext_tiny(num_classes=5), 64, 384),
    "torchvision swin_t": (lambda: torchvision.models.swin_t(num_classes=5), 64, 384),
    "timm test_resnet": (lambda: timm.create_model("test_resnet", num_classes=5), 64, 192),
    "timm convnext_atto": (lambda: timm.create_model("convnext_atto", num_classes=5), 64, 160),
    "timm test_vit": (lambda: timm.create_model("test_vit", num_classes=5, img_size=64), 64, 64),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_known_families_need_no_names(name: str) -> None:
    make, size, channels = NETWORKS[name]
    model = make()
    wrapped = wrap_model(model, image_size=size)
    tap = wrapped.default_tap()
    assert wrapped.tap_shape(tap)[0] == channels
    images = torch.randn(2, 3, size, size)
    with evaluating(wrapped):
        features = wrapped.features(images, tap)
        assert features.tap is not None
        assert tuple(features.tap.shape[1:]) == wrapped.tap_shape(tap)
        torch.testing.assert_close(wrapped.feature_map(images, tap), features.tap)
        torch.testing.assert_close(wrapped.logits(features.pooled), model(images))
        torch.testing.assert_close(wrapped(images), model(images))
        assert wrapped(images, head="mixed").shape == (2, 5)


def test_features_of_a_timm_network_are_build_models() -> None:
    built = build_model("test_resnet", 5, image_size=64)
    model = timm.create_model("test_resnet", num_classes=5)
    model.load_state_dict(built.backbone.state_dict(), strict=False)
    wrapped = wrap_model(model, image_size=64)
    images = torch.randn(2, 3, 64, 64)
    tap = built.default_tap()
    assert wrapped.default_tap() == tap
    with evaluating(built, wrapped):
        mine, theirs = wrapped.features(images, tap), built.features(images, tap)
    torch.testing.assert_close(mine.pooled, theirs.pooled)
    assert mine.tap is not None
    assert theirs.tap is not None
    torch.testing.assert_close(mine.tap, theirs.tap)


def test_a_feature_map_stops_the_forward_pass_at_the_tap() -> None:
    wrapped = plain()
    passes: list[str] = []
    wrapped.model.get_submodule("top").register_forward_hook(lambda *_: passes.append("top"))
    feature_map = wrapped.feature_map(torch.randn(2, 3, 16, 16), 1)
    assert feature_map.shape == (2, 8, 8, 8)
    assert passes == []


def test_reading_leaves_the_network_as_it_was() -> None:
    wrapped = plain()
    wrapped.features(torch.randn(2, 3, 16, 16), 1)
    wrapped.feature_map(torch.randn(2, 3, 16, 16), 1)
    for module in wrapped.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_copy_is_independent() -> None:
    wrapped = plain()
    twin = copy.deepcopy(wrapped)
    images = torch.randn(2, 3, 16, 16)
    with evaluating(wrapped, twin):
        torch.testing.assert_close(twin(images, head="mixed"), wrapped(images, head="mixed"))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.zero_()
    assert all(bool(parameter.any()) for parameter in twin.extra_heads["mixed"].parameters()) is (
        False  # the bias starts at zero
    )
    assert bool(twin.model.get_parameter("out.weight").any())


def test_the_users_network_is_not_changed() -> None:
    model = Plain()
    names = list(model.state_dict())
    wrapped = wrap_model(model, tap="body", head="out", image_size=16)
    assert wrapped.model is model
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"tap": "layer3", "head": "out"}, "Plain has no module 'layer3': it has body, top, out"),
        ({"tap": "body"}, "Plain: cannot tell which layer computes the logits; name it"),
        ({"tap": "body", "head": "top"}, "head 'top' of Plain is Sequential: name the nn.Linear"),
    ],
)
def test_what_cannot_be_wrapped_is_named(options: dict[str, str], line: str) -> None:
    with pytest.raises(UsageError) as error:
        wrap_model(Plain(), image_size=16, **options)
    assert str(error.value).startswith(line)


def test_an_unknown_network_needs_a_tap_only_where_one_is_read() -> None:
    wrapped = wrap_model(Plain(), head="out", image_size=16)
    with pytest.raises(UsageError, match=r"name the module whose output feeds the generator"):
        wrapped.default_tap()
