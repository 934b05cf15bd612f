"""Metrics of predictions: accuracy, likelihood, calibration, and accuracy under mixing."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adautomix.models import evaluating


def mixture_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Fraction of the label's weight that falls on the top predictions.

    For a label with k classes the k most likely classes count. With one-hot labels this is top-1
    accuracy; with mixed labels it is what training accuracy means under mixing.

    Args:
        logits: `[B, K]`.
        targets: soft labels, `[B, K]`.

    Returns:
        Mean over the batch, 0 to 1, a scalar without gradient.
    """
    with torch.no_grad():
        classes = (targets > 0).sum(dim=1, keepdim=True)
        by_rank = targets.gather(1, logits.argsort(dim=1, descending=True))
        predicted = torch.arange(targets.shape[1], device=targets.device) < classes
        fraction = (by_rank * predicted).sum(dim=1) / targets.sum(dim=1)
        return fraction.mean()


class Scores(NamedTuple):
    """What one network gave on one set; accuracies and ECE are shares, 0 to 1.

    Attributes:
        top1: share of images whose most likely class is right.
        top5: share whose class is among the five most likely (all, with fewer classes).
        nll: mean negative log-likelihood of the right class, in nats.
        ece: expected calibration error over 15 equal-width bins of confidence.
    """

    top1: float
    top5: float
    nll: float
    ece: float


def collect_logits(
    networks: Mapping[str, nn.Module], batches: Iterable[tuple[Tensor, Tensor]], head: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Float32 logits `[n, K]` of each network and the labels `[n]`, in one pass over the data."""
    logits: dict[str, list[Tensor]] = {name: [] for name in networks}
    labels: list[Tensor] = []
    with evaluating(*networks.values()):
        for images, batch_labels in batches:
            labels.append(batch_labels)
            for name, network in networks.items():
                logits[name].append(network(images, head=head).float())
    return {name: torch.cat(parts) for name, parts in logits.items()}, torch.cat(labels)


def score(logits: Tensor, labels: Tensor) -> Scores:
    """The scores of logits `[n, K]` against labels `[n]`."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    classes = logits.shape[1]
    top = logits.topk(min(5, classes), dim=1).indices == labels[:, None]
    ece = multiclass_calibration_error(
        logits.softmax(dim=1), labels, num_classes=classes, n_bins=15, norm="l1"
    )
    values = torch.stack(
        [
            top[:, 0].double().mean(),
            top.any(dim=1).double().mean(),
            F.cross_entropy(logits, labels).double(),
            ece.double(),
        ]
    )
    return Scores(*values.tolist())
