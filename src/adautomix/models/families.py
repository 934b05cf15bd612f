"""What a stem or a width factor means in each family of timm networks.

A plan reads the channel counts of the original network (built without storage), so that it holds
for every variant that timm has.
"""

import math
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from adautomix.errors import RunError, UsageError
from adautomix.models.arguments import check_build_arguments
from adautomix.models.spec import ModelSpec, Stem, TimmPlan


def default_stem(name: str, image_size: int) -> Stem:
    """The stem for images of this size: "cifar" up to 64 pixels a side, where the family has it."""
    if image_size > 64:
        return "standard"
    try:
        timm_plan(ModelSpec(name, num_classes=1, stem="cifar", image_size=image_size))
    except UsageError:
        return "standard"
    return "cifar"


def timm_plan(spec: ModelSpec) -> TimmPlan:
    """What makes the spec's backbone with timm alone.

    Raises:
        UsageError: there is no such architecture, or the family has no such stem, width or option.
    """
    import timm

    # Before timm sees the name and the options: both may come from a file.
    check_build_arguments(spec.name, spec.options)
    arguments = dict(spec.options)
    if spec.drop_path:
        arguments["drop_path_rate"] = spec.drop_path
    card = timm.get_pretrained_cfg(spec.name)
    if card is not None and card.fixed_input_size:
        arguments["img_size"] = spec.image_size
    if spec.stem == "standard" and spec.width == 1:
        return TimmPlan(arguments)
    with torch.device("meta"):
        original = create_timm_network(spec, arguments)
    changes = _family_plan(spec.name, original)(original, spec)
    return TimmPlan(arguments | changes.arguments, changes.replacements)


# What a stem or width means in each family. A plan reads the channel counts of the original
# network (built without storage), so that it holds for every variant that timm has.

_FamilyPlan = Callable[[Any, ModelSpec], TimmPlan]


def _family_plan(name: str, original: nn.Module) -> _FamilyPlan:
    from timm.models.convnext import ConvNeXt
    from timm.models.resnet import ResNet
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2
    from timm.models.vision_transformer import VisionTransformer

    families: dict[type, _FamilyPlan] = {
        ResNet: _resnet_plan,
        ConvNeXt: _convnext_plan,
        SwinTransformer: _swin_plan,
        SwinTransformerV2: _swin_plan,
        VisionTransformer: _vit_plan,
    }
    for family, plan in families.items():
        if isinstance(original, family):
            return plan
    raise UsageError(
        f"model {name}: a width factor is for the ResNet, ConvNeXt, Swin and ViT families,"
        " stem: cifar for ResNet and ConvNeXt"
    )


def _resnet_plan(original: Any, spec: ModelSpec) -> TimmPlan:
    arguments: dict[str, Any] = {}
    replaced: dict[str, dict[str, Any] | None] = {}
    inplanes = original.bn1.num_features
    if spec.width != 1:
        inplanes = _scaled(inplanes, spec.width)
        arguments = {"channels": _resnet_channels(original, spec), "stem_width": inplanes // 2}
        if isinstance(original.conv1, nn.Conv2d):
            # timm scales only its deep stems (to twice stem_width): ask for one, for the sake
            # of what follows it, and put the single convolution back.
            arguments["stem_type"] = "deep"
            replaced["conv1"] = _conv(inplanes, kernel_size=7, stride=2, bias=False)
    if spec.stem == "cifar":
        replaced |= {"conv1": _conv(inplanes, bias=False), "maxpool": None}
    return TimmPlan(arguments, replaced)


def _resnet_channels(original: Any, spec: ModelSpec) -> tuple[int, ...]:
    """Scaled planes of the stages (their outputs before a bottleneck's expansion)."""
    blocks = [getattr(original, stage["module"])[0] for stage in original.feature_info[1:]]
    outputs = [stage["num_chs"] for stage in original.feature_info[1:]]
    planes = [count // block.expansion for count, block in zip(outputs, blocks, strict=True)]
    channels = tuple(_scaled(count, spec.width) for count in planes)
    # timm rounds the channels of a ResNeXt group down: they must not come to none.
    conv = blocks[0].conv2
    groups = getattr(conv, "groups", 1)
    if groups > 1 and conv.out_channels * channels[0] < groups * planes[0]:
        raise UsageError(f"width {spec.width}: too narrow for the {groups} groups of {spec.name}")
    return channels


def _convnext_plan(original: Any, spec: ModelSpec) -> TimmPlan:
    dims = tuple(_scaled(stage["num_chs"], spec.width) for stage in original.feature_info)
    arguments: dict[str, Any] = {"dims": dims}
    if spec.stem == "standard":
        return TimmPlan(arguments)
    stem = _conv(dims[0], bias=original.stem[0].bias is not None)
    return TimmPlan(arguments | {"stem_type": "patch", "patch_size": 1}, {"stem.0": stem})


def _swin_plan(original: Any, spec: ModelSpec) -> TimmPlan:
    heads = [stage.blocks[0].attn.num_heads for stage in original.layers]
    # Stage s has embed_dim·2^s channels, which its heads must divide.
    needed = [count // math.gcd(count, 2**stage) for stage, count in enumerate(heads)]
    return _transformer_plan(original, spec, math.lcm(*needed))


def _vit_plan(original: Any, spec: ModelSpec) -> TimmPlan:
    return _transformer_plan(original, spec, original.blocks[0].attn.num_heads)


def _transformer_plan(original: Any, spec: ModelSpec, heads: int) -> TimmPlan:
    if spec.stem == "cifar":
        raise UsageError(
            f"model {spec.name} has patches, not a stem: stem: cifar is for the ResNet and"
            " ConvNeXt families; for small images set options: {patch_size: 4} or the like"
        )
    return TimmPlan({"embed_dim": _scaled(original.embed_dim, spec.width, math.lcm(8, heads))})


def _scaled(channels: int, width: float, multiple: int = 8) -> int:
    """The nearest multiple to channels × width, at least one multiple."""
    return max(1, round(channels * width / multiple)) * multiple


def _conv(
    channels: int, kernel_size: int = 3, stride: int = 1, bias: bool = True
) -> dict[str, Any]:
    """A first convolution: arguments of `nn.Conv2d`, padded to keep size / stride."""
    return {
        "in_channels": 3,
        "out_channels": channels,
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": kernel_size // 2,
        "bias": bias,
    }


def create_timm_network(
    spec: ModelSpec, arguments: dict[str, Any], pretrained: bool = False
) -> Any:
    """The timm network without its classifier; timm's many errors become one line."""
    import timm

    try:
        return timm.create_model(spec.name, pretrained=pretrained, num_classes=0, **arguments)
    except Exception as error:  # timm, torch, the hub and its cache raise all kinds
        reason = textwrap.shorten(str(error) or type(error).__name__, 200)
        if pretrained and not isinstance(error, TypeError):
            raise RunError(
                f"no pretrained weights for {spec.name} ({reason}): go online once to cache them,"
                " or train from scratch with pretrained: false"
            ) from error
        raise UsageError(f"model {spec.name} with {arguments}: {reason}") from error
