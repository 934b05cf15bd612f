"""The weights of a `Classifier` under timm's names, with one of its heads as timm's classifier.

A head is one linear layer on the pooled features. Most timm networks end in such a layer; others
end in a 1×1 convolution, a batch norm before the layer, an average of several layers, or one layer
per part of the features. All of these can compute the same logits, which is what this module
fills in. A network that ends in anything else cannot be exported and is refused.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.models.classifier import Classifier
from adautomix.models.families import timm_plan

_ADDED = ("aux_head",)
"""Classifiers whose output timm adds to that of the others (VOLO); their weights become zero."""


def timm_state_dict(model: Classifier, head: str = "clean") -> dict[str, Tensor]:
    """Copy the weights under timm's names to the CPU, with one head as timm's classifier.

    Args:
        model: the network.
        head: name of the head.

    Raises:
        UsageError: the network has no such head, or timm's network computes its logits in a way
            that a linear head cannot reproduce.
    """
    if head not in model.heads:
        raise UsageError(f"head {head!r}: the network has {', '.join(model.heads)}")
    state = dict(model.backbone.state_dict())
    state |= _classifier_weights(model, cast(nn.Linear, model.heads[head]))
    return {name: _cpu_copy(value) for name, value in state.items()}


def check_exportable(model: Classifier) -> None:
    """Check, without computing anything, that the network can be exported after its training.

    Raises:
        UsageError: timm's network computes its logits in a way that a linear head cannot reproduce.
    """
    _classifier_weights(model, cast(nn.Linear, next(iter(model.heads.values()))))


def timm_skeleton(model: Classifier) -> Any:
    """Return timm's own network, with its classifier, on the meta device."""
    import timm

    spec, plan = model.spec, timm_plan(model.spec)
    with torch.device("meta"):
        network = timm.create_model(spec.name, num_classes=spec.num_classes, **plan.arguments)
        replace_modules(network, plan.replacements)
    return network


def replace_modules(
    network: nn.Module, replacements: Mapping[str, Mapping[str, Any] | None]
) -> None:
    """Carry out the replacements of a `TimmPlan`, with PyTorch's initial weights."""
    for path, conv in replacements.items():
        network.set_submodule(path, nn.Conv2d(**conv) if conv else nn.Identity())


def _cpu_copy(value: Tensor) -> Tensor:
    """Copy a tensor to the CPU; safetensors needs contiguous memory that is not shared."""
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _classifier_weights(model: Classifier, head: nn.Linear) -> dict[str, Tensor]:
    """The state of the modules that timm's network has and the backbone does not."""
    network = timm_skeleton(model)
    expected, own = network.state_dict(), model.backbone.state_dict()
    missing = expected.keys() - own.keys()
    parents = {name.rpartition(".")[0] for name in missing}
    modules = {name: network.get_submodule(name) for name in _in_order(network, parents)}
    state = dict(_filled(modules, head.weight.detach(), head.bias.detach()))
    shapes = {name: value.shape for name, value in (own | state).items()}
    if shapes != {name: value.shape for name, value in expected.items()}:
        raise UsageError(
            f"model {model.spec.name} could not be exported after its training, because timm's "
            f"{type(network).__name__} does not compute its logits by one linear layer: choose "
            "another network"
        )
    return state


def _in_order(network: nn.Module, names: set[str]) -> list[str]:
    """Return names of modules in the order in which the network holds them."""
    return [name for name, _ in network.named_modules() if name in names]


def _filled(
    modules: Mapping[str, nn.Module], weight: Tensor, bias: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """The state of each module such that together they compute `weight @ pooled + bias`."""
    linear = {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Linear | nn.Conv2d) and name not in _ADDED
    }
    widths = [layer.weight.shape[1] for layer in linear.values()]
    shares = dict(zip(linear, _shares(widths, weight), strict=False))
    for name, module in modules.items():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            yield from ((f"{name}.{key}", value) for key, value in _identity(module).items())
        elif name in _ADDED:
            for key, value in module.state_dict().items():
                yield f"{name}.{key}", torch.zeros(value.shape)
        elif name in shares and shares[name].numel() == linear[name].weight.numel():
            yield f"{name}.weight", shares[name].reshape(linear[name].weight.shape)
            if linear[name].bias is not None:
                yield f"{name}.bias", bias


def _shares(widths: list[int], weight: Tensor) -> list[Tensor]:
    """The weight of each of several layers whose outputs timm averages; empty if none fits.

    Each layer either reads all features, or its own part of them (CrossViT).
    """
    features = weight.shape[1]
    if all(width == features for width in widths):
        return [weight] * len(widths)
    if sum(widths) == features:
        return [part * len(widths) for part in weight.split(widths, dim=1)]
    return []


def _identity(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> dict[str, Tensor]:
    """The state of a batch norm that changes nothing in evaluation mode."""
    size = norm.num_features
    state = {"running_mean": torch.zeros(size), "running_var": torch.full((size,), 1 - norm.eps)}
    if norm.affine:
        state |= {"weight": torch.ones(size), "bias": torch.zeros(size)}
    return state | {"num_batches_tracked": torch.tensor(0)}
