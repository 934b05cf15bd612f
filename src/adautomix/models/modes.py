"""Context managers for evaluation mode and for batch norm that keeps its running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Switch models to evaluation mode without gradients; restore each module's mode afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the output for an image depends on the other images of a training batch."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def updates_running_stats(model: nn.Module) -> bool:
    """Whether a forward pass in the current mode updates batch-norm running statistics."""
    return any(
        isinstance(module, _BatchNorm) and module.training and module.track_running_stats
        for module in model.modules()
    )


@contextmanager
def frozen_running_stats(model: nn.Module) -> Iterator[None]:
    """Let forward passes in training mode use batch statistics without updating the running ones.

    Unlike frozen batch norm, which normalizes by its running statistics, the output is that of a
    usual forward pass in training mode. Blocks may be nested.
    """
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


@contextmanager
def repeated_updates(model: nn.Module, count: int) -> Iterator[None]:
    """Let one train-mode forward move batch-norm statistics as `count` equal ones would.

    With momentum m the statistics of a batch then have the weight `1 - (1 - m)^count`.
    """
    tracking = [
        (module, module.momentum)
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.momentum
    ]
    try:
        for module, momentum in tracking if count > 1 else ():
            module.momentum = 1 - (1 - momentum) ** count
        yield
    finally:
        for module, momentum in tracking:
            module.momentum = momentum
