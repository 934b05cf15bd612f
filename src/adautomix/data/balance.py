"""Classes of unequal size: weights for the loss, and balanced sampling."""

from typing import Literal

import torch
from torch import Tensor

ClassWeighting = Literal["balanced", "effective"]


def class_weights(labels: Tensor, num_classes: int, scheme: ClassWeighting, beta: float) -> Tensor:
    """Weight of each class in the cross-entropy.

    "balanced" weighs a class by the inverse of its number of images n. "effective" weighs it by
    (1 - beta) / (1 - beta^n), the inverse of the effective number of images in "Class-Balanced
    Loss Based on Effective Number of Samples" (Cui et al., CVPR 2019, equation 3). The weights are
    scaled so that their mean over the labels of the training images is 1: the loss of a network
    that knows nothing is as large as without weights, and so is the learning rate that suits it.

    Args:
        labels: class indices of the training images, int64 `[n]`, or 0 and 1 for each class,
            `[n, K]`; every class occurs.
        num_classes: number of classes, K.
        scheme: how classes are weighted.
        beta: 0 to 1, exclusive; closer to 1 is closer to "balanced". Only "effective" uses it.

    Returns:
        Float32 `[K]`.
    """
    counts = count_classes(labels, num_classes).double().cpu()
    weights = 1 / counts if scheme == "balanced" else (1 - beta) / (1 - beta**counts)
    return (weights * (counts.sum() / (weights * counts).sum())).float()


def count_classes(labels: Tensor, num_classes: int) -> Tensor:
    """Number of images of each class, int64 `[K]`.

    Args:
        labels: class indices `[n]`, or 0 and 1 for each class `[n, K]`.
        num_classes: number of classes, K.
    """
    if labels.ndim == 2:
        return labels.sum(dim=0).long()
    return labels.bincount(minlength=num_classes)


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw as many images as there are, each class with the same probability.

    Images of small classes are drawn repeatedly and some of large classes not at all, as with
    `torch.utils.data.WeightedRandomSampler`.

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
