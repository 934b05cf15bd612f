"""Networks of every family compared with timm's own, their stems, widths and arguments."""

import dataclasses
import doctest
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from adautomix.errors import RunError, UsageError
from adautomix.models import (
    Classifier,
    SubsampledConv2d,
    build,
    build_model,
    default_stem,
    frozen_running_stats,
    repeated_updates,
)
from adautomix.models.strided_conv import replace_narrow_strided_convs
from adautomix.rng import generator_at

# Image size, default tap and shape of that tap, and the timm module whose output it is.
NETS: dict[str, tuple[int, int, tuple[int, int, int], str]] = {
    "resnet18": (64, 3, (256, 4, 4), "layer3"),
    "resnet34": (64, 3, (256, 4, 4), "layer3"),
    "resnet50": (64, 3, (1024, 4, 4), "layer3"),
    "resnext50_32x4d": (64, 3, (1024, 4, 4), "layer3"),
    "swin_tiny_patch4_window7_224": (64, 3, (384, 4, 4), "layers.2"),
    "convnext_tiny": (64, 3, (384, 4, 4), "stages.2"),
    "deit_small_patch16_224": (64, 6, (384, 4, 4), "blocks.5"),
}
each_net = pytest.mark.parametrize("name", NETS)


def images(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=generator_at(seed, 0, "images"))


def tiny(**settings: Any) -> Classifier:
    """A quarter-width CIFAR ResNet-18: channels 16, 32, 64, 128."""
    usual: dict[str, Any] = {"stem": "cifar", "width": 0.25, "image_size": 32, "seed": 1}
    return build_model("resnet18", 10, **usual | settings)


def weight(model: Classifier, head: str) -> Tensor:
    return model.get_parameter(f"heads.{head}.weight").detach()


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def as_nchw(output: Tensor, name: str) -> Tensor:
    """Return the output of a stage in the layout of a tap, `[B, C, h, w]`."""
    if name.startswith("swin"):
        return output.permute(0, 3, 1, 2)
    if name.startswith("deit"):  # the class token, then rows of 4 patches
        return torch.stack([output[:, 1 + 4 * row : 5 + 4 * row] for row in range(4)], 1).permute(
            0, 3, 1, 2
        )
    return output


@pytest.mark.slow
@each_net
def test_pooled_features_and_stages_equal_timms(name: str) -> None:
    size, tap, shape, path = NETS[name]
    model = build_model(name, 5, image_size=size, seed=3).eval()
    stage_outputs: list[Tensor] = []
    stage = model.backbone.get_submodule(path)
    stage.register_forward_hook(lambda _module, _inputs, output: stage_outputs.append(output))
    batch = images(2, size)

    fixed: dict[str, Any] = {} if name.startswith(("res", "conv")) else {"img_size": size}
    reference = timm.create_model(name, num_classes=5, **fixed).eval()
    missing, unexpected = reference.load_state_dict(model.backbone.state_dict(), strict=False)
    assert not unexpected
    assert len(missing) == 2  # weight and bias of timm's classifier
    reference.get_submodule(missing[0].rpartition(".")[0]).load_state_dict(
        model.heads["mixed"].state_dict()
    )

    with torch.no_grad():
        features = model.features(batch, tap)
        expected = reference(batch)
        assert features.tap is not None
        assert len(stage_outputs) == 1
        assert torch.equal(features.tap, as_nchw(stage_outputs[0], name))
        assert features.tap.shape == (2, *shape)
        torch.testing.assert_close(model.logits(features.pooled, "mixed"), expected)
        torch.testing.assert_close(model(batch, "mixed"), expected)
        assert not torch.allclose(model(batch), expected)
        assert model.features(batch).tap is None


