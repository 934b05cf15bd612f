"""Any method in one's own loop: the trainer's numbers, and nothing of the user's touched."""

import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from every import each, network_for, student_of
from tiny import CLASSES, state_of, tiny_classifier, toy_images
from torch import Tensor, nn

import adautomix
from adautomix.config import TeacherSettings, TrainConfig, make_config
from adautomix.data.dataset import ImageData, InMemory
from adautomix.errors import UsageError
from adautomix.methods import METHODS
from adautomix.mix_loss import MixLoss, create_method
from adautomix.runs.folder import RunFolder
from adautomix.training.loop import Trainer
from adautomix.training.optim import (
    build_method_optimizer,
    build_optimizer,
    cosine_schedule,
    has_gradients,
    set_learning_rate,
)

STEPS = 6


def batches(count: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    for number in range(count):
        yield toy_images(12, seed=number)


class Loop:
    """A plain PyTorch loop, as a user writes it."""

    def __init__(self, name: str = "adautomix", model: Any = None, **options: Any) -> None:
        self.model: Any = model or tiny_classifier()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            options = {"steps": STEPS, "seed": 3, **options}
            self.method = create_method(name, model=self.model, num_classes=CLASSES, **options)
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            [*self.model.parameters(), *self.method.parameters()], lr=0.1, momentum=0.9
        )
        self.own_optimizer: torch.optim.Optimizer | None = None

    def step(self, images: Tensor, labels: Tensor) -> float:
        loss = self.method(images, labels)
        optimizers = [self.optimizer, *([self.own_optimizer] if self.own_optimizer else [])]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            if has_gradients(optimizer):
                optimizer.step()
        self.method.after_step()
        return float(loss.detach())

    def run(self, count: int, start: int = 0) -> list[float]:
        return [self.step(*batch) for batch in list(batches(start + count))[start:]]


# ---------------------------------------------------------------------- as the trainer


@pytest.fixture(scope="module")
def data() -> ImageData:
    """30 toy images in memory."""
    images, labels = toy_images(30)
    pixels = ((images + 4) * 30).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
    split = InMemory(pixels, torch.arange(30), labels)
    names = tuple("abcde")
    half = (0.5, 0.5, 0.5)
    return ImageData("toys", names, 16, split, None, split, half, half, "pad", 1, False, ())


def run_of(name: str, folder: Path) -> TrainConfig:
    settings = {"label_smoothing": 0.1, "seed": 3, "channels_last": False, "device": "cpu"}
    schedule = {"batch_size": 10, "epochs": 2, "out": folder}
    return make_config({"method": name, **network_for(name), **settings, **schedule})


@pytest.mark.parametrize("name", each())
def test_losses_and_teacher_are_the_trainers(name: str, data: ImageData, tmp_path: Path) -> None:
    config = run_of(name, tmp_path / "run")
    trainer = Trainer(config, data, RunFolder.create(config), quiet=True)
    loop = Loop(name, copy.deepcopy(trainer.student), label_smoothing=0.1)
    loop.method.method.load_state_dict(trainer.method.state_dict())
    loop.optimizer = build_optimizer(config, loop.model, loop.method.method)
    loop.own_optimizer = build_method_optimizer(config, loop.method.method)
    shares = cosine_schedule(STEPS, 0)
    for epoch in range(2):
        for batch in trainer.batches.epoch(epoch):
            trainer.train_step(batch)
            trainer.step += 1
            theirs = trainer.log_meters.read()
            trainer.log_meters.reset()
            for optimizer in filter(None, (loop.optimizer, loop.own_optimizer)):
                set_learning_rate(optimizer, shares[loop.method.step])
            mine = {"loss": loop.step(trainer.batches.augment(batch), batch.labels)}
            mine |= {part: float(value) for part, value in loop.method.parts.items()}
            assert mine == pytest.approx(theirs, rel=1e-6)
    assert loop.method.step == trainer.step == STEPS
    if not METHODS[name].uses_teacher:
        with pytest.raises(UsageError, match=r"keeps no moving average .* pass teacher="):
            _ = loop.method.teacher
        return
    for key, value in trainer.teacher.model.state_dict().items():
        torch.testing.assert_close(loop.method.teacher.state_dict()[key], value, msg=key)


# ---------------------------------------------------------------------- the teacher


