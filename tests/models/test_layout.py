"""Feature maps of hand-made networks whose layout cannot be told from one output's sizes."""

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.models import evaluating, wrap_model
from adautomix.models.layout import TapLayout, token_grid


class Net(nn.Module):
    """A convolution whose output a tap rearranges, and a head on the mean of its channels.

    Args:
        channels: number of channels of the tap.
        order: order of the dimensions of the output of `tap`; "NLC" flattens rows and columns.
        prefix: number of tokens before the patches in "NLC".
        only: the one image size (height, width) that the network accepts; None for any.
    """

    def __init__(
        self,
        channels: int,
        order: str = "NCHW",
        prefix: int = 0,
        only: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.order, self.prefix, self.only = order, prefix, only
        self.body = nn.Conv2d(3, channels, 4, 4)
        self.tap = nn.Identity()
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.only is not None and tuple(x.shape[-2:]) != self.only:
            raise ValueError(f"only {self.only}")
        x = self.body(x)
        if self.order == "NHWC":
            pooled = self.tap(x.permute(0, 2, 3, 1)).mean((1, 2))
        elif self.order == "NLC":
            patches = x.flatten(2).transpose(1, 2)
            tokens = torch.cat([patches[:, : self.prefix], patches], dim=1)
            pooled = self.tap(tokens)[:, self.prefix :].mean(1)
        else:
            pooled = self.tap(x).mean((2, 3))
        logits: Tensor = self.fc(pooled)
        return logits


def assert_reads_the_map(net: Net, height: int, width: int, **options: Any) -> None:
    """Check that the tap is read as the output of the convolution, for any image size."""
    wrapped = wrap_model(net, tap="tap", head="fc", image_size=32, **options)
    images = torch.randn(2, 3, height, width)
    with evaluating(wrapped):
        expected = net.body(images)
        assert torch.equal(wrapped.feature_map(images, 1), expected)
        tap = wrapped.features(images, 1).tap
    assert tap is not None
    assert torch.equal(tap, expected)
    assert wrapped.tap_shape(1) == (net.body.out_channels, 8, 8)


@pytest.mark.parametrize(
    ("channels", "order", "prefix", "height", "width"),
    [
        (8, "NCHW", 0, 32, 16),  # C = h ≠ w
        (8, "NHWC", 0, 32, 32),  # C = h = w
        (6, "NHWC", 0, 32, 16),  # channels-last and not square
        (8, "NHWC", 0, 16, 32),  # channels-last, C = w ≠ h
        (4, "NCHW", 0, 16, 48),
        (6, "NLC", 0, 32, 16),  # tokens of a rectangle
        (6, "NLC", 1, 16, 64),
        (8, "NLC", 17, 32, 32),  # so many prefix tokens that 9² of 8² + 17 fit
    ],
)
def test_the_layout_is_measured(
    channels: int, order: str, prefix: int, height: int, width: int
) -> None:
    assert_reads_the_map(Net(channels, order, prefix), height, width)


@pytest.mark.parametrize(
    ("order", "options", "message"),
    [
        ("NCHW", {"layout": "NCHW"}, "layout='NCHW' or 'NHWC'"),
        ("NHWC", {"layout": "NHWC"}, "layout='NCHW' or 'NHWC'"),
        ("NLC", {"layout": "NLC", "prefix_tokens": 2}, "layout='NLC', prefix_tokens="),
    ],
)
def test_an_ambiguous_layout_must_be_stated(
    order: str, options: dict[str, Any], message: str
) -> None:
    net = Net(8, order, prefix=2, only=(32, 32))
    with pytest.raises(UsageError, match=message) as error:
        wrap_model(net, tap="tap", head="fc", image_size=32).tap_shape(1)
    assert "\n" not in str(error.value)
    assert "the output of tap has shape" in str(error.value)
    assert_reads_the_map(net, 32, 32, **options)


def test_a_stated_layout_must_fit() -> None:
    wrapped = wrap_model(Net(8, "NLC"), tap="tap", head="fc", image_size=32, layout="NHWC")
    with pytest.raises(UsageError, match=r"\[1, 64, 8\], which does not have the layout 'NHWC'"):
        wrapped.tap_shape(1)


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("pair", "the output of pair is a tuple: name a module that returns one feature map"),
        ("flat", r"the output of flat has shape \[1, 8\], which is not a feature map"),
        ("unused", "Odd does not call model.unused as a module"),
    ],
)
def test_what_is_no_feature_map_is_refused(tap: str, message: str) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
            self.pair, self.flat, self.unused = Pair(), nn.Identity(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.fc(self.flat(self.pair(self.body(x))[0].mean((2, 3))))
            return logits

    with pytest.raises(UsageError, match=message):
        wrap_model(Odd(), tap=tap, head="fc", image_size=16).tap_shape(1)


def test_tokens_need_a_grid_of_square_patches() -> None:
    assert token_grid(64, (32, 32)) == (8, 8)
    assert token_grid(32, (16, 32)) == (4, 8)
    assert token_grid(15 * 14, (225, 224)) == (15, 14)
    for count in (6, 7, 63):
        with pytest.raises(UsageError, match=f"{count} tokens cover no image of 32 x 32 pixels"):
            token_grid(count, (32, 32))


@pytest.mark.slow
def test_families_state_their_layout() -> None:
    """Channels-last and token networks with one image size only, whose layout is still known."""
    networks: list[tuple[nn.Module, int, str, TapLayout]] = [
        (torchvision.models.swin_t(num_classes=5), 64, "features.5", TapLayout("NHWC")),
        (
            timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, img_size=224),
            224,
            "layers.2",
            TapLayout("NHWC"),
        ),
        (
            torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5),
            32,
            "encoder.layers.encoder_layer_0",
            TapLayout("NLC", 1),
        ),
        (
            timm.create_model("test_vit", num_classes=5, img_size=64),
            64,
            "blocks.2",
            TapLayout("NLC", 1),
        ),
    ]
    for model, size, path, layout in networks:
        wrapped = wrap_model(model)
        tap = wrapped.default_tap()
        channels, height, width = wrapped.tap_shape(tap)
        assert wrapped.stages[tap - 1] == f"model.{path}"
        assert wrapped._layouts[f"model.{path}"] == layout
        assert height == width
        assert wrapped.spec.image_size in (size, 224)
        assert channels > height or isinstance(model, torchvision.models.VisionTransformer)


def test_tokens_of_a_rectangle_are_timms_feature_map() -> None:
    model: Any = timm.create_model("test_vit", num_classes=5, img_size=64, dynamic_img_size=True)
    wrapped = wrap_model(model)
    images = torch.randn(2, 3, 32, 96)
    with evaluating(model):
        mine = wrapped.feature_map(images, 2)
        theirs = model.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
    torch.testing.assert_close(mine, theirs)
