"""Results per class, computed once from predictions: what a person can act on.

Accuracy hides which classes a network confuses and how little a small test set says. These results
hold the counts of every class with Wilson intervals, every confusion, and the images on which the
network was most confident and wrong.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

MAX_WRONG = 12  # wrong images that a result lists
DETECTED = 0.5  # probability from which a label counts as predicted, for several labels per image
_Z = NormalDist().inv_cdf(0.975)

Bounds = tuple[float, float]
"""Lower and upper bound of a 95 % interval, 0 to 1."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassResult(_Part):
    """The result on one class; fractions are None where nothing is counted.

    Attributes:
        name: name of the class.
        images: test images of the class.
        correct: those of them that are predicted as the class.
        predicted: test images that are predicted as the class, rightly or wrongly.
        recall: correct / images, the accuracy on the class.
        interval: 95 % Wilson interval of the recall.
        precision: correct / predicted.
        f1: harmonic mean of precision and recall, 2 correct / (images + predicted).
        average_precision: for several labels per image, the mean precision over the ranks of the
            images of the class; otherwise None.
    """

    name: str
    images: int
    correct: int
    predicted: int
    recall: float | None
    interval: Bounds | None
    precision: float | None
    f1: float | None
    average_precision: float | None = None


class Confusion(_Part):
    """How many images of one class are predicted as another; classes are indices."""

    label: int
    predicted: int
    images: int


class WrongImage(_Part):
    """An image whose most likely class is wrong.

    Attributes:
        row: position in the test split.
        file: the image file; None for images that come as arrays.
        labels: classes of the image; empty for an image without labels.
        predicted: the most likely class.
        confidence: its probability, 0 to 1.
        picture: name of a small picture of the image, see `pictures.wrong_photos`; None without.
    """

    row: int
    file: str | None
    labels: list[int]
    predicted: int
    confidence: float
    picture: str | None = None


class ClassResults(_Part):
    """The results of one network on the test images.

    Attributes:
        version: version of this layout.
        multi_label: whether an image may have several labels, or none.
        images: number of test images.
        correct: images whose most likely class is right.
        interval: 95 % Wilson interval of correct / images.
        balanced_accuracy: mean recall over the classes that occur.
        macro_f1: mean F1 over the classes that occur or are predicted.
        mean_average_precision: for several labels per image, the mean average precision over the
            classes that occur; otherwise None.
        classes: one result per class, in the order of the outputs.
        confusions: every pair of different classes that was confused, most frequent first; empty
            for several labels per image.
        wrong: the wrong images that the network is most confident about, at most `MAX_WRONG`.
    """

    version: Literal[1] = 1
    multi_label: bool
    images: int
    correct: int
    interval: Bounds
    balanced_accuracy: float
    macro_f1: float
    mean_average_precision: float | None = None
    classes: list[ClassResult]
    confusions: list[Confusion]
    wrong: list[WrongImage]

    @property
    def accuracy(self) -> float:
        """Fraction of the images whose most likely class is right, 0 to 1."""
        return self.correct / self.images

    @property
    def present(self) -> list[ClassResult]:
        """The classes that occur in the test images."""
        return [one for one in self.classes if one.images]

    @property
    def absent(self) -> list[str]:
        """The names of the classes without a test image, about which nothing is known."""
        return [one.name for one in self.classes if not one.images]

    @property
    def weakest_first(self) -> list[ClassResult]:
        """The classes that occur, from the lowest score; of equals the largest class first."""
        return sorted(self.present, key=lambda one: (main_score(one), -one.images))


def main_score(one: ClassResult) -> float:
    """Return what ranks a class that occurs: its average precision if there is one, else recall."""
    score = one.recall if one.average_precision is None else one.average_precision
    return 0.0 if score is None else score


def wilson_interval(correct: int, images: int) -> Bounds:
    """Return the 95 % Wilson score interval of a fraction (Wilson, 1927, JASA 22).

    Unlike the normal approximation, it stays within 0 and 1 and serves for few images.

    Args:
        correct: number of successes.
        images: number of trials, at least 1.
    """
    p, z2 = correct / images, _Z * _Z
    center = (p + z2 / (2 * images)) / (1 + z2 / images)
    half = _Z * math.sqrt(p * (1 - p) / images + z2 / (4 * images**2)) / (1 + z2 / images)
    low = 0.0 if correct == 0 else center - half  # these two are exact; rounding would miss them
    return low, 1.0 if correct == images else center + half


