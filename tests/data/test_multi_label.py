"""Images with several labels: loss, scores, splits, training and prediction."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from tiny import CLASSES, tiny_classifier, toy_images

import adautomix as am
from adautomix.data import ImageData
from adautomix.data.balance import class_weights
from adautomix.data.dataset import InMemory
from adautomix.data.partition import partition
from adautomix.errors import UsageError
from adautomix.evaluation.accuracy import AccuracyResult
from adautomix.evaluation.evaluate import evaluate
from adautomix.evaluation.load_target import EvalOptions, make_target
from adautomix.evaluation.record import read_evaluation
from adautomix.evaluation.target import PixelNetwork
from adautomix.methods import find_method
from adautomix.methods.base import InputMixing
from adautomix.metrics import is_right, mixture_accuracy, score
from adautomix.runs.build import load_images, prepare_loss, train_batches
from adautomix.runs.records import Run, read_run
from adautomix.training import run as training_run

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 3.0, 1.0], [0.0, 0.5, -2.0], [1.0, 1.5, -0.5]])
LABELS = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]])


def two_labels(data: ImageData) -> ImageData:
    """The digits with two labels each: the digit and whether it is even (as an eleventh class)."""

    def relabel(split: InMemory) -> InMemory:
        digit = split.labels
        even = (digit % 2 == 0).float()[:, None]
        return replace(split, labels=torch.cat([F.one_hot(digit, 10).float(), even], dim=1))

    return replace(
        data,
        classes=(*data.classes, "even"),
        train=relabel(data.train),  # type: ignore[arg-type]
        test=relabel(data.test),  # type: ignore[arg-type]
    )


def test_scores_by_hand_and_by_scikit_learn() -> None:
    scores = score(LOGITS, LABELS)
    probabilities = LOGITS.sigmoid()
    assert scores.map == pytest.approx(
        average_precision_score(LABELS.numpy(), probabilities.numpy(), average="macro"), abs=1e-6
    )
    assert scores.top1 == 0.5  # the first two images; the third has no label, the fourth is wrong
    assert scores.top5 == 0.75
    losses = -(LABELS * probabilities.log() + (1 - LABELS) * (1 - probabilities).log())
    assert scores.nll == pytest.approx(losses.sum(dim=1).mean().item(), abs=1e-6)
    assert scores.main == scores.map
    assert str(scores) == f"mAP {scores.map:.2%}"


def test_classes_that_no_test_image_has_do_not_count() -> None:
    wider = F.pad(LABELS, (0, 1)), F.pad(LOGITS, (0, 1), value=5.0)
    assert score(wider[1], wider[0]).map == score(LOGITS, LABELS).map


def test_one_label_per_image_scores_as_before() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    assert score(LOGITS, labels).map is None
    assert score(LOGITS, labels).main == score(LOGITS, labels).top1 == 0.75
    assert is_right(LOGITS, labels).tolist() == [True, True, True, False]


def test_an_image_without_label_is_no_failure_of_training() -> None:
    assert mixture_accuracy(LOGITS, LABELS) == pytest.approx((1 + 1 + 1 + 0) / 4)


def test_binary_cross_entropy_is_pytorchs() -> None:
    images, labels = toy_images(10)
    targets = F.one_hot(labels, CLASSES).float()
    targets[:, 0] = 1
    weights = torch.tensor([1.0, 2, 1, 0.5, 0.5])
    model = tiny_classifier().eval()
    method = am.create_method(
        "vanilla",
        model=model,
        num_classes=CLASSES,
        loss="bce",
        class_weights=weights,
        label_smoothing=0.1,
    )
    expected = F.binary_cross_entropy_with_logits(
        model(images), targets * 0.9 + 0.1 / CLASSES, weight=weights
    )
    assert method(images, targets).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", sorted(InputMixing.by_name))
def test_every_input_mixing_method_takes_several_labels(name: str) -> None:
    images, labels = toy_images(10)
    targets = F.one_hot(labels, CLASSES).float()
    targets[:, 0] = 1
    targets[3] = 0
    method = am.create_method(
        name, model=tiny_classifier(), num_classes=CLASSES, loss="bce", steps=10
    )
    loss = method(images, targets)
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("name", ["adautomix", "sumix", "manifoldmix", "recursivemix"])
def test_other_methods_refuse_several_labels(name: str) -> None:
    network = am.build_model("resnet18", CLASSES, heads=find_method(name).heads)
    with pytest.raises(UsageError, match=f"{name} needs one class per image and the cross-entropy"):
        find_method(name)(
            find_method(name).Settings(), num_classes=CLASSES, model=network
        ).use_loss("bce")


def test_labels_outside_0_and_1_are_refused() -> None:
    images, labels = toy_images(4)
    method = am.create_method("mixup", model=tiny_classifier(), num_classes=CLASSES, loss="bce")
    with pytest.raises(UsageError, match=r"must lie between 0 and 1 with loss='bce'"):
        method(images, 2 * F.one_hot(labels, CLASSES).float())


def test_split_keeps_every_image_once() -> None:
    labels = torch.rand(50, 4).round()
    splits = partition(
        labels,
        {"all": torch.arange(50)},
        per_class=None,
        test_fraction=0.2,
        val_fraction=0.1,
        seed=0,
    )
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 36, "val": 4, "test": 10}
    assert torch.cat(list(splits.values())).sort().values.equal(torch.arange(50))


def test_a_number_of_images_per_class_is_refused() -> None:
    with pytest.raises(UsageError, match="per_class needs one class per image"):
        partition(
            torch.ones(9, 2),
            {"all": torch.arange(9)},
            per_class=2,
            test_fraction=0.2,
            val_fraction=0,
            seed=0,
        )


def test_balanced_weights_count_each_label() -> None:
    weights = class_weights(LABELS, 3, "balanced", beta=0.9)
    assert torch.allclose(weights * LABELS.sum(dim=0), torch.full((3,), 4 / 3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> am.TrainedRun:
    """A network trained on digits that have two labels each."""
    out = tmp_path_factory.mktemp("multi") / "run"
    config = am.TrainConfig(
        data="digits", method="mixup", width=0.125, epochs=2, batch_size=50, out=out
    )
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(
            training_run, "load_images", lambda *a, **k: two_labels(load_images(config))
        )
        am.train(config)
    return am.load(out)


@pytest.mark.slow
def test_training_selects_by_mean_average_precision(trained: am.TrainedRun) -> None:
    run = read_run(trained.folder)
    assert trained.multi_label
    assert trained.classes[-1] == "even"
    assert run.summary is not None
    assert run.summary.best is not None
    best = {name: max(row_scores(run, name)) for name in ("student", "teacher")}
    assert run.summary.best.map == max(best.values())


def row_scores(run: Run, network: str) -> list[float]:
    """The mAP of one network after each epoch."""
    return [getattr(row, network).map for row in run.evaluated]


def test_every_class_has_a_probability_of_its_own(trained: am.TrainedRun) -> None:
    probabilities = trained.predict(torch.randn(3, 3, 32, 32))
    assert probabilities.shape == (3, 11)
    assert not torch.allclose(probabilities.sum(dim=1), torch.ones(3))


def test_only_accuracy_is_evaluated(trained: am.TrainedRun, tmp_path: Path) -> None:
    data = two_labels(load_images(trained.config))
    network = PixelNetwork(trained.teacher, data.mean, data.std, trained.method.eval_head)
    target = make_target(
        "digits",
        networks={"teacher": network},
        data=data,
        options=EvalOptions({}, out=tmp_path),
        source={},
        architecture={},
    )
    with pytest.raises(UsageError, match="digits: the suite attack is defined for one class per"):
        evaluate(target, ["attack"], {})
    result = evaluate(target, ["all"], {}).result("accuracy")
    assert isinstance(result, AccuracyResult)
    assert result.classes["teacher"].multi_label
    record = read_evaluation(tmp_path)
    assert record is not None
    assert set(record.not_applicable) >= {"attack", "calibration"}


def test_cross_entropy_and_balanced_sampling_refuse(trained: am.TrainedRun) -> None:
    data = two_labels(load_images(trained.config))
    method = trained.method
    with pytest.raises(UsageError, match="loss = cross_entropy needs one class per image"):
        prepare_loss(am.TrainConfig(data="digits", loss="cross_entropy"), data, method)
    config = am.TrainConfig(data="digits", sampler="balanced", batch_size=50)
    with pytest.raises(UsageError, match="sampler = balanced needs one class per image"):
        next(train_batches(config, data, torch.device("cpu")).epoch(0))
