"""Class weights and balanced sampling, by hand and against PyTorch."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import CLASSES, tiny_classifier, toy_images

import adautomix as am
from adautomix.data.balance import balanced_order, class_weights
from adautomix.errors import UsageError
from adautomix.runs.build import load_images, loss_weights

LABELS = torch.tensor([0] * 8 + [1] * 4 + [2] * 2)


def test_balanced_weights_give_every_class_the_same_part_of_the_loss() -> None:
    weights = class_weights(LABELS, 3, "balanced", beta=0.9)
    totals = weights * LABELS.bincount()
    assert torch.allclose(totals, torch.full((3,), 14 / 3))


def test_effective_weights_follow_the_paper() -> None:
    weights = class_weights(LABELS, 3, "effective", beta=0.9)
    by_hand = torch.tensor([0.1 / (1 - 0.9**count) for count in (8, 4, 2)])
    assert torch.allclose(weights / weights[0], by_hand / by_hand[0])


@pytest.mark.parametrize("scheme", ["balanced", "effective"])
def test_weights_average_one_over_the_training_images(scheme: str) -> None:
    weights = class_weights(LABELS, 3, scheme, beta=0.99)  # type: ignore[arg-type]
    assert weights[LABELS].mean() == pytest.approx(1)


def test_effective_is_between_equal_and_balanced() -> None:
    balanced = class_weights(LABELS, 3, "balanced", beta=0.9)
    assert torch.allclose(class_weights(LABELS, 3, "effective", beta=1e-9), torch.ones(3))
    assert torch.allclose(class_weights(LABELS, 3, "effective", beta=1 - 1e-9), balanced, rtol=1e-4)


def test_balanced_order_draws_every_class_equally_often() -> None:
    labels = torch.tensor([0] * 9000 + [1] * 900 + [3] * 100)
    order = balanced_order(labels, torch.Generator().manual_seed(0))
    assert len(order) == len(labels)
    counts = labels[order].bincount()
    # 10,000 draws over three classes: the standard deviation of a count is 47.
    assert counts[2] == 0
    assert (counts[[0, 1, 3]] - 10000 / 3).abs().max() < 4 * 47
    assert len(order[labels[order] == 3].unique()) == 100


def test_balanced_order_is_decided_by_the_generator() -> None:
    draws = [balanced_order(LABELS, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])


def test_loss_is_the_weighted_cross_entropy_divided_by_the_number_of_images() -> None:
    images, labels = toy_images(10)
    weights = torch.tensor([2.0, 0.5, 1.0, 1.0, 0.5])
    model = tiny_classifier().eval()
    method = am.create_method(
        "vanilla", model=model, num_classes=CLASSES, class_weights=weights, steps=1
    )
    per_image = F.cross_entropy(model(images), labels, reduction="none") * weights[labels]
    assert method(images, labels).item() == pytest.approx(per_image.mean().item())


def test_loss_does_not_jump_where_mixing_stops() -> None:
    """A mix with λ = 1 is the clean image, and costs what the clean image costs."""
    images, labels = toy_images(10)
    weights = torch.tensor([3.0, 0.5, 0.5, 0.5, 0.5])
    losses = []
    for schedule in (None, {"prob": 0.0}):
        method = am.create_method(
            "mixup",
            model=tiny_classifier().eval(),
            num_classes=CLASSES,
            class_weights=weights,
            mix_schedule=schedule,
        )
        params = method.method.params_for_step(images.shape, 0)
        lam = torch.tensor([[1.0, 0.0]]).expand_as(params.lam)
        object.__setattr__(params, "lam", lam)
        method.method.params_for_step = lambda *_, params=params: params  # type: ignore[method-assign]
        losses.append(method(images, labels).item())
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3), r"class_weights has shape \[3\]: pass one weight per class, \[5\]"),
        (torch.tensor([1.0, 1, 1, 1, -1]), "class_weights must be finite and at least 0"),
    ],
)
def test_wrong_weights_are_refused(weights: torch.Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        am.create_method(
            "mixup", model=tiny_classifier(), num_classes=CLASSES, class_weights=weights
        )


def test_correcting_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"sampler = balanced and class_weights = effective"):
        am.TrainConfig(sampler="balanced", class_weights="effective")


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"sampler": "balanced"}, {"class_weights": "balanced"}])
def test_a_run_with_unequal_classes_trains(tmp_path: Path, setting: dict[str, str]) -> None:
    config = am.TrainConfig(
        data="digits",
        method="mixup",
        per_class=10,
        width=0.125,
        epochs=1,
        batch_size=20,
        out=tmp_path / "run",
        **setting,
    )
    am.train(config)
    assert len(am.load(tmp_path / "run").classes) == 10


def test_a_run_weighs_the_classes_of_its_training_images() -> None:
    config = am.TrainConfig(data="digits", class_weights="balanced")
    data = load_images(config)
    weights = loss_weights(config, data)
    assert weights is not None
    counts = data.train.labels.bincount()
    assert counts.min() < counts.max()
    assert torch.allclose(weights * counts, torch.full((10,), len(data.train) / 10))
    assert loss_weights(am.TrainConfig(data="digits"), data) is None
