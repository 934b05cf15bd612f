"""The mixes of test images that suites look at: a run's own, or those of a plain method."""

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

LARGEST_BATCH = 32
FEWEST = 16  # images a batch: as many as any method mixes with one another
# More is seen in a few batches where each mix has its own λ; all are to have as many sources.
LIVELY = {"per_sample": True, "random_n": False}


@dataclass(frozen=True)
class Mixer:
    """A method with what it had learned, mixing pixels.

    Attributes:
        method: the method.
        mean: of the normalized images that it mixes, for pixels in [0, 1]; `[3, 1, 1]`.
        std: likewise.
        student: for methods that look inside the network; None for those that need nothing.
        teacher: its moving average.
    """

    method: Method
    mean: Tensor
    std: Tensor
    student: Any = None
    teacher: Any = None

    def make_params(self, pixels: Tensor, generator: torch.Generator) -> MixParams:
        """The random part of the mixes of a batch `[B, 3, H, W]`."""
        return self.method.make_params(pixels.shape, generator, 0).to(pixels.device)

    def mix(self, pixels: Tensor, labels: Tensor, params: MixParams) -> Mixed:
        """The mixes of pixels `[B, 3, H, W]` in [0, 1], as pixels, without gradient."""
        images = (pixels - self.mean) / self.std
        targets = soft_targets(labels, self.method.num_classes)
        mixed = self.method.mix_batch(images, targets, self.student, self.teacher, params)
        return dataclasses.replace(mixed, images=mixed.images.detach() * self.std + self.mean)


def own_mixer(target: EvalTarget, which: str | None = None) -> Mixer:
    """The method of the target's run with what it had learned.

    Args:
        target: its `run` is given.
        which: name of a checkpoint; None: the one under evaluation.

    Raises:
        UsageError: the run has no such checkpoint.
        RunError: it is damaged.
    """
    if target.run is None:
        raise UsageError(f"{target.name} is no run: name a run folder")
    which = which or str(target.source["checkpoint"])
    trained = load_trained(target.run, which=which, device=str(target.device))
    mean, std = (torch.tensor(trained.card[name])[:, None, None] for name in ("mean", "std"))
    return Mixer(
        lively(trained.method),
        mean.to(target.device),
        std.to(target.device),
        trained.networks["student"],
        trained.networks["teacher"],
    )


def plain_mixer(name: str, target: EvalTarget) -> Mixer:
    """A method that mixes nothing but its input, with its default settings."""
    method = build_method(name, num_classes=len(target.classes))
    zero = torch.zeros(3, 1, 1, device=target.device)
    return Mixer(lively(method), zero, zero + 1)


def lively(method: Method) -> Method:
    """The method with those of the `LIVELY` settings that it has."""
    known = type(method.settings).model_fields.keys() & LIVELY.keys()
    method.settings = method.settings.model_copy(update={name: LIVELY[name] for name in known})
    return method


def shuffled_batches(
    target: EvalTarget, count: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Test images in random order, as pixels `[B, 3, H, W]`, and their labels `[B]`.

    There are `count` of them, or all where the test set is smaller, but never fewer than
    `FEWEST`: a smaller set is repeated. Batches are about equal and not larger than
    `LARGEST_BATCH`.
    """
    have = len(target.data.test)
    count = max(FEWEST, min(count, have))
    rows = torch.randperm(have, generator=generator)[torch.arange(count) % have]
    for some in rows.chunk(-(-count // LARGEST_BATCH)):
        yield from target.batches(target.data.test.subset(some), len(some))


def weights_of(mixed: Mixed) -> Tensor:
    """Weight of each source at each pixel, `[M, N, H, W]`: the masks, or λ where there are none."""
    masks = mixed.masks
    if masks is not None:
        return masks
    return mixed.lam.float()[:, :, None, None].expand(-1, -1, *mixed.images.shape[2:])
