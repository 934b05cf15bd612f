"""Build a `Classifier` from any timm network."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, get_args

import torch
from torch import nn

from adautomix.errors import UsageError
from adautomix.models.arguments import check_build_arguments
from adautomix.models.classifier import Classifier
from adautomix.models.families import create_timm_network, timm_plan
from adautomix.models.narrow import spare_narrow_shortcuts
from adautomix.models.spec import HEADS, ModelSpec, Stem


def build_model(
    name: str,
    num_classes: int,
    *,
    stem: Stem = "standard",
    width: float = 1.0,
    pretrained: bool = False,
    image_size: int = 224,
    drop_path: float = 0.0,
    heads: Sequence[str] = HEADS,
    options: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Classifier:
    """A timm network with linear heads, on the CPU, in train mode.

    Args:
        name: a timm architecture, with or without a weights tag ("resnet18.a1_in1k").
        num_classes: K, outputs of every head.
        stem: "cifar" puts one 3×3 stride-1 convolution in the place of the stem and its
            max-pool, for images of 32 to 64 pixels (ResNet and ConvNeXt families).
        width: factor on every channel count, rounded to multiples of 8 (and of what the
            attention heads need); ResNet, ConvNeXt, Swin and ViT families.
        pretrained: start from timm's published weights; needs them cached or a network.
        image_size: pixels a side; networks of a fixed input size are built for it.
        drop_path: rate of stochastic depth, 0 to 1.
        heads: names of the linear heads.
        options: further arguments of `timm.create_model`.
        seed: draw the weights from this seed and leave torch's own random state
            alone; None draws from torch's.

    Raises:
        UsageError: unknown name, or arguments the network cannot take.
        RunError: the pretrained weights could not be had.
    """
    spec = ModelSpec(
        name, num_classes, stem, width, image_size, drop_path, tuple(heads), dict(options or {})
    )
    _check(spec, pretrained)
    plan = timm_plan(spec)
    with nullcontext() if seed is None else _seeded(seed):
        backbone = create_timm_network(spec, plan.arguments, pretrained)
        _replace(backbone, plan.replacements)
        spare_narrow_shortcuts(backbone)
        return Classifier(backbone, spec)


def _check(spec: ModelSpec, pretrained: bool) -> None:
    import timm

    check_build_arguments(spec.name, spec.options)
    _, _, tag = spec.name.partition(".")
    if tag and not timm.models.is_model_pretrained(spec.name):
        raise UsageError(f"model {spec.name!r}: timm has no weights tagged {tag!r}")
    if spec.stem not in get_args(Stem):
        raise UsageError(f"stem {spec.stem!r}: use one of {', '.join(get_args(Stem))}")
    if spec.width <= 0 or spec.num_classes < 1 or not spec.heads:
        raise UsageError(
            f"model {spec.name}: width must be above 0, and classes and heads at least one"
        )
    if pretrained and (spec.stem != "standard" or spec.width != 1):
        raise UsageError("pretrained weights fit only stem: standard and width: 1")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The CPU's random numbers from a seed, and its former state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _replace(backbone: nn.Module, replaced: dict[str, dict[str, Any] | None]) -> None:
    """Put the plan's modules into the backbone, initialized by the family's own rule."""
    for path, arguments in replaced.items():
        backbone.set_submodule(path, nn.Conv2d(**arguments) if arguments else nn.Identity())
        if arguments:
            _initialize_stem(backbone.get_submodule(path))


def _initialize_stem(conv: Any) -> None:
    """Timm's rules: ResNet's convolutions, which have no bias, by fan-out; ConvNeXt's by 0.02."""
    if conv.bias is None:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.trunc_normal_(conv.weight, std=0.02)
        nn.init.zeros_(conv.bias)
