"""The optimizer, its learning rates, and the running figures that are kept on the device."""

import math
from typing import Any

import pytest
import torch
from tiny import tiny_classifier
from torch import nn

from adautomix.config import TrainConfig
from adautomix.methods import Method, build_method
from adautomix.training.meters import NEVER, FiniteWatch, Meters
from adautomix.training.optim import (
    build_method_optimizer,
    build_optimizer,
    cosine_schedule,
    learning_rate,
    set_learning_rate,
)

CPU = torch.device("cpu")


def method_for(student: Any, **settings: Any) -> Method:
    return build_method("adautomix", settings, num_classes=5, model=student)


def optimizer_of(method: Method | None = None, **settings: Any) -> torch.optim.Optimizer:
    student = tiny_classifier()
    config = TrainConfig(lr=0.4, min_lr=0.1, weight_decay=0.01, **settings)
    return build_optimizer(config, student, method or method_for(student))


# ---------------------------------------------------------------------- learning rates


def test_cosine_at_known_points() -> None:
    factors = cosine_schedule(600, warmup=0)
    assert len(factors) == 600
    assert factors[0] == 1
    assert [factors[t] for t in (200, 300, 400)] == pytest.approx([0.75, 0.5, 0.25])
    assert 0 < factors[-1] < 1e-4


def test_warm_up_rises_linearly_to_the_maximum() -> None:
    factors = cosine_schedule(104, warmup=4)
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[4:] == pytest.approx(cosine_schedule(100, warmup=0))


def test_the_cosine_can_change_once_per_epoch() -> None:
    every_step, held = cosine_schedule(12, 4), cosine_schedule(12, 4, hold=3)
    assert held[:4] == every_step[:4]  # the warm-up rises at every step
    assert held[4:6] == [1.0, 1.0]  # the epoch of steps 3 to 5 began during the warm-up
    assert held[6:9] == [every_step[6]] * 3
    assert held[9:] == [every_step[9]] * 3


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (3, 3), (3, 5)])
def test_short_runs_have_a_learning_rate_for_every_step(steps: int, warmup: int) -> None:
    factors = cosine_schedule(steps, warmup)
    assert len(factors) == steps
    assert all(0 < factor <= 1 for factor in factors)


def test_learning_rates_stay_above_the_minimum() -> None:
    optimizer = optimizer_of()
    rates = [learning_rate(optimizer.param_groups[0], factor) for factor in (0.0, 0.5, 1.0)]
    assert rates == pytest.approx([0.1, 0.25, 0.4])
    set_learning_rate(optimizer, 1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.4}


def test_the_generator_has_its_own_learning_rates() -> None:
    student = tiny_classifier()
    method = method_for(student, generator_lr=0.02, generator_min_lr=0.01)
    config = TrainConfig(lr=0.4, min_lr=0.1)
    optimizer = build_optimizer(config, student, method)
    set_learning_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25)
    rates = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert rates.keys() == {id(p) for p in [*student.parameters(), *method.parameters()]}
    for parameter in method.parameters():
        assert rates[id(parameter)] == pytest.approx(0.015)
    for parameter in student.parameters():
        assert rates[id(parameter)] == pytest.approx(0.25)


def test_the_generator_can_skip_the_warm_up() -> None:
    student = tiny_classifier()
    for warmup in (True, False):
        assert method_for(student, generator_warmup=warmup).warms_up is warmup
        block = build_method("automix", {"generator_warmup": warmup}, num_classes=5, model=student)
        assert block.warms_up is warmup
    method = method_for(student)
    optimizer = build_optimizer(TrainConfig(lr=0.4, min_lr=0.1), student, method)
    set_learning_rate(optimizer, 0.5, 1.0)
    generator = {id(parameter) for parameter in method.parameters()}
    for group in optimizer.param_groups:
        rate = 0.4 if id(group["params"][0]) in generator else 0.25
        assert group["lr"] == pytest.approx(rate)
    set_learning_rate(optimizer, 0.5)
    assert all(group["lr"] == pytest.approx(0.25) for group in optimizer.param_groups)


def test_both_players_of_dada_can_have_the_adam_of_its_authors() -> None:
    """Learning rate 3e-4 throughout, β₁ 0.5, no decay: the generator by default."""
    student = tiny_classifier()
    method = build_method("dada", num_classes=5, model=student)
    config = TrainConfig(optimizer="adamw", lr=3e-4, min_lr=3e-4, momentum=0.5, weight_decay=0)
    generators = build_method_optimizer(config, method)
    for optimizer, player in (
        (build_optimizer(config, student, method), student),
        (generators, method),
    ):
        assert isinstance(optimizer, torch.optim.AdamW)
        held = [weight for group in optimizer.param_groups for weight in group["params"]]
        assert list(map(id, held)) == list(map(id, player.parameters()))
        for group in optimizer.param_groups:
            assert (group["betas"], group["weight_decay"]) == ((0.5, 0.999), 0)
            assert group["max_lr"] == group["min_lr"] == 3e-4