@each_net
def test_tap_shape_leaves_the_network_unchanged(name: str) -> None:
    size, tap, shape, path = NETS[name]
    model = build_model(name, 5, image_size=size, seed=3)
    model.backbone.get_submodule(path).eval()
    modes = [module.training for module in model.modules()]
    before, random_state = buffers(model), torch.get_rng_state()

    assert model.default_tap() == tap
    assert model.tap_shape(tap) == shape

    assert modes == [module.training for module in model.modules()]
    assert_same(before, buffers(model))
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.mark.slow
@each_net
def test_a_training_step_lowers_the_loss(name: str) -> None:
    size = NETS[name][0]
    model = build_model(name, 5, image_size=size, seed=3)
    batch, labels = images(4, size), torch.tensor([0, 1, 2, 3])

    def loss() -> Tensor:
        pooled = model.features(batch).pooled
        return sum(
            (F.cross_entropy(model.logits(pooled, head), labels) for head in model.heads),
            torch.zeros(()),
        )

    before = loss()
    torch.autograd.backward(before)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert loss() < before


@pytest.mark.parametrize("tap", [-1, 0, 5])
def test_an_unknown_tap_is_an_error(tap: int) -> None:
    with pytest.raises(UsageError, match=rf"tap {tap}: resnet18 has stages 1 to 4"):
        tiny().features(images(1, 32), tap)


def test_taps_number_stages_without_the_stem() -> None:
    model = tiny()
    assert [model.tap_shape(tap) for tap in (1, 2, 3, 4)] == [
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
        (128, 4, 4),
    ]
    regnet = build_model("regnetx_002", 5, image_size=64)  # timm lists its stem as a feature
    assert [regnet.tap_shape(tap)[1] for tap in (1, 2, 3, 4)] == [16, 8, 4, 2]


def test_an_unknown_head_is_an_error() -> None:
    with pytest.raises(UsageError, match="head 'mixed': the network has clean"):
        tiny(heads=("clean",))(images(1, 32), "mixed")


def test_heads_start_with_small_different_weights() -> None:
    model = build_model("resnet18", 100)
    clean, mixed = weight(model, "clean"), weight(model, "mixed")
    assert clean.shape == (100, 512)
    assert clean.std().item() == pytest.approx(0.01, rel=0.05)
    assert not torch.equal(clean, mixed)
    assert not any(model.get_parameter(f"heads.{name}.bias").any() for name in model.heads)


# ------------------------------------------------------------------- stems and widths


def cifar_resnet18_parameters(channels: tuple[int, ...], classes: int) -> int:
    """Count convolutions without bias, and a scale and a shift per batch norm."""

    def conv(inputs: int, outputs: int, side: int) -> int:
        return inputs * outputs * side * side + 2 * outputs

    total, width = conv(3, channels[0], 3), channels[0]
    for stage, outputs in enumerate(channels):
        total += conv(width, outputs, 3) + 3 * conv(outputs, outputs, 3)
        total += conv(width, outputs, 1) if stage else 0
        width = outputs
    return total + width * classes + classes


@pytest.mark.parametrize(
    ("width", "channels"),
    [(1.0, (64, 128, 256, 512)), (0.25, (16, 32, 64, 128)), (0.05, (8, 8, 16, 24))],
)
def test_width_scales_the_channels_of_a_resnet18(width: float, channels: tuple[int, ...]) -> None:
    model = build_model("resnet18", 100, stem="cifar", width=width, heads=("clean",))
    assert sum(p.numel() for p in model.parameters()) == cifar_resnet18_parameters(channels, 100)
    assert model.backbone.bn1.num_features == channels[0]
    # The stem is initialized by fan-out, like the rest of the network.
    spread = model.backbone.conv1.weight.std().item()
    assert spread == pytest.approx((2 / (9 * channels[0])) ** 0.5, rel=0.25)


def test_full_width_matches_the_parameter_count_of_the_authors() -> None:
    assert cifar_resnet18_parameters((64, 128, 256, 512), 100) == 11_220_132


@pytest.mark.parametrize("name", ["resnet18", "resnet18d", "resnext50_32x4d", "resnest14d"])
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_the_cifar_stem_keeps_the_resolution(name: str, width: float) -> None:
    model = build_model(name, 5, stem="cifar", width=width, image_size=32)
    conv = model.backbone.conv1
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
    assert conv.bias is None
    assert isinstance(model.backbone.maxpool, nn.Identity)
    assert model.tap_shape(1)[1:] == (32, 32)
    assert model.tap_shape(3)[1:] == (8, 8)


