"""Optimizer and learning rates: one optimizer for the student and for what the method learns."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from adautomix.config import TrainConfig
from adautomix.methods import Method


def build_optimizer(
    config: TrainConfig, student: nn.Module, method: Method
) -> torch.optim.Optimizer:
    """SGD or AdamW over the student and the method's own parameters.

    Each group carries the ends of its learning rate as `max_lr` and `min_lr`.
    """
    groups = [
        *parameter_groups(student.parameters(), config, config.lr, config.min_lr),
        *parameter_groups(
            method.parameters(), config, *method.learning_rates(config.lr, config.min_lr)
        ),
    ]
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
    # A first step that fp16 skips would leave the fused kernel's momentum as uninitialized memory.
    if config.momentum:
        for parameter in (p for group in sgd.param_groups for p in group["params"]):
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def parameter_groups(
    parameters: Iterable[nn.Parameter], config: TrainConfig, max_lr: float, min_lr: float
) -> list[dict[str, Any]]:
    """Parameters with and without weight decay; empty groups are left out."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in parameters:
        (decayed if config.decay_1d or parameter.ndim > 1 else plain).append(parameter)
    rates = {"lr": max_lr, "max_lr": max_lr, "min_lr": min_lr}
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, **rates},
        {"params": plain, "weight_decay": 0.0, **rates},
    ]
    return [group for group in groups if group["params"]]


def cosine_schedule(steps: int, warmup: int) -> list[float]:
    """The learning rate at every step, as a share of the way from its floor (0) to its top (1).

    A linear rise over the first `warmup` steps, then half a cosine down.
    """
    falling = max(1, steps - warmup)
    return [
        (t + 1) / warmup if t < warmup else (1 + math.cos(math.pi * (t - warmup) / falling)) / 2
        for t in range(steps)
    ]


def learning_rate(group: dict[str, Any], share: float | Tensor) -> float | Tensor:
    """A group's rate, `share` of the way up from its floor; float32 where `share` is a tensor."""
    rate: float | Tensor = group["min_lr"] + (group["max_lr"] - group["min_lr"]) * share
    return rate.float() if isinstance(rate, Tensor) else rate


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float | Tensor) -> None:
    """Set every group's rate to `share` of the way up from its floor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(group, share)
