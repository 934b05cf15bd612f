"""FGSM, PGD and the random step that serves as their control, on pixels in [0, 1]."""

import math
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.models import evaluating

Norm = Literal["linf", "l2"]

_TINY = 1e-12


def loss_gradient(network: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient `[B, 3, H, W]` of each image's cross-entropy with respect to its pixels.

    No gradient is accumulated in the network's parameters.
    """
    with torch.enable_grad():
        pixels = pixels.detach().requires_grad_()
        loss = F.cross_entropy(network(pixels), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)
    return gradient


def fgsm(network: nn.Module, pixels: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Fast gradient sign method: one step of size ε along the sign of the gradient.

    Args:
        network: returns logits `[B, K]` for pixels; it is run in evaluation mode.
        pixels: `[B, 3, H, W]` in [0, 1].
        labels: true classes, int64 `[B]`.
        epsilon: L∞ size of the step in pixels, 0 to 1.

    Returns:
        Adversarial pixels `[B, 3, H, W]` in [0, 1], at most ε from the given ones.
    """
    with evaluating(network):
        gradient = loss_gradient(network, pixels, labels)
    return (pixels + epsilon * gradient.sign()).clamp(0, 1)


def pgd(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    epsilon: float,
    steps: int,
    step_size: float,
    norm: Norm = "linf",
    generator: torch.Generator | None = None,
    restarts: int = 1,
) -> Tensor:
    """Projected gradient descent: many steps, each projected onto the ε-ball and onto [0, 1].

    Args:
        network: returns logits `[B, K]` for pixels; it is run in evaluation mode.
        pixels: `[B, 3, H, W]` in [0, 1].
        labels: true classes, int64 `[B]`.
        epsilon: radius of the ball in pixels: of the largest change of a pixel (L∞), or of the
            whole image's change (L2).
        steps: number of steps, at least 1.
        step_size: length of a step in the same norm.
        norm: "linf" or "l2".
        generator: CPU generator for random starts, see `random_starts`; None starts at the image.
        restarts: number of starts; later ones are only tried on images that are still classified
            correctly.

    Returns:
        Adversarial pixels `[B, 3, H, W]` in [0, 1], at most ε from the given ones.

    Raises:
        UsageError: several starts without a generator, which would all be the same.
    """
    if generator is None and restarts > 1:
        raise UsageError(
            f"restarts = {restarts} needs random starts: pass a generator, or use one start"
        )
    starts = random_starts(pixels, epsilon, norm, generator, restarts)
    climb = partial(ascend, network, epsilon=epsilon, steps=steps, step_size=step_size, norm=norm)
    with evaluating(network):
        attacked = climb(pixels, labels, starts[0])
        for start in starts[1:]:
            correct = (network(attacked).argmax(dim=1) == labels).nonzero()[:, 0]
            if len(correct):
                attacked[correct] = climb(pixels[correct], labels[correct], start[correct])
    return attacked


def ascend(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    norm: Norm,
) -> Tensor:
    """Return where the steps of `pgd` lead from `start`; all images are `[B, 3, H, W]`."""
    attacked = start
    for _ in range(steps):
        step = step_size * steepest_direction(loss_gradient(network, attacked, labels), norm)
        # Clamping moves a pixel towards the original one, so the result stays within ε.
        attacked = (pixels + project(attacked + step - pixels, epsilon, norm)).clamp(0, 1)
    return attacked


def steepest_direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the step of length 1 that raises the loss fastest; 0 where the gradient is 0."""
    return gradient.sign() if norm == "linf" else gradient / l2_norm(gradient).clamp_min(_TINY)


def project(change: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """Return the nearest change `[B, 3, H, W]` whose norm is at most ε."""
    if norm == "linf":
        return change.clamp(-epsilon, epsilon)
    return change * (epsilon / l2_norm(change).clamp_min(_TINY)).clamp_max(1)


def l2_norm(change: Tensor) -> Tensor:
    """Return the L2 norm of each image's change `[B, 3, H, W]`, as `[B, 1, 1, 1]`."""
    norm: Tensor = torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)
    return norm


def random_starts(
    pixels: Tensor,
    epsilon: float,
    norm: Norm,
    generator: torch.Generator | None,
    restarts: int = 1,
) -> Tensor:
    """Return random starts for `pgd`, `[R, B, 3, H, W]` in [0, 1], at most ε from the pixels.

    Starts are uniform in the ball (L∞) or on its surface (L2), which holds nearly all of the
    volume in so many dimensions. Random numbers are drawn image by image: with one generator for
    all batches, an image gets the same starts whatever the batch size.

    Args:
        pixels: `[B, 3, H, W]` in [0, 1].
        epsilon: radius of the ball in pixels.
        norm: "linf" or "l2".
        generator: CPU generator; None returns the pixels themselves as the only start.
        restarts: number R of starts.
    """
    if generator is None:
        return pixels[None]
    # uniform_ draws its numbers in order whatever the shape; normal_ draws them in blocks.
    uniform = torch.rand(len(pixels), restarts, *pixels.shape[1:], generator=generator)
    if norm == "linf":
        change = epsilon * (2 * uniform - 1)
    else:
        gaussian = torch.special.ndtri(uniform.clamp_min(torch.finfo(torch.float32).eps / 4))
        directions = [steepest_direction(g, "l2") for g in gaussian.unbind(1)]
        change = epsilon * torch.stack(directions, dim=1)
    return (pixels + change.to(pixels.device).transpose(0, 1)).clamp(0, 1)


def random_step(pixels: Tensor, epsilon: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """Return pixels `[B, 3, H, W]` after a step of size ε along random signs, clamped to [0, 1].

    This is the control for the attacks. Random numbers are drawn image by image, as in
    `random_starts`.
    """
    signs = torch.rand(pixels.shape, generator=generator).sub(0.5).sign().to(pixels.device)
    length = epsilon if norm == "linf" else epsilon / math.sqrt(pixels[0].numel())
    return (pixels + length * signs).clamp(0, 1)
