"""Build a `Classifier` from any timm network."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from adautomix.errors import UsageError, one_line
from adautomix.models.arguments import check_build_arguments
from adautomix.models.classifier import Classifier
from adautomix.models.families import create_timm_network, timm_plan
from adautomix.models.modes import evaluating
from adautomix.models.spec import HEADS, ModelSpec, Stem
from adautomix.models.strided_conv import replace_narrow_strided_convs
from adautomix.rng import seeded


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
    """Create a timm network with linear heads, on the CPU and in training mode.

    Args:
        name: a timm architecture, with or without the tag of pretrained weights
            ("resnet18.a1_in1k").
        num_classes: K, number of outputs of every head.
        stem: "cifar" replaces the first layers and their max-pool by one 3×3 convolution with
            stride 1, for images of 32 to 64 pixels (ResNet and ConvNeXt families).
        width: factor on every channel count, which is rounded to a multiple of 8 (and of what the
            attention heads need); ResNet, ConvNeXt, Swin and ViT families.
        pretrained: load timm's published weights, from its cache or by download.
        image_size: side of the input images in pixels. Networks with a fixed input size are built
            for it.
        drop_path: stochastic depth rate, 0 to 1; 0 switches off what timm sets by default (Swin).
        heads: names of the linear heads.
        options: further keyword arguments of `timm.create_model`.
        seed: seed of the initial weights; the global generators keep their states. None draws
            them from PyTorch's global generator.

    Raises:
        UsageError: the name is unknown, or the network does not accept an argument.
        RunError: the pretrained weights cannot be loaded.

    Example:
        >>> model = build_model("resnet18", 10, stem="cifar", width=0.25, image_size=32)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    spec = ModelSpec(
        name, num_classes, stem, width, image_size, drop_path, tuple(heads), dict(options or {})
    )
    _check(spec, pretrained)
    plan = timm_plan(spec)
    with nullcontext() if seed is None else seeded(seed):
        backbone = create_timm_network(spec, plan.arguments, pretrained)
        if not drop_path and "drop_path_rate" not in spec.options:
            _switch_off_drop_path(backbone)
        _replace_modules(backbone, plan.replacements)
        replace_narrow_strided_convs(backbone)
        model = Classifier(backbone, spec)
    check_forward(model)
    return model


def check_forward(model: Classifier) -> None:
    """Check that a network accepts RGB images of its size and returns logits.

    Raises:
        UsageError: it does not.
    """
    size = model.spec.image_size
    shape = (1, 3, size, size)
    try:
        # Sizes can be checked without computing anything, which takes no time for large images.
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        meta = {name: torch.empty_like(value, device="meta") for name, value in tensors.items()}
        with evaluating(model):
            image = torch.empty(shape, device="meta")
            # With ties, PyTorch would leave modules that a network uses twice on the meta device.
            call = (image, next(iter(model.heads)))
            logits = functional_call(model, meta, call, tie_weights=False)
    except Exception:  # a network that holds tensors outside of its buffers cannot run like that
        logits = run_on_blank_image(model, shape)
    if not isinstance(logits, Tensor) or logits.shape != (1, model.num_classes):
        raise UsageError(
            f"model {model.spec.name} does not return one row of logits per image with options "
            f"{model.spec.options}: leave out options that change its input or its pooling"
        )


def run_on_blank_image(model: Classifier, shape: tuple[int, ...]) -> Tensor:
    """Logits of one image of zeros.

    Raises:
        UsageError: the network fails; timm and PyTorch raise many types.
    """
    try:
        with evaluating(model):
            logits: Tensor = model(torch.zeros(shape), next(iter(model.heads)))
    except Exception as error:
        reason = one_line(error, 160)
        raise UsageError(
            f"model {model.spec.name} with options {model.spec.options} fails on one image of "
            f"shape {list(shape)} ({type(error).__name__}: {reason}): change image_size or options"
        ) from error
    return logits


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
            f"model {spec.name}: width must be above 0, and there must be at least one class and "
            "one head"
        )
    if pretrained and (spec.stem != "standard" or spec.width != 1):
        raise UsageError("pretrained weights fit only stem: standard and width: 1")


def _switch_off_drop_path(backbone: nn.Module) -> None:
    """Keep every path: timm builds some families with a stochastic depth rate above 0."""
    from timm.layers.drop import DropPath

    for module in backbone.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0


def _replace_modules(
    backbone: nn.Module, replacements: Mapping[str, dict[str, Any] | None]
) -> None:
    """Carry out the replacements of a `TimmPlan`, initialized as the family does."""
    for path, arguments in replacements.items():
        backbone.set_submodule(path, nn.Conv2d(**arguments) if arguments else nn.Identity())
        if arguments:
            _initialize_stem(backbone.get_submodule(path))


def _initialize_stem(conv: Any) -> None:
    """Initialize as timm does: by fan-out in a ResNet (no bias), with std 0.02 in a ConvNeXt."""
    if conv.bias is None:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.trunc_normal_(conv.weight, std=0.02)
        nn.init.zeros_(conv.bias)
