"""Accuracy, likelihood and calibration of networks on a labelled set."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adautomix.evaluation.subject import Subject
from adautomix.evaluation.suite import Parts, Suite, SuiteResult, SuiteSettings
from adautomix.models import evaluating


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


class AccuracyResult(SuiteResult):
    """`Scores` of each network, by name."""

    networks: dict[str, dict[str, float]]


def run_accuracy(subject: Subject, settings: SuiteSettings, parts: Parts) -> AccuracyResult:
    """Score each network on the test images."""

    def compute() -> dict[str, dict[str, float]]:
        logits, labels = subject.logits()
        return {name: score(values, labels)._asdict() for name, values in logits.items()}

    return AccuracyResult(networks=parts.get("scores", compute))


ACCURACY = Suite(
    name="accuracy",
    summary="top-1, top-5, negative log-likelihood and ECE on the test images",
    run=run_accuracy,
    Result=AccuracyResult,
)
