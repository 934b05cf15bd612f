"""The optimizer and its learning rates, shared by the student and the method's own parameters."""

import math
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from adautomix.config import TrainConfig
from adautomix.methods import Method
from adautomix.models import Classifier
from adautomix.models.layer_scales import layer_scales


def build_optimizer(
    config: TrainConfig, student: nn.Module, method: Method
) -> torch.optim.Optimizer:
    """Build SGD or AdamW over the student and, unless they have their own, the method's parameters.

    Each parameter group stores the range of its learning rate as `max_lr` and `min_lr`, and
    whether it belongs to the method as `of_method`.
    """
    scales: Mapping[str, float] = {}
    if config.layer_decay < 1 and isinstance(student, Classifier):
        scales = layer_scales(student, config.layer_decay)
    trained = trained_parameters(student)
    groups = parameter_groups(trained, config, config.lr, config.min_lr, scales=scales)
    if not method.own_optimizer:
        groups += method_groups(config, method)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            groups,
            lr=config.lr,
            betas=(config.momentum, 0.999),
            fused=True,
            capturable=next(student.parameters()).is_cuda,
        )
    sgd = torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
    )
    # If fp16 skips the first step, the fused kernel leaves its momentum buffers uninitialized.
    if config.momentum:
        for parameter in (p for group in sgd.param_groups for p in group["params"]):
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def trained_parameters(student: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield names and parameters of a network, without those that the settings freeze."""
    frozen = student.frozen.parameters if isinstance(student, Classifier) else frozenset()
    return ((name, one) for name, one in student.named_parameters() if name not in frozen)


def build_method_optimizer(config: TrainConfig, method: Method) -> torch.optim.Optimizer | None:
    """AdamW over the method's parameters, or None where the student's optimizer has them."""
    if not method.own_optimizer:
        return None
    groups = [group | method.own_optimizer_options for group in method_groups(config, method)]
    return torch.optim.AdamW(groups, fused=True, capturable=next(method.parameters()).is_cuda)


def method_groups(config: TrainConfig, method: Method) -> list[dict[str, Any]]:
    """Groups of the method's parameters with its own learning rates."""
    rates = method.learning_rates(config.lr, config.min_lr)
    return parameter_groups(method.named_parameters(), config, *rates, of_method=True)


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: TrainConfig,
    max_lr: float,
    min_lr: float,
    *,
    scales: Mapping[str, float] = MappingProxyType({}),
    of_method: bool = False,
) -> list[dict[str, Any]]:
    """Split parameters into a group with and one without weight decay; leave out empty groups.

    Args:
        parameters: names and parameters.
        config: the settings: how much decay there is, and for which parameters.
        max_lr: learning rate at its maximum.
        min_lr: learning rate at the end of training.
        scales: factors of the learning rates by name of the parameter; 1 for those it lacks. There
            are two groups per factor.
        of_method: whether the parameters are the method's own.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        decays = config.decay_1d or parameter.ndim > 1
        exempt = not decays or any(part in name for part in config.no_decay)
        groups.setdefault((scales.get(name, 1.0), exempt), []).append(parameter)
    return [
        {
            "params": held,
            "weight_decay": 0.0 if exempt else config.weight_decay,
            "lr": max_lr * scale,
            "max_lr": max_lr * scale,
            "min_lr": min_lr * scale,
            "of_method": of_method,
        }
        for (scale, exempt), held in sorted(groups.items(), key=lambda group: group[0])
    ]


def cosine_schedule(steps: int, warmup: int, hold: int = 1, *, probe: int = 0) -> list[float]:
    """The learning rate factor of every step: 0 at the minimum, 1 at the maximum.

    It rises linearly for `warmup` steps and then falls along half a cosine.

    Args:
        steps: optimizer steps of the whole training.
        warmup: steps of the warm-up.
        hold: steps for which the cosine keeps its value; those of an epoch change it once per
            epoch.
        probe: steps at the start that train only the heads, at the maximum; the warm-up and the
            cosine are those of the steps after them.
    """
    if probe:
        return [1.0] * probe + cosine_schedule(steps - probe, warmup, hold)
    falling = max(1, steps - warmup)

    def cosine(t: int) -> float:
        held = max(warmup, t - t % hold)
        return (1 + math.cos(math.pi * (held - warmup) / falling)) / 2

    return [(t + 1) / warmup if t < warmup else cosine(t) for t in range(steps)]


def learning_rate(group: dict[str, Any], factor: float | Tensor) -> float | Tensor:
    """The learning rate of a group between `min_lr` (factor 0) and `max_lr` (factor 1).

    Returns:
        A float, or a float32 tensor if `factor` is a tensor.
    """
    rate: float | Tensor = group["min_lr"] + (group["max_lr"] - group["min_lr"]) * factor
    return rate.float() if isinstance(rate, Tensor) else rate


def has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether any parameter has a gradient; those of a generator that rests have none."""
    groups = optimizer.param_groups
    return any(weight.grad is not None for group in groups for weight in group["params"])


def set_learning_rate(
    optimizer: torch.optim.Optimizer,
    factor: float | Tensor,
    method_factor: float | Tensor | None = None,
) -> None:
    """Set the learning rate of every group, see `learning_rate`.

    Args:
        optimizer: what `build_optimizer` returned.
        factor: position between minimum and maximum.
        method_factor: that of the method's own parameters; None if it is the same.
    """
    own = factor if method_factor is None else method_factor
    for group in optimizer.param_groups:
        # Checkpoints of earlier versions do not say whose group it is; all were alike then.
        group["lr"] = learning_rate(group, own if group.get("of_method") else factor)