def test_after_step_moves_the_teacher_by_hand() -> None:
    teacher = TeacherSettings(momentum=0.8, momentum_end=0.9, constant_share=0)
    loop = Loop(steps=4, teacher=teacher)
    average = state_of(loop.method.teacher)
    # 0.9 - 0.1 (cos(π t/4) + 1)/2; past the end the last one holds.
    last = 0.9 - 0.05 * (1 - 0.5**0.5)
    for momentum in (0.8, 0.9 - 0.05 * (1 + 0.5**0.5), 0.85, last, last):
        loop.run(1)
        for name, weight in loop.model.named_parameters():
            average[name] = momentum * average[name] + (1 - momentum) * weight.detach()
            torch.testing.assert_close(loop.method.teacher.state_dict()[name], average[name])


def test_the_teachers_buffers_follow_their_setting() -> None:
    loop = Loop("mixup", teacher=TeacherSettings(buffers="copy"))
    loop.run(2)
    for mine, theirs in zip(loop.method.teacher.buffers(), loop.model.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_parameters_are_the_generators_alone() -> None:
    method = Loop().method
    own = {id(p) for p in method.parameters()}
    assert own == {id(p) for p in method.method.parameters()}
    assert len(own) == 6
    assert not own & {id(p) for p in method.teacher.parameters()}
    assert list(Loop("cutmix").method.parameters()) == []


# ---------------------------------------------------------------------- saved and loaded


def saved(state: Any) -> Any:
    """Through a file that holds no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", each())
def test_state_goes_on_identically(name: str) -> None:
    first, second = Loop(name, student_of(name)), Loop(name, student_of(name, seed=5))
    first.run(3)
    for part in ("model", "method", "optimizer"):
        getattr(second, part).load_state_dict(saved(getattr(first, part).state_dict()))
    assert second.method.step == 3
    assert second.run(3, start=3) == first.run(3, start=3)
    after = first.method.state_dict()
    for key, value in second.method.state_dict().items():
        same = torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key]
        assert same, key


def test_runs_of_other_seeds_differ() -> None:
    assert Loop(seed=3).run(1) == Loop(seed=3).run(1)
    assert Loop(seed=3).run(1) != Loop(seed=4).run(1)


# ---------------------------------------------------------------------- the user's model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("name", ["mixup", "adautomix"])
def test_the_models_mode_is_the_users(name: str) -> None:
    model = tiny_classifier(dropout=0.5).train()
    model.bn1.eval()  # frozen batch norm, as in fine-tuning
    before = modes(model)
    loop = Loop(name, model)
    loop.run(1)
    loop.method.eval()
    loop.run(1)
    loop.method.train()
    assert modes(model) == before
    model.eval()
    loop.run(1)
    assert not any(modes(model))
    assert loop.method.method.training


def test_the_teacher_keeps_its_mode() -> None:
    method = Loop(model=tiny_classifier(dropout=0.5)).method
    before = modes(method.teacher)
    method.train()
    assert modes(method.teacher) == before
    method.eval()
    assert modes(method.teacher) == before


def test_the_model_is_not_part_of_the_method() -> None:
    loop = Loop()
    held = {id(p) for p in loop.model.parameters()}
    every = [p for module in loop.method.modules() for p in module.parameters()]
    assert not held & {id(p) for p in every}
    assert not any(name.startswith("_model") for name in loop.method.state_dict())


def test_parts_are_named_and_detached() -> None:
    loop = Loop()
    loss = loop.method(*toy_images(12))
    assert loss.requires_grad
    assert {
        "clean",
        "mixup",
        "mixed",
        "mixture_accuracy",
        "generator_teacher",
    } <= loop.method.parts.keys()
    assert not any(part.requires_grad for part in loop.method.parts.values())
    assert loop.method.step == 0


# ---------------------------------------------------------------------- wrong usage


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adautomx", {}, "unknown method 'adautomx': did you mean 'adautomix'"),
        ("adautomix", {"betta": 0.1}, "adautomix.betta: did you mean adautomix.beta"),
        ("cutmix", {"alpha": -1}, "cutmix.alpha = -1: input should be greater than 0"),
    ],
)
def test_wrong_names_and_values_are_told(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        create_method(name, model=tiny_classifier(), num_classes=CLASSES, steps=10, **options)
    assert message in str(error.value)


def test_it_is_a_public_name() -> None:
    assert adautomix.create_method is create_method
    assert isinstance(Loop("vanilla").method, MixLoss)
