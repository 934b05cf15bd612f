"""Input-mixing methods as functions, for anybody's training loop.

    mixed = adautomix.functional.cutmix(images, labels, num_classes=100, alpha=1.0)
    loss = torch.nn.functional.cross_entropy(model(mixed.images), mixed.targets)

There is a function for every method of the table that only mixes its input; each takes the
settings of its method by name.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adautomix.methods import METHODS, InputMixing, Mixed
from adautomix.mixing.ops import soft_targets
from adautomix.validation import one_line_errors, setting_names


def mix_with(
    method: type[InputMixing],
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    generator: torch.Generator | None = None,
    **settings: Any,
) -> Mixed:
    """Draw and apply one mix; neither input is changed.

    Args:
        method: the method's class.
        images: float `[B, C, H, W]`, on any device.
        labels: class indices `[B]` or soft labels `[B, K]`.
        num_classes: K.
        generator: a CPU generator that the mix is drawn from; none: PyTorch's global one.
        settings: the method's own settings.

    Raises:
        UsageError: unknown setting or value out of range.
    """
    name = method.name
    with one_line_errors(name, lambda: setting_names(f"{name}.", method.Settings)):
        mixer = method(method.Settings(**settings), num_classes=num_classes)
    params = mixer.make_params(images.shape, generator or torch.default_generator, 0).to(
        images.device
    )
    return mixer.mix(images, soft_targets(labels, num_classes), params)


def __getattr__(name: str) -> Callable[..., Mixed]:
    method = METHODS.get(name)
    if method is None or not issubclass(method, InputMixing):
        raise AttributeError(f"module 'adautomix.functional' has no method {name!r}")
    return partial(mix_with, method)


def __dir__() -> list[str]:
    return [name for name, method in METHODS.items() if issubclass(method, InputMixing)]
