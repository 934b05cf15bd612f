"""Mixes of test images for the suites that look at mixes: by a run's method or by a plain one."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.evaluation.target import EvalTarget
from adautomix.methods import Method, Mixed, MixParams, build_method
from adautomix.mixing.ops import soft_targets
from adautomix.runs.trained import load_trained

MAX_BATCH = 32
MIN_BATCH = 16
"""Images per batch: the largest number that any method mixes with one another."""

# One λ per sample shows more variety in a few batches; every mix has the same number of sources.
_VARIED_SETTINGS = {"per_sample": True, "random_n": False}


@dataclass(frozen=True)
class Mixer:
    """A method with its trained weights, applied to pixels.

    Attributes:
        method: the mixing method.
        mean: mean that the method's input is normalized with, for pixels in [0, 1], `[3, 1, 1]`.
        std: standard deviation that the method's input is normalized with, `[3, 1, 1]`.
        student: network for methods that need one; otherwise None.
        teacher: moving average of the student, or None.
    """

    method: Method
    mean: Tensor
    std: Tensor
    student: Any = None
    teacher: Any = None

    def make_params(self, pixels: Tensor, generator: torch.Generator) -> MixParams:
        """Return random mixing parameters (λ, permutation, …) for a batch `[B, 3, H, W]`."""
        params: MixParams = self.method.make_params(pixels.shape, generator, 0)
        return params.to(pixels.device)

    def mix(self, pixels: Tensor, labels: Tensor, params: MixParams) -> Mixed:
        """Return the mixes of pixels `[B, 3, H, W]` in [0, 1], as pixels, without gradient."""
        images = (pixels - self.mean) / self.std
        targets = soft_targets(labels, self.method.num_classes)
        mixed = self.method.mix_batch(images, targets, self.student, self.teacher, params)
        return dataclasses.replace(mixed, images=mixed.images.detach() * self.std + self.mean)


def run_mixer(target: EvalTarget, checkpoint: str | None = None) -> Mixer:
    """Return the method of the target's run with its trained weights.

    Args:
        target: a run.
        checkpoint: name of a checkpoint; None uses the one under evaluation.

    Raises:
        UsageError: the target is not a run, or the run has no such checkpoint.
        RunError: the checkpoint is damaged.
    """
    if target.run is None:
        raise UsageError(f"{target.name} is not a run: pass a run folder")
    checkpoint = checkpoint or str(target.source["checkpoint"])
    trained = load_trained(target.run, checkpoint=checkpoint, device=str(target.device))
    mean, std = (torch.tensor(trained.data_info[name])[:, None, None] for name in ("mean", "std"))
    return Mixer(
        with_varied_mixes(trained.method),
        mean.to(target.device),
        std.to(target.device),
        trained.networks["student"],
        trained.networks["teacher"],
    )


def plain_mixer(name: str, target: EvalTarget) -> Mixer:
    """Return a method that needs no network, with its default settings."""
    method = build_method(name, num_classes=len(target.classes))
    zero = torch.zeros(3, 1, 1, device=target.device)
    return Mixer(with_varied_mixes(method), zero, zero + 1)


def with_varied_mixes(method: Method) -> Method:
    """Set one λ per sample and a fixed number of sources, if the method has these settings."""
    names = type(method.settings).model_fields.keys() & _VARIED_SETTINGS.keys()
    update = {name: _VARIED_SETTINGS[name] for name in names}
    method.settings = method.settings.model_copy(update=update)
    return method


def shuffled_batches(
    target: EvalTarget, count: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield test images in random order, in batches of about equal size up to `MAX_BATCH`.

    Args:
        target: provides the test images.
        count: number of images. A smaller test set is used whole, and repeated if it has fewer
            than `MIN_BATCH` images.
        generator: CPU random number generator for the order.

    Yields:
        Pixels `[B, 3, H, W]` in [0, 1] and labels `[B]`.
    """
    available = len(target.data.test)
    count = max(MIN_BATCH, min(count, available))
    order = torch.randperm(available, generator=generator)[torch.arange(count) % available]
    for rows in order.chunk(-(-count // MAX_BATCH)):
        yield from target.batches(target.data.test.subset(rows), len(rows))


def source_weights(mixed: Mixed) -> Tensor:
    """Return the weight of each source at each pixel, `[M, N, H, W]`: the masks, or else λ."""
    masks = mixed.masks
    if masks is not None:
        return masks
    return mixed.lam.float()[:, :, None, None].expand(-1, -1, *mixed.images.shape[2:])