def test_the_generator_of_dada_keeps_its_adam_beside_sgd() -> None:
    student = tiny_classifier()
    sgd = TrainConfig(lr=0.1, min_lr=0.01, weight_decay=1e-2)
    method = build_method("dada", num_classes=5, model=student)
    optimizer = build_method_optimizer(sgd, method)
    assert optimizer is not None
    for group in optimizer.param_groups:
        assert (group["max_lr"], group["min_lr"], group["weight_decay"]) == (3e-4, 3e-4, 0)
    options = {"generator_optimizer": "same", "generator_lr": 0.2}
    method = build_method("dada", options, num_classes=5, model=student)
    assert build_method_optimizer(sgd, method) is None
    assert method.learning_rates(0.1, 0.01) == (0.2, 0.01)
    assert len(build_optimizer(sgd, student, method).param_groups) == 2


# ---------------------------------------------------------------------- groups


def test_parameters_can_be_exempt_from_decay_by_name() -> None:
    student = nn.ModuleDict({"head": nn.Linear(2, 2), "table": nn.Linear(2, 3)})
    vanilla = build_method("vanilla", num_classes=5)
    config = TrainConfig(method="vanilla", no_decay="table.weight, token", weight_decay=0.01)
    groups = build_optimizer(config, student, vanilla).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    names = {name: decay[id(p)] for name, p in student.named_parameters()}
    assert names == {
        "head.weight": 0.01,
        "head.bias": 0.01,
        "table.weight": 0,
        "table.bias": 0.01,
    }


@pytest.mark.parametrize("decay_1d", [True, False])
def test_decay_of_biases_and_norms(decay_1d: bool) -> None:
    for group in optimizer_of(decay_1d=decay_1d).param_groups:
        for parameter in group["params"]:
            decayed = decay_1d or parameter.ndim > 1
            assert group["weight_decay"] == (0.01 if decayed else 0)


def test_a_method_without_parameters_adds_no_group() -> None:
    vanilla = build_method("vanilla", num_classes=5)
    assert len(optimizer_of(vanilla).param_groups) == 1
    assert len(optimizer_of(vanilla, decay_1d=False).param_groups) == 2


def test_sgd_step_with_momentum_and_weight_decay_by_hand() -> None:
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, 2.0)
    config = TrainConfig(method="vanilla", lr=0.1, momentum=0.9, weight_decay=0.5)
    optimizer = build_optimizer(config, student, build_method("vanilla", num_classes=5))
    weight, velocity = 2.0, 0.0
    for _ in range(3):
        optimizer.zero_grad()
        (3 * student.weight).sum().backward()
        optimizer.step()
        velocity = 0.9 * velocity + 3 + 0.5 * weight
        weight -= 0.1 * velocity
        assert student.weight.item() == pytest.approx(weight)


def test_adamw_decouples_weight_decay() -> None:
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, 2.0)
    config = TrainConfig(method="vanilla", optimizer="adamw", lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer(config, student, build_method("vanilla", num_classes=5))
    (3 * student.weight).sum().backward()
    optimizer.step()
    # The first step of Adam is the sign of the gradient.
    assert student.weight.item() == pytest.approx(2 - 0.1 * 0.5 * 2 - 0.1)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


# ---------------------------------------------------------------------- meters


def test_means_are_counted_per_name() -> None:
    meters = Meters()
    assert meters.read() == {}
    meters.add({"loss": torch.tensor(1.0), "teacher": torch.tensor(4.0)})
    meters.add({"loss": torch.tensor(2.0)})
    meters.add({"loss": torch.tensor(6.0, requires_grad=True), "teacher": torch.tensor(5.0)})
    assert meters.read() == {"loss": 3.0, "teacher": 4.5}
    meters.reset()
    assert meters.read() == {}


def test_means_do_not_lose_small_values() -> None:
    meters = Meters()
    for value in [1e8] + [1.0] * 100:  # in float32, adding 1 would change nothing
        meters.add({"loss": torch.tensor(value)})
    assert meters.read()["loss"] == pytest.approx((1e8 + 100) / 101, rel=1e-12)


def test_meters_are_restored_from_their_state() -> None:
    first, second = Meters(), Meters()
    first.add({"loss": torch.tensor(1.0)})
    second.load_state_dict(first.state_dict(), CPU)
    first.add({"loss": torch.tensor(100.0)})
    second.add({"loss": torch.tensor(4.0)})
    assert second.read() == {"loss": 2.5}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_watch_names_the_first_bad_step(bad: float) -> None:
    watch = FiniteWatch(CPU)
    for step in range(4):
        watch.check(torch.tensor(1e30), step)
    assert watch.first_bad() == NEVER
    for step, loss in ((4, 1.0), (5, bad), (6, 1.0), (7, math.nan)):
        watch.check(torch.tensor(loss, requires_grad=True), step)
    assert watch.first_bad() == 5
