"""Facts about networks that the user already has: stages, classification layer, image size."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from adautomix.errors import UsageError


def is_torchvision(model: nn.Module, name: str) -> bool:
    """Whether a network is of the torchvision class of that name; torchvision is not imported."""
    return any(
        cls.__name__ == name and cls.__module__.startswith("torchvision.models.")
        for cls in type(model).__mro__
    )


def known_stages(model: nn.Module) -> list[str]:
    """Paths of the stages of a network whose family is known; empty for others."""
    info = getattr(model, "feature_info", None)  # timm
    if isinstance(info, list) and info:
        has_stem = info[0]["module"] in ("act1", "stem")
        paths = [str(stage["module"]) for stage in info[has_stem:]]
    elif is_torchvision(model, "ResNet"):
        paths = [f"layer{k}" for k in range(1, 5)]
    elif is_torchvision(model, "ConvNeXt") or is_torchvision(model, "SwinTransformer"):
        paths = [f"features.{k}" for k in (1, 3, 5, 7)]  # stem, stage, downsampling, stage …
    elif is_torchvision(model, "VisionTransformer"):
        layers = model.get_submodule("encoder.layers")
        paths = [f"encoder.layers.{name}" for name, _ in layers.named_children()]
    else:
        paths = []
    # A few timm networks list modules that they do not have.
    modules = {name for name, _ in model.named_modules()}
    return paths if modules.issuperset(paths) else []


def suited_tap(model: nn.Module, stages: Sequence[str]) -> int:
    """The last stage but one (third of four); the middle block of a plain vision transformer."""
    info = getattr(model, "feature_info", None)
    is_isotropic = isinstance(info, list) and len({stage["reduction"] for stage in info}) == 1
    if is_isotropic or is_torchvision(model, "VisionTransformer"):
        return max(1, len(stages) // 2)
    return max(1, len(stages) - 1)


def find_head(model: nn.Module) -> str:
    """Path of the layer that computes the logits.

    Raises:
        UsageError: it cannot be found, or there is more than one.
    """
    get_classifier = getattr(model, "get_classifier", None)  # timm
    classifier: Any = get_classifier() if get_classifier is not None else None
    if isinstance(classifier, tuple):
        raise UsageError(
            f"{type(model).__name__} has {len(classifier)} classification layers: use a network "
            "with one, for example the variant without distillation"
        )
    for name, module in model.named_modules():
        if module is classifier and (paths := head_paths(module)):
            return f"{name}.{paths[-1]}".strip(".")
    for name in ("fc", "head", "heads", "classifier"):
        child = getattr(model, name, None)
        if isinstance(child, nn.Module) and (paths := head_paths(child)):
            return f"{name}.{paths[-1]}".strip(".")
    raise UsageError(
        f"{type(model).__name__}: cannot tell which layer computes the logits; name it, "
        "wrap_model(model, head='fc')"
    )


def head_paths(module: nn.Module) -> list[str]:
    """Paths, relative to a module, of the layers in it that could compute logits."""
    return [str(name) for name, child in module.named_modules() if is_head(child)]


def is_head(module: nn.Module) -> bool:
    """Whether a layer computes logits from pooled features: linear, or a 1×1 convolution."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def require_module(model: nn.Module, path: str) -> None:
    """Check that a network has a module of that name.

    Raises:
        UsageError: it has none; names its top-level modules.
    """
    try:
        model.get_submodule(path)
    except AttributeError:
        names = ", ".join(name for name, _ in model.named_children())
        raise UsageError(
            f"{type(model).__name__} has no module {path!r}: it has {names}, and their submodules"
        ) from None


def known_image_size(model: nn.Module) -> int:
    """Image size that a network was built for, or that of its pretrained weights, else 224."""
    patches = getattr(model, "patch_embed", None)  # timm
    built_for = getattr(patches, "img_size", None)
    if isinstance(built_for, tuple):
        return int(built_for[-1])
    if is_torchvision(model, "VisionTransformer"):
        return int(model.image_size)  # type: ignore[arg-type]
    cfg = getattr(model, "pretrained_cfg", None)
    size = cfg.get("input_size") if isinstance(cfg, dict) else None
    return int(size[-1]) if size else 224
