"""Results per class: by hand, and against scikit-learn, scipy and torchmetrics."""

import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score
from torch import Tensor

from adautomix.class_results import (
    MAX_WRONG,
    ClassResults,
    Confusion,
    class_results,
    wilson_interval,
)

NAMES = ("cat", "dog", "eel", "fox")
# Predictions of eight images; no image is an eel, and nothing is predicted as a fox.
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 3, 3])
TOP = torch.tensor([0, 0, 0, 1, 1, 2, 0, 0])


def logits_of(top: Tensor, classes: int, sure: Tensor | None = None) -> Tensor:
    """Logits whose most likely classes are `top`, the more so the larger `sure`."""
    strength = torch.ones(len(top)) if sure is None else sure
    return strength[:, None] * torch.nn.functional.one_hot(top, classes)


@pytest.fixture
def results() -> ClassResults:
    sure = torch.tensor([1.0, 1, 1, 2, 1, 4, 3, 2])
    return class_results(logits_of(TOP, 4, sure), LABELS, NAMES, [f"{i}.png" for i in range(8)])


def test_counts_by_hand(results: ClassResults) -> None:
    assert (results.images, results.correct, results.accuracy) == (8, 4, 0.5)
    counts = [(one.name, one.images, one.correct, one.predicted) for one in results.classes]
    assert counts == [("cat", 4, 3, 5), ("dog", 2, 1, 2), ("eel", 0, 0, 1), ("fox", 2, 0, 0)]
    cat, dog, eel, fox = results.classes
    assert (cat.recall, cat.precision, cat.f1) == (0.75, 0.6, 6 / 9)
    assert (eel.recall, eel.interval, eel.precision, eel.f1) == (None, None, 0.0, 0.0)
    assert (fox.recall, fox.precision, fox.f1) == (0.0, None, 0.0)
    assert results.absent == ["eel"]
    assert [one.name for one in results.weakest_first] == ["fox", "dog", "cat"]
    assert dog.average_precision is None


def test_confusions_and_wrong_images_by_hand(results: ClassResults) -> None:
    assert results.confusions == [
        Confusion(label=3, predicted=0, images=2),
        Confusion(label=0, predicted=1, images=1),
        Confusion(label=1, predicted=2, images=1),
    ]
    assert [one.row for one in results.wrong] == [5, 6, 3, 7]  # of equals the first image first
    first = results.wrong[0]
    assert (first.file, first.labels, first.predicted) == ("5.png", [1], 2)
    assert first.confidence == pytest.approx(torch.tensor([4.0, 0, 0, 0]).softmax(0)[0].item())


def test_means_against_scikit_learn(results: ClassResults) -> None:
    expected = balanced_accuracy_score(LABELS.numpy(), TOP.numpy(), adjusted=False)
    assert results.balanced_accuracy == pytest.approx(expected)
    f1 = f1_score(LABELS.numpy(), TOP.numpy(), average="macro", zero_division=0)
    assert results.macro_f1 == pytest.approx(f1)


@pytest.mark.parametrize(("correct", "images"), [(0, 1), (1, 1), (5, 8), (42, 48), (9000, 10000)])
def test_wilson_interval_against_scipy(correct: int, images: int) -> None:
    expected = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, images) == pytest.approx((expected.low, expected.high))


def test_only_the_most_confident_wrong_images_are_listed() -> None:
    sure = torch.arange(1.0, 41.0) / 20
    found = class_results(logits_of(torch.ones(40).long(), 3, sure), torch.zeros(40).long(), "abc")
    assert [one.row for one in found.wrong] == list(range(39, 39 - MAX_WRONG, -1))
    assert found.wrong[0].file is None
    assert found.correct == 0


@pytest.mark.slow
def test_many_classes_need_no_square_of_memory() -> None:
    top = torch.tensor([7, 199_999])
    logits = torch.zeros(2, 200_000).index_put_((torch.arange(2), top), torch.tensor(9.0))
    found = class_results(logits, torch.tensor([7, 3]), [str(k) for k in range(200_000)])
    assert found.confusions == [Confusion(label=3, predicted=199_999, images=1)]


def test_several_labels_per_image() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 4, generator=generator)
    labels = (torch.rand(30, 4, generator=generator) < 0.4).float()
    labels[:, 2] = 0
    found = class_results(logits, labels, NAMES)
    assert found.multi_label
    assert found.absent == ["eel"]
    assert found.confusions == []
    probabilities = logits.sigmoid()
    expected = [
        average_precision_score(labels[:, k].numpy(), probabilities[:, k].numpy())
        for k in (0, 1, 3)
    ]
    precisions = [one.average_precision for one in found.present]
    assert precisions == pytest.approx(expected)
    assert found.mean_average_precision == pytest.approx(sum(expected) / 3)
    detected = probabilities[:, 1] >= 0.5
    dog = found.classes[1]
    assert (dog.images, dog.predicted) == (int(labels[:, 1].sum()), int(detected.sum()))
    assert dog.correct == int((labels[:, 1].bool() & detected).sum())
    right = labels.gather(1, logits.argmax(1, keepdim=True)).sum()
    assert found.correct == int(right)
    assert all(one.predicted not in one.labels for one in found.wrong)


def test_results_are_read_as_they_were_written(results: ClassResults) -> None:
    assert ClassResults.model_validate_json(results.model_dump_json()) == results
