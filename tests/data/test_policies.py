"""Automatic augmentation: what is drawn, how often, and that it depends on seed and step alone."""

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import v2

from adautomix.data.policies import (
    Policy,
    auto_augment,
    color_jitter,
    rand_augment,
    trivial_augment,
)
from adautomix.rng import generator_at

COUNT = 6000
TIMM = rand_augment("timm", 2, 9.0, 0.5, 0.5)


def drawn(policy: Policy, count: int = COUNT, size: int = 224) -> list[list[tuple[Any, ...]]]:
    return policy.operations(count, size, generator_at(0, 0, "policy"))


def close(count: int, probability: float, total: int) -> bool:
    """Within four standard deviations of a binomial count."""
    spread = math.sqrt(total * probability * (1 - probability))
    return abs(count - total * probability) <= 4 * spread


@pytest.mark.parametrize(
    "policy",
    [
        TIMM,
        rand_augment("openmixup", 2, 7.0, 0.5, 0.5),
        rand_augment("torchvision", 2, 9.0, 0.0, 1.0),
        trivial_augment(),
        auto_augment("imagenet"),
        auto_augment("cifar10"),
        color_jitter(0.4, 0.4, 0.4, 0.1),
    ],
)
def test_draws_depend_on_the_generator_alone(policy: Policy) -> None:
    first = policy.operations(50, 32, generator_at(3, 7, "policy"))
    assert first == policy.operations(50, 32, generator_at(3, 7, "policy"))
    assert first != policy.operations(50, 32, generator_at(3, 8, "policy"))
    # An image's operations do not depend on how many others there are after it.
    assert first[:20] == policy.operations(20, 32, generator_at(3, 7, "policy"))


def test_timms_operations_are_drawn_as_often_as_by_timm() -> None:
    counts = Counter(str(name) for row in drawn(TIMM) for name, *_ in row)
    assert len(counts) == 15
    for count in counts.values():
        assert close(count, 0.5 / 15, 2 * COUNT)
    filters = Counter(row[0][2] for row in drawn(TIMM) if row and len(row[0]) == 3)
    assert set(filters) == {"bilinear", "bicubic"}
    assert close(filters["bicubic"], 0.5, filters.total())


def test_timms_magnitudes_are_distributed_as_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The angle of rotations, of both signs."""
    angles: list[float] = []

    def record(image: object, degrees: float, **_: object) -> object:
        angles.append(degrees)
        return image

    transform = rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": (124, 116, 104)})
    for operation in transform.ops:
        operation.aug_fn = record if operation.name == "Rotate" else lambda image, *_, **__: image
    random.seed(0)
    np.random.seed(0)
    for _ in range(COUNT):
        transform(None)
    mine = [float(str(op[1])) for row in drawn(TIMM) for op in row if op[0] == "Rotate"]
    assert ks_2samp(mine, angles).pvalue > 1e-3
    assert close(len(angles), 1 / 30, 2 * COUNT)


def test_openmixups_ranges() -> None:
    policy = rand_augment("openmixup", 2, 7.0, 0.5, 0.5)
    values: dict[str, list[float]] = {}
    for row in drawn(policy, size=32):
        for name, value, *_ in row:
            values.setdefault(str(name), []).append(float(str(value)))
    assert len(values) == 14
    assert "Invert" not in values
    factors = np.array(values["Brightness"])
    assert np.median(abs(factors - 1)) == pytest.approx(0.05 + 0.9 * 0.7, abs=0.02)
    assert set(np.sign(factors - 1)) == {-1, 1}
    assert set(values["Posterize"]) <= {6, 7, 8}
    assert np.median(values["Solarize"]) == pytest.approx(256 * 0.3, abs=2)
    assert np.median(np.abs(values["TranslateX"])) == pytest.approx(0.3 * 0.7 * 32, abs=0.2)
    assert policy.fill == (114, 123, 125)


def test_torchvisions_magnitudes() -> None:
    values: dict[str, set[float]] = {}
    for row in drawn(rand_augment("torchvision", 2, 9.0, 0.0, 1.0)):
        assert len(row) == 2
        for name, value, *_ in row:
            values.setdefault(str(name), set()).add(round(float(str(value)), 4))
    assert set(values) == set(v2.RandAugment._AUGMENTATION_SPACE)
    assert values["Rotate"] == {-9.0, 9.0}
    assert values["Brightness"] == {0.73, 1.27}
    assert values["Posterize"] == {7.0}
    assert values["TranslateX"] == {-30.0, 30.0}
    assert values["Solarize"] == {178.5}


def test_trivial_augment_draws_one_operation_of_any_magnitude() -> None:
    rows = drawn(trivial_augment())
    assert {len(row) for row in rows} == {1}
    names = Counter(str(row[0][0]) for row in rows)
    assert set(names) == set(v2.TrivialAugmentWide._AUGMENTATION_SPACE)
    assert all(close(count, 1 / 14, COUNT) for count in names.values())
    angles = {round(abs(float(str(row[0][1]))), 3) for row in rows if row[0][0] == "Rotate"}
    assert angles == {round(135 * k / 30, 3) for k in range(31)}


def test_auto_augment_draws_the_pairs_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = v2.AutoAugment()._policies
    expected: Counter[str] = Counter()
    for pair in policies:
        for name, probability, _ in pair:
            expected[name] += probability / len(policies)
    counts = Counter(str(name) for row in drawn(auto_augment("imagenet")) for name, *_ in row)
    assert set(counts) == set(expected)
    for name, mean in expected.items():
        assert abs(counts[name] / COUNT - mean) < 4 * math.sqrt(2 * mean / COUNT)


def test_color_jitter_draws_torchvisions_ranges() -> None:
    rows = drawn(color_jitter(0.4, 0.2, 0.0, 0.1))
    orders = Counter(tuple(str(name) for name, _ in row) for row in rows)
    assert len(orders) == 6
    assert all(close(count, 1 / 6, COUNT) for count in orders.values())
    values = np.array(
        [[dict(row)[name] for name in ("Brightness", "Contrast", "Hue")] for row in rows]
    )
    low, high = values.min(0), values.max(0)
    assert low == pytest.approx([0.6, 0.8, -0.1], abs=0.005)
    assert high == pytest.approx([1.4, 1.2, 0.1], abs=0.005)
    assert abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.06
    assert torch.tensor(values).double().mean(0).tolist() == pytest.approx([1, 1, 0], abs=0.02)
