"""Small training loops with one planted mistake each, or none, to test the doctor."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from tiny import CLASSES, tiny_classifier, toy_images
from torch import Tensor

import adautomix
from adautomix.checks.doctor import Loop

BATCH = 10
ALPHA = 8.0  # keeps λ away from 0 and 1, so that every mix is visible

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Any]


def process_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed + int(os.environ.get("RANK", "0")))


def mixer(name: str = "mixup", generator: torch.Generator | None = None) -> Mix:
    generator = generator or process_generator()
    mix = getattr(adautomix.mix, name)

    def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        result = mix(images, labels, num_classes=CLASSES, generator=generator, alpha=ALPHA)
        return result.images, result.targets

    return mixed


class Plain:
    """A loop in plain PyTorch whose parts can be replaced."""

    def __init__(self, mix: Mix | None = None, loss: Loss = F.cross_entropy) -> None:
        self.model: Any = tiny_classifier()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.mix = mix or mixer()
        self.loss = loss
        self.steps = 0
        self.last_mixed_step = 10**9

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        self.model.train()
        targets = labels
        if self.steps < self.last_mixed_step:
            images, targets = self.mix(images, labels)
        loss = self.loss(self.model(2 * images - 1), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1

    @torch.no_grad()
    def validate(self, images: Tensor, labels: Tensor) -> None:
        self.model.eval()
        self.model(2 * images - 1)

    def loop(self, **options: Any) -> Loop:
        return Loop(self.train_step, [toy_images(BATCH)], validate=self.validate, **options)


# ---------------------------------------------------------------------- correct loops


def healthy() -> Loop:
    return Plain().loop()


def healthy_cutmix() -> Loop:
    return Plain(mixer("cutmix")).loop()


def healthy_end() -> Loop:
    plain = Plain()
    plain.last_mixed_step = 3
    return plain.loop(off_after=3)


def healthy_two_losses() -> Loop:
    """λ CE(a) + (1 - λ) CE(b), with class indices."""
    plain = Plain()
    generator = process_generator()

    def train_step(images: Tensor, labels: Tensor) -> None:
        order = torch.randperm(len(labels), generator=generator)
        logits = plain.model(0.6 * images + 0.4 * images[order])
        loss = 0.6 * F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(logits, labels[order])
        loss.backward()

    return Loop(train_step, [toy_images(BATCH)])


def healthy_adautomix() -> Loop:
    model = tiny_classifier()
    method = adautomix.create_method("adautomix", model=model, num_classes=CLASSES, steps=10)

    def train_step(images: Tensor, labels: Tensor) -> None:
        method(images, labels).backward()
        method.after_step()

    return Loop(train_step, [toy_images(BATCH)])


def healthy_with_output() -> Loop:
    print("building")
    plain = Plain()

    def train_step(images: Tensor, labels: Tensor) -> None:
        plain.train_step(images, labels)
        print("step", plain.steps)

    return Loop(train_step, [toy_images(BATCH)])


def healthy_unseeded() -> Loop:
    """Seed from the entropy of the system, differently in every process."""
    generator = torch.Generator()
    generator.seed()
    return Plain(mixer(generator=generator)).loop()


def healthy_two_classes() -> Loop:
    images, labels = toy_images(BATCH)
    return Loop(Plain().train_step, [(images, (labels == 4).long())])


def healthy_weak_mixup() -> Loop:
    """Mix with λ within 0.02 of 0 or 1 in every second step."""
    generator = process_generator()

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mixed = adautomix.mix.mixup(
            images, labels, num_classes=CLASSES, alpha=0.15, generator=generator
        )
        return mixed.images, mixed.targets

    return Plain(mix).loop()


# ---------------------------------------------------------------------- one mistake each


def mixes_in_validation() -> Loop:
    plain = Plain(mixer("cutmix"))

    def validate(images: Tensor, labels: Tensor) -> None:
        mixed, _ = plain.mix(images, labels)
        plain.validate(mixed, labels)

    return Loop(plain.train_step, [toy_images(BATCH)], validate=validate)


def forgets_the_targets() -> Loop:
    plain = Plain()
    mix = plain.mix
    plain.mix = lambda images, labels: (mix(images, labels)[0], labels)
    return plain.loop()


def two_classes() -> Loop:
    """Forget the targets in a batch that starts with several images of one class."""
    plain = forgets_the_targets()
    images, labels = toy_images(BATCH)
    return Loop(plain.train_step, [(images, (labels == 4).long())])


def rounds_the_targets() -> Loop:
    return Plain(loss=lambda logits, targets: F.cross_entropy(logits, targets.argmax(1))).loop()


def rounds_to_smoothed_one_hot() -> Loop:
    def loss(logits: Tensor, targets: Tensor) -> Any:
        hard = F.one_hot(targets.argmax(dim=1), CLASSES) * 0.9 + 0.1 / CLASSES
        return torch.nn.CrossEntropyLoss()(logits, hard)

    return Plain(loss=loss).loop()


def same_seed_everywhere() -> Loop:
    return Plain(mixer(generator=torch.Generator().manual_seed(0))).loop()


def same_lam_everywhere() -> Loop:
    """Draw the partners per process, and one λ for all processes."""
    lam, order = torch.Generator().manual_seed(0), process_generator()

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        targets, weight = F.one_hot(labels, CLASSES), torch.rand((), generator=lam) / 2
        partner = torch.randperm(len(labels), generator=order)
        mixed = (torch.lerp(both, both[partner], weight) for both in (images, targets.float()))
        return next(mixed), next(mixed)

    return Plain(mix).loop()


def same_rank_everywhere() -> Loop:
    model = tiny_classifier()
    method = adautomix.create_method(
        "mixup", model=model, num_classes=CLASSES, steps=10, rank=0, alpha=ALPHA
    )
    return Loop(lambda images, labels: method(images, labels).backward(), [toy_images(BATCH)])


def never_stops() -> Loop:
    return Plain().loop(off_after=3)


def stops_too_late() -> Loop:
    plain = Plain()
    plain.last_mixed_step = 5
    return plain.loop(off_after=3)


def never_mixes() -> Loop:
    return Plain(mix=lambda images, labels: (images, labels)).loop()


# ----------------------------------------------------------- loops that cannot be checked


def small_batches() -> Loop:
    return Loop(Plain().train_step, [toy_images(4)])


def without_a_network() -> Loop:
    return Loop(lambda images, labels: images.sum(), [toy_images(BATCH)])


def wrong_batches() -> Loop:
    return Loop(Plain().train_step, [{"images": 1}])


def one_class() -> Loop:
    images, labels = toy_images(BATCH)
    return Loop(Plain().train_step, [(images, 0 * labels)])


def not_a_loop() -> Any:
    return Plain()


def far_end() -> Loop:
    return Plain().loop(off_after=10**6)
