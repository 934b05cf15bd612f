"""Checks of images and labels where they enter the package.

Shapes and dtypes are always checked. Values are checked only where the tensor is on the CPU: to
read values of a GPU tensor, the host would have to wait for the device.
"""

import torch
from torch import Tensor

from adautomix.errors import UsageError

SUM_TOLERANCE = 1e-2
"""How far the sum of a row of soft labels may be from 1; half-precision labels need some room."""


def check_batch(
    images: Tensor, labels: Tensor, num_classes: int, *, multi_label: bool = False
) -> None:
    """Check a training batch.

    Args:
        images: float `[B, C, H, W]`.
        labels: integer class indices `[B]`, or soft labels, float `[B, K]`.
        num_classes: number of classes, K.
        multi_label: rows of soft labels need not sum to 1, only lie between 0 and 1.

    Raises:
        UsageError: names the argument and what to do about it.
    """
    check_images(images)
    if len(labels) != len(images):
        raise UsageError(
            f"labels has {len(labels)} rows and images has {len(images)}: pass one label per image"
        )
    if labels.ndim == 1:
        _check_indices(labels, num_classes)
    else:
        _check_soft_labels(labels, num_classes, multi_label)


def check_images(images: Tensor) -> None:
    """Check that images are a batch of floats.

    Raises:
        UsageError: they are not.
    """
    if images.ndim != 4:
        raise UsageError(
            f"images has shape {list(images.shape)}: pass a batch of shape [B, C, H, W]"
        )
    if not images.is_floating_point():
        name = str(images.dtype).removeprefix("torch.")
        raise UsageError(
            f"images is {name}: convert to float and normalize first, (images / 255 - mean) / std"
        )


def _check_indices(labels: Tensor, num_classes: int) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        name = str(labels.dtype).removeprefix("torch.")
        raise UsageError(
            f"labels of shape [B] is {name}: pass integer class indices, or soft labels of shape "
            f"[B, {num_classes}]"
        )
    if not _can_read(labels) or not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low == -100:
        raise UsageError(
            "labels contains -100, the index that cross_entropy ignores: remove these images from "
            "the batch"
        )
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise UsageError(
            f"labels contains {wrong}: class indices go from 0 to {num_classes - 1} with "
            f"num_classes={num_classes}"
        )


def _check_soft_labels(labels: Tensor, num_classes: int, multi_label: bool) -> None:
    shape = list(labels.shape)
    if labels.ndim != 2:
        raise UsageError(f"labels has shape {shape}: pass [B] or [B, {num_classes}]")
    if shape[1] == 1 and num_classes != 1:
        raise UsageError(f"labels has shape {shape}: pass class indices of shape [B], squeeze(1)")
    if shape[1] != num_classes:
        raise UsageError(
            f"labels has {shape[1]} columns and num_classes is {num_classes}: they must agree"
        )
    if not labels.is_floating_point() or not _can_read(labels):
        return
    if multi_label:
        if not bool(((labels >= 0) & (labels <= 1)).all()):
            raise UsageError("labels of shape [B, K] must lie between 0 and 1 with loss='bce'")
        return
    sums = labels.detach().float().sum(dim=1)
    in_range = bool((labels >= 0).all())
    if not in_range or not bool(((sums - 1).abs() <= SUM_TOLERANCE).all()):
        raise UsageError(
            "labels of shape [B, K] are not probabilities: each row must be at least 0 and sum to "
            "1; apply softmax to logits"
        )


def _can_read(tensor: Tensor) -> bool:
    """Whether looking at values costs no wait for a device and breaks no compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