def class_results(
    logits: Tensor, labels: Tensor, names: Sequence[str], files: Sequence[str] | None = None
) -> ClassResults:
    """Return the results of logits `[n, K]`, n at least 1.

    Args:
        logits: float `[n, K]`.
        labels: class indices int64 `[n]`, or 0 and 1 for each class `[n, K]`.
        names: names of the K classes.
        files: the image files in the same order; None for images that come as arrays.
    """
    several = labels.ndim == 2
    probabilities = logits.sigmoid() if several else logits.float().softmax(dim=1)
    confidence, top = (values.cpu() for values in probabilities.max(dim=1))
    labels = labels.cpu()
    if several:
        return _several_labels(probabilities.cpu(), labels.bool(), confidence, top, names, files)
    counts = _pair_counts(labels, top, len(names))
    correct = {label: n for (label, predicted), n in counts.items() if label == predicted}
    confusions = [
        Confusion(label=label, predicted=predicted, images=n)
        for (label, predicted), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if label != predicted
    ]
    classes = [
        _class_result(name, images, correct.get(k, 0), predicted)
        for k, (name, images, predicted) in enumerate(
            zip(names, _histogram(labels, len(names)), _histogram(top, len(names)), strict=True)
        )
    ]
    wrong = top != labels
    sets = [[label] for label in labels.tolist()]
    listed = _wrong_images(wrong, confidence, top, sets, files)
    return _summarize(classes, wrong, confusions, listed, several=False)


def _pair_counts(labels: Tensor, top: Tensor, classes: int) -> dict[tuple[int, int], int]:
    """Return how often each (label, predicted) occurs; the K² pairs are never held at once."""
    pairs, counts = (labels * classes + top).unique(return_counts=True)
    return {
        divmod(pair, classes): n for pair, n in zip(pairs.tolist(), counts.tolist(), strict=True)
    }


def _histogram(values: Tensor, classes: int) -> list[int]:
    counts: list[int] = values.bincount(minlength=classes).tolist()
    return counts


def _several_labels(
    probabilities: Tensor,
    labels: Tensor,
    confidence: Tensor,
    top: Tensor,
    names: Sequence[str],
    files: Sequence[str] | None,
) -> ClassResults:
    """Return the results where an image may have several labels `[n, K]`, or none."""
    from torchmetrics.functional.classification import multilabel_average_precision

    detected = probabilities >= DETECTED
    counts = [labels.sum(0), (labels & detected).sum(0), detected.sum(0)]
    present = labels.any(dim=0)
    precision = torch.zeros(len(names))
    if present.any():
        precision[present] = multilabel_average_precision(
            probabilities[:, present],
            labels[:, present].int(),
            num_labels=int(present.sum()),
            average="none",
        ).float()
    classes = [
        _class_result(name, images, correct, predicted, value if images else None)
        for name, value, images, correct, predicted in zip(
            names, precision.tolist(), *(count.tolist() for count in counts), strict=True
        )
    ]
    wrong = ~labels.gather(1, top[:, None])[:, 0]
    sets = [row.nonzero()[:, 0].tolist() for row in labels]
    listed = _wrong_images(wrong, confidence, top, sets, files)
    return _summarize(classes, wrong, [], listed, several=True)


def _class_result(
    name: str, images: int, correct: int, predicted: int, average_precision: float | None = None
) -> ClassResult:
    return ClassResult(
        name=name,
        images=images,
        correct=correct,
        predicted=predicted,
        recall=correct / images if images else None,
        interval=wilson_interval(correct, images) if images else None,
        precision=correct / predicted if predicted else None,
        f1=2 * correct / (images + predicted) if images + predicted else None,
        average_precision=average_precision,
    )


def _wrong_images(
    wrong: Tensor,
    confidence: Tensor,
    top: Tensor,
    labels: Sequence[list[int]],
    files: Sequence[str] | None,
) -> list[WrongImage]:
    rows = wrong.nonzero()[:, 0]
    order = confidence[rows].argsort(descending=True, stable=True)[:MAX_WRONG]
    return [
        WrongImage(
            row=row,
            file=None if files is None else files[row],
            labels=labels[row],
            predicted=int(top[row]),
            confidence=float(confidence[row]),
        )
        for row in rows[order].tolist()
    ]


def _summarize(
    classes: list[ClassResult],
    wrong: Tensor,
    confusions: list[Confusion],
    listed: list[WrongImage],
    *,
    several: bool,
) -> ClassResults:
    images = len(wrong)
    correct = images - int(wrong.sum())
    precisions = [one.average_precision for one in classes]
    return ClassResults(
        multi_label=several,
        images=images,
        correct=correct,
        interval=wilson_interval(correct, images),
        balanced_accuracy=_mean([one.recall for one in classes]),
        macro_f1=_mean([one.f1 for one in classes]),
        mean_average_precision=_mean(precisions) if several else None,
        classes=classes,
        confusions=confusions,
        wrong=listed,
    )


def _mean(values: Sequence[float | None]) -> float:
    """Return the mean of the values that there are; 0 if there is none."""
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else 0.0
