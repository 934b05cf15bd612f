"""Choose how many images a forward pass may take for its memory to stay within a bound."""

from typing import Any

import torch
from torch import Tensor, nn

from adautomix.models.modes import evaluating

WORKSPACE = 4  # measured: layouts are converted, and a residual connection holds its input


def forward_bytes(model: nn.Module, images: Tensor, **options: Any) -> int:
    """The memory per image of a forward pass without gradients.

    The largest input and output of a layer are held at the same time, and what a layer computes in
    between.

    Args:
        model: the network.
        images: one image as the network takes it, `[1, 3, H, W]`.
        options: further arguments of the network.
    """
    largest = 0

    def measure(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        held = sum(
            value.numel() * value.element_size()
            for value in (*inputs, output)
            if isinstance(value, Tensor)
        )
        largest = max(largest, held)

    leaves = (module for module in model.modules() if not any(module.children()))
    hooks = [module.register_forward_hook(measure) for module in leaves]
    try:
        with evaluating(model):
            model(images, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return WORKSPACE * largest


def fitting_batch(requested: int, bytes_per_image: int, max_memory: float) -> int:
    """The number of images per forward pass, at most as many as requested and at least one.

    Args:
        requested: the number of images to use if they fit.
        bytes_per_image: see `forward_bytes`.
        max_memory: bound on the memory in GiB.
    """
    return max(1, min(requested, int(max_memory * 2**30) // max(1, bytes_per_image)))


def one_image(image_size: int, device: torch.device) -> Tensor:
    """A black image, float32 `[1, 3, image_size, image_size]`."""
    return torch.zeros(1, 3, image_size, image_size, device=device)
