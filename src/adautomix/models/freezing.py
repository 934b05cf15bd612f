"""Freeze the first layers of a network, up to a stage, while the rest is trained.

A part is named as timm names its modules, such as `layer3` (ResNet), `stages.1` (ConvNeXt) or
`blocks.5` (ViT), and contains everything that comes before it in the network's own module order.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from adautomix.errors import UsageError
from adautomix.models.classifier import Classifier
from adautomix.models.spec import NetworkPart

BACKBONE = "backbone"
"""Name of the part that leaves only the heads to train."""


def part_up_to(model: Classifier, name: str) -> NetworkPart:
    """Return everything up to and including a module of the backbone.

    Args:
        model: the network.
        name: path of the module, with or without "backbone." before it; "backbone" is all of it.

    Raises:
        UsageError: the backbone has no such module; the message lists its stages.
    """
    path = name.removeprefix(f"{BACKBONE}.")
    modules = dict(model.backbone.named_modules())
    inside = [one for one in modules if path == BACKBONE or _contains(path, one)]
    if not inside:
        raise UsageError(
            f"freeze = {name}: {model.spec.name} has no such stage; name one of "
            f"{', '.join(stage_names(model))}, or {BACKBONE} for all of them"
        )
    order = list(modules)
    chosen = order[: order.index(inside[-1]) + 1]
    # A module around the last one also contains layers that are trained.
    around = {one for one in chosen if not one or _contains(one, path)} - set(inside)
    return NetworkPart(
        frozenset(
            joined(BACKBONE, one, own)
            for one in chosen
            for own, parameter in modules[one].named_parameters(recurse=False)
            if parameter.requires_grad
        ),
        frozenset(
            joined(BACKBONE, one) for one in chosen if one not in around and modules[one].training
        ),
    )


def _contains(path: str, other: str) -> bool:
    """Whether a module is at `path` or inside it; the root, whose path is "", is not."""
    return bool(path) and f"{other}.".startswith(f"{path}.")


def joined(*names: str) -> str:
    """Return a dotted path without its empty parts."""
    return ".".join(name for name in names if name)


def stage_names(model: Classifier) -> list[str]:
    """Return the parts of the backbone with parameters, in its own order.

    A module that holds several stages is named by its first and last child.
    """
    names = []
    for name, module in model.backbone.named_children():
        if not any(True for _ in module.parameters()):
            continue
        inner = [child for child, _ in module.named_children()]
        holds_stages = any(stage.startswith(f"{BACKBONE}.{name}.") for stage in model.stages)
        several = holds_stages and len(inner) > 1
        names.append(f"{name}.{inner[0]} to {name}.{inner[-1]}" if several else name)
    return names


def set_frozen(model: Classifier, teacher: nn.Module, part: NetworkPart, *, frozen: bool) -> None:
    """Freeze a part of the student, or train it again.

    Frozen layers compute as in evaluation: their parameters need no gradients, batch norm uses and
    keeps its running statistics, and nothing is dropped.

    Args:
        model: the student.
        teacher: its moving average, whose batch norm uses the statistics of the batch except in
            frozen layers, so that it computes what the student computes.
        part: the layers.
        frozen: whether they are frozen from now on.
    """
    for name, parameter in model.named_parameters():
        if name in part.parameters:
            parameter.requires_grad_(not frozen)
    for name, module in model.named_modules():
        if name in part.modules:
            module.training = not frozen
    for name, module in teacher.named_modules():
        if name in part.modules and isinstance(module, _BatchNorm):
            module.training = not frozen
