"""Train and evaluation modes, and batch-norm statistics held still."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients; every module gets its own mode back afterwards."""
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
    """Whether images of one batch see each other in this network."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def updates_running_stats(model: nn.Module) -> bool:
    """Whether a forward in the present mode moves batch-norm statistics."""
    return any(
        isinstance(module, _BatchNorm) and module.training and module.track_running_stats
        for module in model.modules()
    )


@contextmanager
def frozen_running_stats(model: nn.Module) -> Iterator[None]:
    """Within it a train-mode forward uses batch statistics but moves no batch-norm buffer."""
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
