"""Stems for small images and width factors, for each family of timm networks that has them.

A plan reads the channel counts of the original network, built without storage on the meta device,
so that it works for every variant of a family.
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
    """The stem for images of a size: "cifar" up to 64 pixels if the family has it."""
    if image_size > 64:
        return "standard"
    try:
        timm_plan(ModelSpec(name, num_classes=1, stem="cifar", image_size=image_size))
    except UsageError:
        return "standard"
    return "cifar"


def timm_plan(spec: ModelSpec) -> TimmPlan:
    """How to build the backbone of a spec with timm alone.

    Raises:
        UsageError: there is no such architecture, or the family has no such stem, width or option.
    """
    import timm

    # Before timm sees the name and the options: both may come from a file.
    check_build_arguments(spec.name, spec.options)
    arguments = dict(spec.options)
    if spec.drop_path:
        arguments["drop_path_rate"] = spec.drop_path
    pretrained_cfg = timm.get_pretrained_cfg(spec.name)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        arguments["img_size"] = spec.image_size
    if spec.stem == "standard" and spec.width == 1:
        return TimmPlan(arguments)
    with torch.device("meta"):
        original = create_timm_network(spec, arguments)
    changes = _family_plan(spec.name, original)(original, spec)
    return TimmPlan(arguments | changes.arguments, changes.replacements)


_FamilyPlan = Callable[[Any, ModelSpec], TimmPlan]
"""Returns what a spec changes about a network of one family, given the original network."""


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
        f"model {name}: a width factor is for the ResNet, ConvNeXt, Swin and ViT families, and "
        "stem: cifar for the ResNet and ConvNeXt families"
    )


def _resnet_plan(original: Any, spec: ModelSpec) -> TimmPlan:
    arguments: dict[str, Any] = {}
    replacements: dict[str, dict[str, Any] | None] = {}
    inplanes = original.bn1.num_features
    if spec.width != 1:
        inplanes = _scaled(inplanes, spec.width)
        arguments = {"channels": _resnet_channels(original, spec), "stem_width": inplanes // 2}
        if isinstance(original.conv1, nn.Conv2d):
            # timm scales the layers after the stem only if the stem is a deep one (to twice
            # stem_width). Ask for one, then put the single convolution back.
            arguments["stem_type"] = "deep"
            replacements["conv1"] = _conv(inplanes, kernel_size=7, stride=2, bias=False)
    if spec.stem == "cifar":
        replacements |= {"conv1": _conv(inplanes, bias=False), "maxpool": None}
    return TimmPlan(arguments, replacements)


def _resnet_channels(original: Any, spec: ModelSpec) -> tuple[int, ...]:
    """Scaled channel counts of the stages, before the expansion of bottleneck blocks."""
    blocks = [getattr(original, stage["module"])[0] for stage in original.feature_info[1:]]
    outputs = [stage["num_chs"] for stage in original.feature_info[1:]]
    planes = [count // block.expansion for count, block in zip(outputs, blocks, strict=True)]
    channels = tuple(_scaled(count, spec.width) for count in planes)
    # timm rounds down the number of channels per ResNeXt group, which must not become zero.
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
    # Stage s has embed_dim · 2^s channels, which its number of heads must divide.
    divisors = [count // math.gcd(count, 2**stage) for stage, count in enumerate(heads)]
    return _transformer_plan(original, spec, math.lcm(*divisors))


def _vit_plan(original: Any, spec: ModelSpec) -> TimmPlan:
    return _transformer_plan(original, spec, original.blocks[0].attn.num_heads)


def _transformer_plan(original: Any, spec: ModelSpec, heads: int) -> TimmPlan:
    if spec.stem == "cifar":
        raise UsageError(
            f"model {spec.name} has patches, not a stem: stem: cifar is for the ResNet and "
            "ConvNeXt families; for small images use a smaller patch, for example "
            "options: {patch_size: 4}"
        )
    return TimmPlan({"embed_dim": _scaled(original.embed_dim, spec.width, math.lcm(8, heads))})


def _scaled(channels: int, width: float, multiple: int = 8) -> int:
    """Round `channels * width` to a multiple of `multiple`, at least to `multiple` itself."""
    return max(1, round(channels * width / multiple)) * multiple


def _conv(
    channels: int, kernel_size: int = 3, stride: int = 1, bias: bool = True
) -> dict[str, Any]:
    """Arguments of `nn.Conv2d` for a first convolution whose output size is size / stride."""
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
    """Create a timm network without its classifier.

    Args:
        spec: names the network.
        arguments: keyword arguments of `timm.create_model`.
        pretrained: load timm's published weights.

    Raises:
        UsageError: timm does not accept the arguments.
        RunError: the pretrained weights cannot be loaded.
    """
    import timm

    try:
        return timm.create_model(spec.name, pretrained=pretrained, num_classes=0, **arguments)
    except Exception as error:  # timm, torch, the hub and its cache raise many types
        reason = textwrap.shorten(str(error) or type(error).__name__, 200)
        if pretrained and not isinstance(error, TypeError):
            raise RunError(
                f"no pretrained weights for {spec.name} ({reason}): go online once to cache them, "
                "or train from scratch with pretrained: false"
            ) from error
        raise UsageError(f"model {spec.name} with {arguments}: {reason}") from error
