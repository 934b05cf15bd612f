"""timm's network, optimizer, schedule, loss and moving average, with a mix of ours between them.

python examples/timm_pieces.py

As in timm's own script, mixing goes with `SoftTargetCrossEntropy`, the random numbers are seeded
by rank, and mixing ends some steps before training does.
"""

import os

import timm
import torch
import torch.nn.functional as F
from digits import CLASSES, digits
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, accuracy, random_seed
from torch import Tensor
from torch.utils.data import DataLoader

import adautomix as am
from adautomix.checks.doctor import Loop


class Training:
    """A narrow ResNet from timm, trained on CutMix."""

    def __init__(self, steps: int, mix_steps: int) -> None:
        random_seed(0, rank=int(os.environ.get("RANK", "0")))
        self.model = timm.create_model(
            "resnetv2_18",
            num_classes=CLASSES,
            channels=(16, 32, 64, 128),
            stem_chs=16,
            stem_type="same",  # for small images
        )
        self.average = ModelEmaV3(self.model, decay=0.95)
        self.optimizer = create_optimizer_v2(self.model, opt="adamw", lr=2e-3, weight_decay=0.05)
        self.schedule = CosineLRScheduler(
            self.optimizer, t_initial=steps, warmup_t=steps // 10, t_in_epochs=False
        )
        self.loss = SoftTargetCrossEntropy()
        self.mix_steps = mix_steps
        self.step = 0

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of the optimizer."""
        self.model.train()
        if self.step < self.mix_steps:
            mixed = am.mix.cutmix(images, labels, num_classes=CLASSES)
            images, targets = mixed.images, mixed.targets
        else:
            targets = F.one_hot(labels, CLASSES).float()
        loss = self.loss(self.model(images), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.average.update(self.model, step=self.step)
        self.step += 1
        self.schedule.step_update(self.step)
        return loss.detach()

    @torch.no_grad()
    def validate(self, images: Tensor, labels: Tensor) -> float:
        """Per cent of the images that the average of the model tells right."""
        self.average.eval()
        (top1,) = accuracy(self.average(images), labels, topk=(1,))
        return float(top1)


def make_loop() -> Loop:
    """For `adautomix doctor examples/timm_pieces.py`."""
    training = Training(steps=20, mix_steps=8)
    train, _ = digits()
    return Loop(training.train_step, DataLoader(train, batch_size=20), training.validate, 8)


def main(epochs: int = 6) -> float:
    """Train, and print the accuracy after each epoch."""
    train, test = digits()
    batches = DataLoader(train, batch_size=20, shuffle=True, drop_last=True)
    steps = epochs * len(batches)
    training = Training(steps, mix_steps=steps * 9 // 10)
    (everything,) = DataLoader(test, batch_size=len(test))
    for epoch in range(epochs):
        for images, labels in batches:
            loss = training.train_step(images, labels)
        top1 = training.validate(*everything)
        print(f"epoch {epoch}: loss {loss:.3f}, accuracy {top1:.1f} %")
    return top1 / 100


if __name__ == "__main__":
    main()
