"""Metrics of predictions: accuracy, likelihood, calibration, and accuracy under mixing."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adautomix.device import exact
from adautomix.models import evaluating


def mixture_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Fraction of the label's weight that falls on the top predictions.

    For a label with k classes the k most likely classes count. With one-hot labels this is top-1
    accuracy; with mixed labels it is what training accuracy means under mixing. A label without
    any class, which only multi-label data has, counts as predicted.

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
        return torch.where(classes[:, 0] > 0, fraction, 1.0).mean()


class Scores(NamedTuple):
    """Scores of one network on one split; accuracies, ECE and mAP are fractions, 0 to 1.

    Attributes:
        top1: fraction of images whose most likely class is right.
        top5: fraction of images of which one of the five most likely classes is right.
        nll: mean negative log-likelihood of the label, in nats.
        ece: expected calibration error over 15 equal-width bins of confidence; with several labels
            per image, of the probabilities of all classes.
        map: mean average precision over the classes that occur, for data with several labels per
            image; None for others.
    """

    top1: float
    top5: float
    nll: float
    ece: float
    map: float | None = None

    def __str__(self) -> str:
        """The score that matters most, as progress lines show it."""
        return f"{self.top1:.2%}" if self.map is None else f"mAP {self.map:.2%}"

    def present(self) -> dict[str, float]:
        """The scores by name; mAP only where there is one."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    @property
    def main(self) -> float:
        """The score that decides which network is better: mAP if there is one, else top-1."""
        return self.top1 if self.map is None else self.map


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


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the most likely class of each image is its class, or one of them; bool `[n]`.

    Args:
        logits: `[n, K]`.
        labels: class indices `[n]`, or 0 and 1 for each class `[n, K]`.
    """
    return _are_right(logits.argmax(dim=1, keepdim=True), labels)[:, 0]


def _are_right(classes: Tensor, labels: Tensor) -> Tensor:
    """Whether each of some classes `[n, k]` is a class of the image; bool `[n, k]`."""
    return classes == labels[:, None] if labels.ndim == 1 else labels.gather(1, classes) > 0


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Return the scores of logits `[n, K]`.

    Args:
        logits: float `[n, K]`.
        labels: class indices `[n]`, or 0 and 1 for each class `[n, K]`.
    """
    return _score_classes(logits, labels) if labels.ndim == 1 else _score_labels(logits, labels)


def _score_labels(logits: Tensor, labels: Tensor) -> Scores:
    """Scores where an image may have several labels, or none."""
    from torchmetrics.functional.classification import (
        binary_calibration_error,
        multilabel_average_precision,
    )

    present = labels.bool().any(dim=0)
    probabilities, truth = logits.sigmoid(), labels.int()
    top = _are_right(logits.topk(min(5, logits.shape[1]), dim=1).indices, labels)
    precision = multilabel_average_precision(
        probabilities[:, present], truth[:, present], num_labels=int(present.sum()), average="macro"
    )
    nll = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=1)
    ece = binary_calibration_error(probabilities.flatten(), truth.flatten(), n_bins=15, norm="l1")
    values = [exact(top[:, 0]).mean(), exact(top.any(dim=1)).mean(), exact(nll).mean()]
    return Scores(*torch.stack([*values, exact(ece), exact(precision)]).tolist())


def _score_classes(logits: Tensor, labels: Tensor) -> Scores:
    """Scores where every image has one class."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    classes = logits.shape[1]
    top = _are_right(logits.topk(min(5, classes), dim=1).indices, labels)
    ece = multiclass_calibration_error(
        logits.softmax(dim=1), labels, num_classes=classes, n_bins=15, norm="l1"
    )
    values = torch.stack(
        [
            exact(top[:, 0]).mean(),
            exact(top.any(dim=1)).mean(),
            exact(F.cross_entropy(logits, labels)),
            exact(ece),
        ]
    )
    return Scores(*values.tolist())