def test_a_narrow_resnet_keeps_its_7x7_stem() -> None:
    conv = build_model("resnet18", 5, width=0.5).backbone.conv1
    assert conv.weight.shape == (32, 3, 7, 7)
    assert conv.stride == (2, 2)


def test_subsampled_convolutions_equal_plain_ones() -> None:
    net = tiny(width=0.125)
    (shortcut,) = (m for m in net.modules() if isinstance(m, SubsampledConv2d))
    mine, theirs = images(4, 15).requires_grad_(), images(4, 15).requires_grad_()
    features = [torch.cat([x, x, x], dim=1)[:, :8] for x in (mine, theirs)]
    out, expected = shortcut(features[0]), F.conv2d(features[1], shortcut.weight, stride=2)
    torch.testing.assert_close(out, expected)
    for x, y in ((mine, out), (theirs, expected)):
        (x.grad,) = torch.autograd.grad(y.cos().sum(), x)
    torch.testing.assert_close(mine.grad, theirs.grad)
    assert not any(isinstance(m, SubsampledConv2d) for m in tiny().modules())


def test_subsampled_convolutions_keep_parameters_names_and_mode() -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2), nn.BatchNorm2d(16)).eval()
    plain, before = model[0], {name: id(value) for name, value in model.named_parameters()}
    random_state = torch.get_rng_state()
    replace_narrow_strided_convs(model)
    assert isinstance(model[0], SubsampledConv2d)
    assert before == {name: id(value) for name, value in model.named_parameters()}
    assert torch.equal(random_state, torch.get_rng_state())
    assert not model[0].training
    batch = torch.cat([images(2, 9, seed) for seed in range(3)], dim=1)[:, :8]
    torch.testing.assert_close(model[0](batch), plain(batch))


ODD_BATCH = """
import torch
from adautomix.models import build_model
torch.set_num_threads(2)
net = build_model("resnet18", 10, stem="cifar", width=0.125, image_size=32)
net = net.to(memory_format=torch.channels_last)
for _ in range(5):
    net(torch.randn(25, 3, 32, 32)).sum().backward()
"""


@pytest.mark.slow
def test_an_odd_batch_trains_a_narrow_network() -> None:
    """Train in a process of its own, because the bug crashes the process."""
    assert subprocess.run([sys.executable, "-c", ODD_BATCH]).returncode == 0


def test_a_convnext_with_the_cifar_stem() -> None:
    model = build_model("convnext_tiny", 5, stem="cifar", image_size=32)
    assert model.tap_shape(3) == (384, 8, 8)
    conv = model.backbone.stem[0]
    assert conv.weight.shape == (96, 3, 3, 3)
    assert conv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not conv.bias.any()


@pytest.mark.parametrize(
    ("name", "width", "pooled"),
    [
        ("resnet50", 0.25, 512),
        ("resnext50_32x4d", 0.25, 512),
        ("convnext_tiny", 0.25, 192),
        ("swin_tiny_patch4_window7_224", 0.25, 192),  # 24·8
        ("swin_tiny_patch4_window7_224", 0.3, 192),  # 28.8 → 24: 3 heads, multiples of 8
        ("deit_small_patch16_224", 0.25, 96),
        ("deit_small_patch16_224", 0.1, 48),  # 38.4 → 48: 6 heads, multiples of 8
    ],
)
def test_width_in_each_family(name: str, width: float, pooled: int) -> None:
    model = build_model(name, 5, width=width, image_size=64)
    assert weight(model, "clean").shape == (5, pooled)
    assert model(images(2, 64)).shape == (2, 5)


def test_a_narrow_resnext_keeps_its_groups() -> None:
    first = build_model("resnext50_32x4d", 5, width=0.25).backbone.layer1[0].conv2
    assert (first.groups, first.out_channels) == (32, 32)
    with pytest.raises(UsageError, match=r"width 0\.125: too narrow for the 32 groups"):
        build_model("resnext50_32x4d", 5, width=0.125)


