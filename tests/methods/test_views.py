"""What the student is shown by methods with learned masks: all views, parts of them, or turns."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from every import BATCH, Bench, steps_of, trainer_of
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adautomix.errors import UsageError
from adautomix.methods import METHODS

LEARNED = ("adautomix", "automix", "samix")
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("adautomix", {"alpha": 0.2}, 3),
    ("adautomix", {"alpha": 0.0, "n": 2}, 2),
    ("automix", {}, 2),
    ("samix", {}, 2),
]
EACH_CASE = pytest.mark.parametrize(("name", "settings", "views"), CASES, ids=lambda v: str(v))


class Shown:
    """A method whose student is in evaluation mode: the loss of an image is its own."""

    def __init__(self, name: str, images: int = BATCH, **settings: Any) -> None:
        self.bench = Bench(name, images, lam_margin=0.0, **settings)
        self.method: Any = self.bench.method
        self.bench.student.eval()

    def params(self, step: int = 0) -> Any:
        return self.bench.make_params(step)

    def loss(self, params: Any) -> dict[str, Tensor]:
        bench = self.bench
        full = dataclasses.replace(params, view=None, view_order=None)
        common = (bench.images, bench.labels, bench.student, bench.teacher)
        sources = self.method.prepare(*common, full)
        loss, parts = self.method.student_loss(sources, bench.student, params)
        return {"loss": loss, **parts}


@torch.no_grad()
def mean_loss(shown: Shown, params: list[Any]) -> float:
    return sum(shown.loss(some)["loss"].double().item() for some in params) / len(params)


# ---------------------------------------------------------------------- split


@EACH_CASE
@pytest.mark.parametrize("images", [12, 7])
def test_split_has_the_expected_loss_of_full(
    name: str, settings: dict[str, Any], views: int, images: int
) -> None:
    """Exactly: over all rotations of the order every image comes in every view equally often."""
    shown = Shown(name, images, views="split", **settings)
    params = shown.params()
    orders = [((torch.arange(images) + turn) % images).float() for turn in range(images)]
    split = mean_loss(shown, [dataclasses.replace(params, view_order=order) for order in orders])
    full = mean_loss(shown, [dataclasses.replace(params, view_order=None)])
    assert split == pytest.approx(full, rel=1e-5)
    one = mean_loss(shown, [params])
    assert one != pytest.approx(full, rel=1e-5)


@EACH_CASE
def test_split_shows_each_image_in_one_view(
    name: str, settings: dict[str, Any], views: int
) -> None:
    shown = Shown(name, views="split", **settings)
    parts = shown.method.shown_views(shown.params())
    rows = torch.cat([rows for _, _, rows in parts])
    assert len(parts) == views
    assert sorted(rows.tolist()) == list(range(BATCH))
    assert {len(rows) for _, _, rows in parts} == {BATCH // views}
    other = shown.method.shown_views(shown.params(1))
    assert not torch.equal(rows, torch.cat([rows for _, _, rows in other]))


@pytest.mark.parametrize("name", LEARNED)
def test_split_by_hand(name: str) -> None:
    """Each part is the mean over the rows of its view, as all of the batch would give them."""
    shown = Shown(name, views="split")
    bench, params = shown.bench, shown.params()
    whole = shown.method.mix_batch(
        bench.images, bench.targets, bench.student, bench.teacher, params
    )
    ours = shown.loss(params)
    for view, _, rows in shown.method.shown_views(params):
        if view == "mixup":
            continue
        images, targets = (
            (bench.images, bench.targets) if view == "clean" else (whole.images, whole.targets)
        )
        log_p = bench.student(images[rows], head=view).log_softmax(dim=1)
        expected = -(targets[rows] * log_p).sum(dim=1).mean()
        assert ours[view].item() == pytest.approx(expected.item(), rel=1e-5)


def test_split_draws_nothing_else_anew() -> None:
    full, split = (Shown("adautomix", views=views).params(3) for views in ("full", "split"))
    for field in ("classifier_perm", "classifier_lam", "generator_perm", "generator_lam"):
        assert torch.equal(getattr(full, field), getattr(split, field))


def test_split_parts_of_a_batch_have_every_view(tmp_path: Path) -> None:
    trainer = trainer_of("adautomix", tmp_path, accumulate=2, adautomix={"views": "split"})
    (row,) = steps_of(trainer, 1)
    assert {"clean", "mixup", "mixed"} <= row.keys()
    with pytest.raises(UsageError, match="batch norm needs 6 per part, but a batch has 12"):
        trainer_of("adautomix", tmp_path, accumulate=3, adautomix={"views": "split"})


# ---------------------------------------------------------------------- alternate


@EACH_CASE
def test_turns_have_the_mean_loss_of_full(name: str, settings: dict[str, Any], views: int) -> None:
    shown = Shown(name, views="alternate", **settings)
    params = shown.params()
    turns = [dataclasses.replace(params, view=view) for view in range(views)]
    full = dataclasses.replace(params, view=None)
    assert mean_loss(shown, turns) == pytest.approx(mean_loss(shown, [full]), rel=1e-5)
    assert all(len(shown.loss(turn)) == 3 for turn in turns)


@pytest.mark.parametrize(("name", "settings", "views"), CASES, ids=lambda value: str(value))
def test_every_view_has_its_turn(name: str, settings: dict[str, Any], views: int) -> None:
    shown = Shown(name, views="alternate", **settings)
    turns = [shown.params(step).view for step in range(2 * views**2)]
    assert all(
        set(turns[begin : begin + views]) == set(range(views))
        for begin in range(0, 18, views)
        if begin + views <= len(turns)
    )
    # On even and on odd steps alike, where a generator plays in turn.
    assert {(step % 2, turn) for step, turn in enumerate(turns)} == {
        (parity, turn) for parity in range(2) for turn in range(views)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("views", ["split", "alternate"])
def test_it_trains_and_resumes_exactly(name: str, views: str, tmp_path: Path) -> None:
    settings = {name: {"views": views}}
    whole, first, second = (trainer_of(name, tmp_path / part, **settings) for part in "wab")
    rows = steps_of(whole, 6)
    halves = steps_of(first, 2)
    second.restore(first.checkpoint())
    assert halves + steps_of(second, 4) == rows
    for key, value in whole.weights().items():
        assert torch.equal(value, second.weights()[key]), key
    assert all(math.isfinite(value) for row in rows for value in row.values())


# ---------------------------------------------------------------------- cost


def flops(name: str, steps: int, **settings: Any) -> float:
    """Multiplications and additions of one step, on average, forward and backward."""
    bench = Bench(name, **settings)
    with FlopCounterMode(display=False) as counter:
        for step in range(steps):
            bench.losses(bench.labels, step)["loss"].backward()
    return float(counter.get_total_flops()) / steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "steps", "most"),
    [
        ({}, 2, 4.0),
        ({"views": "split"}, 2, 2.1),
        ({"views": "alternate"}, 6, 2.1),
        ({"views": "split", "generator_every": 4}, 8, 1.6),
        ({"views": "alternate", "generator_every": 4}, 24, 1.5),
    ],
)
def test_a_step_costs_as_many_plain_steps(
    settings: dict[str, Any], steps: int, most: float
) -> None:
    ratio = flops("adautomix", steps, **settings) / flops("vanilla", 1)
    assert most - 0.5 < ratio < most


@pytest.mark.parametrize(
    ("name", "settings", "cycle"),
    [
        ("adautomix", {"views": "split", "generator_every": 3}, 6),
        ("adautomix", {"views": "alternate"}, 18),
        ("automix", {"views": "alternate", "generator_every": 3}, 12),
    ],
)
def test_kinds_of_step_come_back(name: str, settings: dict[str, Any], cycle: int) -> None:
    assert METHODS[name].Settings(**settings).step_cycle == cycle
    bench = Bench(name, **settings)

    def kind(step: int) -> tuple[Any, ...]:
        params: Any = bench.make_params(step)
        return params.view, params.trains_generator, getattr(params, "adversarial", None)

    assert [kind(step) for step in range(cycle)] == [kind(step + cycle) for step in range(cycle)]


def test_steps_without_masks_run_no_teacher() -> None:
    bench = Bench("adautomix", views="alternate", generator_every=2)
    passes: list[int] = []
    step = 0
    next(bench.teacher.backbone.children()).register_forward_hook(lambda *_: passes.append(step))
    for step in range(18):
        bench.losses(bench.labels, step)
    params: list[Any] = [bench.make_params(step) for step in range(18)]
    masks = [step for step in range(18) if params[step].view == 2 or step % 2 == 0]
    assert sorted(set(passes)) == masks
    resting = [step for step in masks if step % 2]
    assert all(passes.count(step) == 1 for step in resting)
