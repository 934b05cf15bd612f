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
def test_what_cannot_be_wrapped_is_named(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as error:
        wrap_model(Plain(), image_size=16, **options)
    assert str(error.value).startswith(line)


def test_an_unknown_network_needs_a_tap_only_where_one_is_read() -> None:
    wrapped = wrap_model(Plain(), head="out", image_size=16)
    with pytest.raises(UsageError, match=r"name the module whose output feeds the generator"):
        wrapped.default_tap()


def test_a_head_may_be_a_convolution() -> None:
    class Conv(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Conv2d(16, 5, 1)  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.out(self.top(self.body(x))).flatten(1)
            return logits

    wrapped = wrap_model(Conv(), tap="body", head="out", image_size=16)
    images = torch.randn(2, 3, 16, 16)
    with evaluating(wrapped):
        pooled = wrapped.features(images).pooled
        torch.testing.assert_close(wrapped.logits(pooled), wrapped(images))
    assert wrapped(images, head="mixed").shape == (2, 5)


def test_a_head_whose_output_is_changed_afterwards_is_refused() -> None:
    class Log(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).log_softmax(1)

    with pytest.raises(UsageError, match="Log does not return the output of its head 'out'"):
        wrap_model(Log(), tap="body", head="out", image_size=16)


def test_a_failing_forward_pass_is_one_line() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    with pytest.raises(UsageError, match=r"fails on one image of shape \[1, 3, 48, 48\]") as error:
        wrap_model(model, image_size=48)
    assert "\n" not in str(error.value)


def test_two_classification_layers_are_refused() -> None:
    with torch.device("meta"):
        model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5)
        with pytest.raises(UsageError, match="has 2 classification layers: use a network with one"):
            wrap_model(model)


# The smallest network of most timm families; None where the default tap is its feature map, else
# the beginning of the refusal.
FAMILIES: dict[str, str | None] = {
    "test_byobnet": None,
    "coat_tiny": "CoaT does not call model.parallel_blocks as a module",
    "convit_tiny": None,
    "cpubone_nano": None,
    "crossvit_tiny_240": "the output of blocks.1 is a list",
    "cspnext_tiny": None,
    "davit_tiny": None,
    "dla34": None,
    "dpn48b": None,
    "edgenext_xx_small": None,
    "efficientformer_l1": "EfficientFormer has 2 classification layers",
    "efficientvim_m1": "the output of stages.1 is a tuple",
    "efficientvit_b0": None,
    "eva02_tiny_patch14_224": None,
    "fasternet_t0": None,
    "fastvit_t8": None,
    "gcvit_xxtiny": None,
    "ghostnet_050": None,
    "hgnetv2_b0": None,
    "hrnet_w18_small": "HighResolutionNet: name the module whose output feeds the generator",
    "inception_next_atto": None,
    "levit_128s": "LevitDistilled has 2 classification layers",
    "mobilenetv3_small_050": None,
    "mobilevit_xxs": None,
    "mvitv2_tiny": "MultiScaleVit: name the module whose output feeds the generator",
    "nest_tiny": None,
    "pit_xs_224": "the output of transformers.1 is a tuple",
    "pvt_v2_b0": None,
    "regnetx_002": None,
    "repghostnet_050": None,
    "resnest14d": None,
    "resnetv2_50x1_bit": None,
    "rexnet_100": None,
    "shvit_s1": None,
    "starnet_s050": None,
    "swin_tiny_patch4_window7_224": None,
    "swinv2_tiny_window8_256": None,
    "test_coatnet": None,
    "test_mambaout": None,
    "test_nfnet": None,
    "test_resnet": None,
    "test_vit": None,
    "vgg11": None,
    "visformer_tiny": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_timm_are_wrapped_or_refused_with_one_line(name: str) -> None:
    refusal = FAMILIES[name]
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=5)
        if refusal is not None:
            with pytest.raises(UsageError) as error:
                wrap_model(model).tap_shape(wrap_model(model).default_tap())
            assert str(error.value).startswith(refusal)
            assert "\n" not in str(error.value)
            return
        wrapped = wrap_model(model)
        shape = wrapped.tap_shape(wrapped.default_tap())
        size = wrapped.spec.image_size
        with evaluating(model):
            maps = model.forward_intermediates(
                torch.empty(1, 3, size, size), intermediates_only=True
            )
    assert shape in [tuple(feature_map.shape[1:]) for feature_map in maps]
