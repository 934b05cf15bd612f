"""When a training mixes: probabilities, decisions, and what a step without mixing does."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from every import BATCH, Bench, each, network_for, steps_of, trainer_of
from tiny import CLASSES, state_of, tiny_classifier, toy_images
from torch import Tensor

from adautomix.config import TeacherSettings, make_config
from adautomix.errors import UsageError
from adautomix.methods import METHODS
from adautomix.methods.base import Method
from adautomix.mix_loss import create_method
from adautomix.mixing.params import CleanParams
from adautomix.mixing.schedule import MixSchedule
from adautomix.mixing.settings import MixSettings
from adautomix.rng import generator_at
from adautomix.training.graphs import GraphedStep, signature
from adautomix.training.loop import Trainer

PER_SAMPLE = [name for name, cls in METHODS.items() if cls.compute_loss is Method.compute_loss]


def schedule(steps: int = 100, seed: int = 0, **settings: Any) -> MixSchedule:
    return MixSchedule(MixSettings(**settings), steps, seed)


def kinds(trainer: Trainer, steps: int = 8) -> list[bool]:
    """Whether each of the first steps mixes."""
    shape = (BATCH, 3, 16, 16)
    params = [trainer.method.training_params(shape, step) for step in range(steps)]
    return [not isinstance(some, CleanParams) for some in params]


# ---------------------------------------------------------------------- probabilities


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {0: 1, 99: 1, 100: 1, 250: 1}),
        ({"prob": 0.3}, {0: 0.3, 99: 0.3}),
        ({"start": 0.2}, {0: 0, 19: 0, 20: 1, 99: 1}),
        ({"stop": 0.75}, {0: 1, 74: 1, 75: 0, 99: 0, 250: 0}),
        ({"start": 0.1, "ramp": 0.2, "prob": 0.5}, {9: 0, 10: 0, 20: 0.25, 25: 0.375, 30: 0.5}),
        ({"ramp": 0.5, "stop": 0.5}, {0: 0, 25: 0.5, 49: 0.98, 50: 0}),
        ({"stop": 0.0}, {0: 0, 50: 0}),
    ],
)
def test_probability_at_each_step(settings: dict[str, Any], expected: dict[int, float]) -> None:
    ours = {step: schedule(**settings).probability(step) for step in expected}
    assert ours == pytest.approx(expected)


def test_settings_that_never_reach_full_probability_are_refused() -> None:
    with pytest.raises(UsageError, match=r"mix.start \+ mix.ramp = 0.9 is above mix.stop = 0.75"):
        make_config({"mix": {"start": 0.5, "ramp": 0.4, "stop": 0.75}})


# ---------------------------------------------------------------------- decisions


def test_each_decision_is_one_draw_of_its_own_stream() -> None:
    ours = [schedule(seed=5, prob=0.4).decide(step, 12) for step in range(50)]
    draws = [torch.rand((), generator=generator_at(5, step, "mix-coin")) for step in range(50)]
    assert ours == [bool(draw < 0.4) for draw in draws]
    assert 10 < sum(map(bool, ours)) < 30


def test_one_decision_for_each_image() -> None:
    ours = schedule(seed=5, prob=0.4, per_sample=True).decide(3, 12)
    assert isinstance(ours, Tensor)
    assert torch.equal(ours, torch.rand(12, generator=generator_at(5, 3, "mix-coin")) < 0.4)


@pytest.mark.parametrize("settings", [{}, {"prob": 0.6}, {"prob": 0.6, "per_sample": True}])
def test_no_draw_of_a_mix_depends_on_the_schedule(settings: dict[str, Any]) -> None:
    bench = Bench("mixup")
    before = [bench.method.params_for_step(bench.images.shape, step) for step in range(9)]
    bench.method.plan(9, MixSettings(**settings), 0)
    for step, plain in enumerate(before):
        params: Any = bench.method.training_params(bench.images.shape, step)
        if not isinstance(params, CleanParams):
            assert torch.equal(params.perm, vars(plain)["perm"])
            assert torch.equal(params.lam, vars(plain)["lam"])


def test_the_defaults_change_nothing(tmp_path: Path) -> None:
    planned, unplanned = (trainer_of("adautomix", tmp_path / part) for part in "ab")
    unplanned.method.schedule = None
    assert steps_of(planned, 4) == steps_of(unplanned, 4)


# ---------------------------------------------------------------------- steps without mixing


@pytest.mark.parametrize("name", each())
def test_a_step_without_mixing_is_plain_training(name: str, tmp_path: Path) -> None:
    """Of what the clean head needs, to the last bit; nothing else moves."""
    ours = trainer_of(name, tmp_path / "ours", mix={"prob": 0.0})
    plain = trainer_of("vanilla", tmp_path / "plain", **network_for(name))
    before = state_of(ours.method)
    rows, expected = steps_of(ours, 3), steps_of(plain, 3)
    for mine, theirs in zip(rows, expected, strict=True):
        assert mine == {**theirs, "clean": theirs["loss"]}
    student = ours.student.state_dict()
    for key, value in plain.student.state_dict().items():
        assert torch.equal(student[key], value), key
    assert all(torch.equal(value, before[key]) for key, value in state_of(ours.method).items())


@pytest.mark.parametrize("name", ["adautomix", "automix", "puzzlemix"])
def test_a_step_without_mixing_runs_the_student_once_and_no_teacher(name: str) -> None:
    bench = Bench(name)
    bench.method.plan(10, MixSettings(start=0.5), 0)
    passes: list[str] = []
    for network, label in ((bench.student, "student"), (bench.teacher, "teacher")):
        stem = next(network.backbone.children())
        stem.register_forward_hook(lambda *_, label=label: passes.append(label))
    bench.losses(bench.labels, step=4)["loss"].backward()
    assert passes == ["student"]
    bench.losses(bench.labels, step=5)
    assert len(passes) > 2


def test_an_ablation_without_clean_head_learns_at_its_own() -> None:
    bench = Bench("adautomix", clean_term=False)
    bench.method.plan(10, MixSettings(prob=0.0), 0)
    bench.losses(bench.labels)["loss"].backward()
    gradients = {name: p.grad for name, p in bench.student.heads.named_parameters()}
    assert gradients["mixed.weight"] is not None
    assert gradients["clean.weight"] is None


def test_own_statistics_of_the_teacher_see_every_clean_batch(tmp_path: Path) -> None:
    trainer = trainer_of("adautomix", tmp_path, mix={"prob": 0.0}, teacher={"buffers": "own"})
    before = state_of(trainer.teacher.model)
    steps_of(trainer, 2)
    after = state_of(trainer.teacher.model)
    counted = [name for name in after if name.endswith("num_batches_tracked")]
    assert counted
    assert all(int(after[name]) == int(before[name]) + 2 for name in counted)


# ---------------------------------------------------------------------- some images of a step


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_images_whose_coin_is_off_stay_clean(name: str) -> None:
    bench = Bench(name)
    bench.student.eval()
    params = dataclasses.replace(bench.make_params(), coin=torch.arange(BATCH) % 3 > 0)
    mixed = bench.mix_batch()
    images, targets = mixed.images.clone(), mixed.targets.clone()
    images[::3], targets[::3] = bench.images[::3], bench.targets[::3]
    common = bench.student, bench.teacher, params
    sources = bench.method.prepare(bench.images, bench.labels, *common)
    loss = bench.method.training_loss(sources, *common)["loss"]
    log_p = bench.student(images).log_softmax(dim=1)
    assert loss.item() == pytest.approx(-(targets * log_p).sum(dim=1).mean().item(), rel=1e-5)


@pytest.mark.slow
def test_parts_of_a_batch_take_their_own_coins(tmp_path: Path) -> None:
    """A transformer, whose loss does not depend on how a batch is split."""
    settings = {"mix": {"prob": 0.5, "per_sample": True}, **network_for("transmix")}
    whole = trainer_of("cutmix", tmp_path / "whole", **settings)
    split = trainer_of("cutmix", tmp_path / "split", accumulate=3, **settings)
    for mine, theirs in zip(steps_of(split, 3), steps_of(whole, 3), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.parametrize("name", ["adautomix", "automix", "manifoldmix", "sumix"])
def test_methods_that_cannot_leave_images_clean_say_so(name: str) -> None:
    with pytest.raises(UsageError, match=f"mix.per_sample: {name} mixes all images of a step"):
        make_config({"method": name, "mix": {"per_sample": True}})


# ---------------------------------------------------------------------- whole runs


RUNS = [
    ("adautomix", {"prob": 0.5}),
    ("cutmix", {"prob": 0.5, "per_sample": True, "stop": 0.75}),
    ("recursivemix", {"start": 0.3, "stop": 0.7}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mix"), RUNS, ids=lambda value: str(value))
def test_it_resumes_exactly(name: str, mix: dict[str, Any], tmp_path: Path) -> None:
    whole, first, second = (trainer_of(name, tmp_path / part, mix=mix) for part in "wab")
    rows = steps_of(whole, 8)
    halves = steps_of(first, 3)
    second.restore(first.checkpoint())
    assert halves + steps_of(second, 5) == rows
    for key, value in whole.weights().items():
        assert torch.equal(value, second.weights()[key]), key
    if name != "cutmix":
        assert len(set(kinds(whole))) == 2


def test_a_step_without_mixing_is_a_kind_of_its_own(tmp_path: Path) -> None:
    trainer = trainer_of("mixup", tmp_path, mix={"prob": 0.5}, epochs=4)
    mixes = kinds(trainer)
    batch = next(trainer.batches.epoch(0))
    found = [signature(trainer.eager_step.inputs(batch, step, 0.5, 0.9)) for step in range(8)]
    assert len(set(found)) == 2
    assert len({*zip(mixes, found, strict=True)}) == 2


class Replay:
    """Stands for a CUDA graph: calls the work again."""

    def __init__(self, work: Any) -> None:
        self.work, self.written = work, {}  # type: ignore[var-annotated]

    def replay(self) -> None:
        for name, value in self.work().items():
            self.written.setdefault(name, torch.empty_like(value)).copy_(value)


@pytest.mark.slow
def test_replayed_steps_take_the_eager_course(tmp_path: Path) -> None:
    mix = {"prob": 0.5}
    eager = trainer_of("adautomix", tmp_path / "eager", epochs=8, mix=mix)
    other = trainer_of("adautomix", tmp_path / "other", epochs=8, mix=mix)

    def record(work: Any) -> Any:
        tape = Replay(work)
        return tape, tape.written

    other.run_step = GraphedStep(other.eager_step, record)
    for mine, theirs in zip(steps_of(other, 20), steps_of(eager, 20), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


# ---------------------------------------------------------------------- in one's own loop


def loop(rank: int = 0, **mix: Any) -> Any:
    return create_method(
        "adautomix",
        model=tiny_classifier(),
        num_classes=CLASSES,
        steps=20,
        seed=3,
        rank=rank,
        teacher=TeacherSettings(),
        mix_schedule=mix,
    )


def test_a_loop_mixes_as_the_trainer_does(tmp_path: Path) -> None:
    trainer = trainer_of("adautomix", tmp_path, seed=3, epochs=5, mix={"prob": 0.5, "stop": 0.8})
    loops = [loop(rank, prob=0.5, stop=0.8) for rank in (0, 1)]
    shape = (BATCH, 3, 16, 16)
    for method in loops:
        params = [method.method.training_params(shape, step) for step in range(20)]
        assert [not isinstance(some, CleanParams) for some in params] == kinds(trainer, 20)
    assert trainer.steps == 20


def test_a_loop_trains_on_clean_batches_after_the_stop() -> None:
    method = loop(stop=0.1)
    images, labels = toy_images(BATCH)
    for _ in range(4):
        method(images, labels)
        method.after_step()
    assert method.parts.keys() == {"mixture_accuracy", "clean"}


def test_wrong_schedules_of_a_loop_are_told() -> None:
    with pytest.raises(UsageError, match=r"did you mean mix_schedule\.prob"):
        loop(prop=0.5)
    with pytest.raises(UsageError, match=r"mix_schedule\.stop = 2"):
        loop(stop=2)
