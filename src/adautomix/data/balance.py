"""Class weights for the loss and balanced sampling, for classes of unequal size."""

from typing import Literal

import torch
from torch import Tensor

ClassWeighting = Literal["balanced", "effective"]


def class_weights(labels: Tensor, num_classes: int, scheme: ClassWeighting, beta: float) -> Tensor:
    """Return the weight of each class in the cross-entropy.

    "balanced" weights a class by the inverse of its number of images n. "effective" weights it by
    (1 - beta) / (1 - beta^n), the inverse of the effective number of images in "Class-Balanced
    Loss Based on Effective Number of Samples" (Cui et al., CVPR 2019, equation 3). The weights are
    scaled so that their mean over the training labels is 1. This keeps the initial loss, and hence
    a suitable learning rate, the same as without weights.

    Args:
        labels: class indices of the training images, int64 `[n]`, or multi-hot labels `[n, K]`;
            every class must occur.
        num_classes: number of classes, K.
        scheme: how classes are weighted.
        beta: in (0, 1); closer to 1 is closer to "balanced". Only "effective" uses it.

    Returns:
        Float32 `[K]`.
    """
    counts = count_classes(labels, num_classes).double().cpu()
    weights = 1 / counts if scheme == "balanced" else (1 - beta) / (1 - beta**counts)
    return (weights * (counts.sum() / (weights * counts).sum())).float()


def count_classes(labels: Tensor, num_classes: int) -> Tensor:
    """Count the images of each class, int64 `[K]`.

    Args:
        labels: class indices `[n]`, or multi-hot labels `[n, K]`.
        num_classes: number of classes, K.
    """
    if labels.ndim == 2:
        return labels.sum(dim=0).long()
    return labels.bincount(minlength=num_classes)


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw n of n images with replacement, every class with the same probability.

    Images of small classes are drawn repeatedly and some images of large classes not at all, as
    with `torch.utils.data.WeightedRandomSampler`.

    Args:
        labels: class indices of the training images, int64 `[n]`.
        generator: a CPU generator.

    Returns:
        Rows of images in the order of an epoch, int64 `[n]`.
    """
    labels = labels.cpu()
    members = labels.argsort(stable=True)
    counts = labels.bincount()
    first = counts.cumsum(0) - counts
    present = counts.nonzero()[:, 0]
    picked = present[torch.randint(len(present), (len(labels),), generator=generator)]
    within = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    return members[first[picked] + (within * counts[picked]).long()]