# ------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("size", [32, 36])
def test_attention_windows_adapt_to_the_image_size(size: int) -> None:
    model = build_model("swin_tiny_patch4_window7_224", 5, width=0.25, image_size=size)
    assert model.tap_shape(1)[1:] == (size // 4, size // 4)


def test_a_drop_path_of_zero_is_zero_whatever_timm_sets() -> None:
    def rates(**options: Any) -> list[float]:
        model = build_model(
            "swin_tiny_patch4_window7_224", 5, width=0.125, image_size=64, **options
        )
        return [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]

    assert max(rates()) == 0
    assert max(rates(drop_path=0.2)) == pytest.approx(0.2)
    assert max(rates(options={"drop_path_rate": 0.1})) == pytest.approx(0.1)


@pytest.mark.slow
def test_options_and_drop_path_reach_timm() -> None:
    patches = build_model(
        "deit_small_patch16_224", 5, width=0.25, image_size=32, options={"patch_size": 4}
    )
    assert patches.tap_shape(6) == (96, 8, 8)
    dropping = build_model("resnet18", 5, drop_path=0.2).backbone
    assert dropping.layer4[1].drop_path.drop_prob == pytest.approx(0.2)
    gammas = build_model("resnet18", 5, options={"zero_init_last": False}).backbone.layer1[0].bn2
    assert gammas.weight.eq(1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: build_model("resnet19", 5),
            "unknown timm model 'resnet19': did you mean 'resnet18'",
        ),
        (lambda: build_model("resnet18.x", 5), "'resnet18.x': timm has no weights tagged 'x'"),
        (lambda: tiny(stem="vit"), "stem 'vit': use one of standard, cifar"),
        (lambda: tiny(width=0.0), "width must be above 0"),
        (lambda: tiny(heads=()), "at least one class and one head"),
        (
            lambda: tiny(options={"nonsense": 1}),
            "unknown argument 'nonsense': it is no argument of the constructor of",
        ),
        (lambda: tiny(pretrained=True), "pretrained weights fit only stem: standard and width: 1"),
        (
            lambda: build_model("deit_small_patch16_224", 5, stem="cifar"),
            "stem: cifar is for the ResNet and ConvNeXt families",
        ),
        (
            lambda: build_model("efficientnet_b0", 5, width=0.5),
            "width factor is for the ResNet, ConvNeXt, Swin and ViT families",
        ),
    ],
)
def test_wrong_usage_is_one_line(make: Callable[[], Classifier], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_pretrained_weights_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_arguments: Any, **_settings: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", offline)
    message = r"no pretrained weights for resnet18 \(no route to host\): go online once"
    with pytest.raises(RunError, match=message):
        build_model("resnet18", 5, pretrained=True)


def test_the_seed_decides_the_weights_and_leaves_the_global_generator() -> None:
    state = torch.get_rng_state()
    first, again, other = (tiny(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert_same(first, again)
    for name in ("backbone.conv1.weight", "backbone.layer3.0.conv1.weight", "heads.clean.weight"):
        assert not torch.equal(first[name], other[name])


def test_without_a_seed_the_global_generator_decides_the_weights() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        weights.append(tiny(seed=None).state_dict())
    assert_same(*weights)


def test_a_spec_builds_the_network_again() -> None:
    model = tiny(drop_path=0.1, heads=("clean", "mixed", "third"), options={"drop_rate": 0.3})
    stored = json.loads(json.dumps(dataclasses.asdict(model.spec)))
    again = build_model(**stored)
    assert again.spec == model.spec
    again.load_state_dict(model.state_dict())
    batch = images(2, 32)
    assert torch.equal(again.eval()(batch, "third"), model.eval()(batch, "third"))


# ---------------------------------------------------------------- compiling, precision and modes


@pytest.mark.slow
def test_compiling_gives_one_graph_and_equal_results() -> None:
    model = tiny().eval()
    batch = images(2, 32)
    compiled = torch.compile(
        lambda pixels: model.features(pixels, 3), backend="eager", fullgraph=True
    )
    with torch.no_grad():
        ours, theirs = compiled(batch), model.features(batch, 3)
    torch.testing.assert_close(ours.pooled, theirs.pooled)
    torch.testing.assert_close(ours.tap, theirs.tap)


def test_under_bfloat16_autocast() -> None:
    model = tiny().eval()
    batch = images(2, 32)
    with torch.no_grad():
        exact = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(batch)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.02, rtol=0.05)


def test_frozen_running_stats_use_batch_statistics() -> None:
    model, batch = tiny(), images(4, 32)
    before = buffers(model)
    with frozen_running_stats(model):
        frozen = model(batch)
    assert_same(before, buffers(model))
    assert torch.equal(frozen, model(batch))
    assert [name for name, value in model.named_buffers() if torch.equal(value, before[name])] == []


def test_one_forward_can_count_as_several_updates_of_the_statistics() -> None:
    once, often, batch = tiny(), tiny(), images(4, 32)
    often.load_state_dict(once.state_dict())
    with repeated_updates(once, 4):
        logits = once(batch)
    for _ in range(4):
        assert torch.equal(often(batch), logits)
    for name, value in buffers(often).items():
        if value.is_floating_point():
            torch.testing.assert_close(buffers(once)[name], value)
    assert once.backbone.bn1.momentum == often.backbone.bn1.momentum == 0.1


def test_frozen_running_stats_do_not_change_evaluation() -> None:
    model, batch = tiny(), images(4, 32)
    model(batch)
    model.eval()
    with frozen_running_stats(model):
        inside = model(batch)
    assert torch.equal(inside, model(batch))


def test_frozen_running_stats_are_restored_after_errors_and_nested_blocks() -> None:
    model = tiny()
    model.backbone.bn1.track_running_stats = False
    flags = [getattr(module, "track_running_stats", None) for module in model.modules()]
    with pytest.raises(ZeroDivisionError), frozen_running_stats(model), frozen_running_stats(model):
        _ = 1 / 0
    with frozen_running_stats(model):
        with frozen_running_stats(model):
            pass
        assert not model.backbone.layer1[0].bn1.track_running_stats
    assert flags == [getattr(module, "track_running_stats", None) for module in model.modules()]


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [
        ("resnet18", 32, "cifar"),
        ("convnext_tiny", 64, "cifar"),
        ("resnet18", 65, "standard"),
        ("deit_small_patch16_224", 32, "standard"),
        ("mobilenetv3_small_100", 32, "standard"),
    ],
)
def test_default_stem_depends_on_size_and_family(name: str, size: int, stem: str) -> None:
    assert default_stem(name, size) == stem


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("resnet18", {"options": {"in_chans": 1}}, "to have 1 channels, but got 3"),
        ("resnet18", {"options": {"global_pool": ""}}, "shapes cannot be multiplied"),
        ("test_vit", {"image_size": 8}, "should be divisible by patch size"),
        ("convnext_atto", {"image_size": 2}, "Kernel size can't be greater"),
    ],
)
def test_a_network_that_cannot_run_is_one_line(
    name: str, arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError) as error:
        build_model(name, 5, **arguments)
    message = str(error.value)
    assert message.startswith(f"model {name} with options ")
    assert reason in message
    assert message.endswith("change image_size or options")
    assert "\n" not in message


def test_the_check_of_a_network_draws_and_changes_nothing() -> None:
    model = tiny()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    build.check_forward(model)
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_examples_in_docstrings() -> None:
    outcome = doctest.testmod(build, extraglobs={"torch": torch})
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_a_module_that_a_network_uses_twice_keeps_its_values() -> None:
    """CoaT shares the position encodings of its blocks."""
    model = build_model("coat_lite_tiny", 3, image_size=32, width=1.0, seed=0)
    assert not any(value.is_meta for value in model.state_dict().values())
