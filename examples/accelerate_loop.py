"""AdAutoMix in a loop of Hugging Face Accelerate, on one process or several.

python examples/accelerate_loop.py
torchrun --nproc_per_node 2 examples/accelerate_loop.py

The loss goes through one module that holds model and method, so that Accelerate wraps both and
several processes average the gradients of both. Each process mixes in its own way.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import CLASSES, digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

import adautomix as am
from adautomix.checks.doctor import Loop


class AdAutoMixLoss(nn.Module):
    """From a batch to its loss: what Accelerate prepares."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        options = {"width": 0.125, "stem": "cifar", "image_size": 16}
        self.model = am.build_model("resnet18", CLASSES, **options)
        self.method = am.create_method(
            "adautomix", model=self.model, num_classes=CLASSES, steps=steps
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The method's loss."""
        return self.method(images, labels)


class Training:
    """What Accelerate prepares, and what is done with a batch."""

    def __init__(self, steps: int) -> None:
        self.accelerator = Accelerator(cpu=True)
        set_seed(0)
        parts = AdAutoMixLoss(steps)
        optimizer = torch.optim.SGD(
            [*parts.model.parameters(), *parts.method.parameters()], lr=0.1, momentum=0.9
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        self.loss, self.optimizer, self.schedule = self.accelerator.prepare(
            parts, optimizer, schedule
        )
        self.parts = parts

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of the optimizer."""
        self.loss.train()
        loss = self.loss(images, labels)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.schedule.step()
        self.parts.method.after_step()
        return loss.detach()

    @torch.no_grad()
    def validate(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which images are told right, over all processes."""
        self.loss.eval()
        right = self.parts.model(images).argmax(dim=1) == labels
        return self.accelerator.gather_for_metrics(right)


def make_loop() -> Loop:
    """For `adautomix doctor examples/accelerate_loop.py`."""
    training = Training(steps=20)
    train, _ = digits()
    return Loop(training.train_step, DataLoader(train, batch_size=20), training.validate)


def main(epochs: int = 3) -> float:
    """Train, and print the accuracy after each epoch."""
    train, test = digits()
    training = Training(steps=epochs * len(train) // 20)
    batches, test_batches = training.accelerator.prepare(
        DataLoader(train, batch_size=20, shuffle=True, drop_last=True),
        DataLoader(test, batch_size=500),
    )
    for epoch in range(epochs):
        for images, labels in batches:
            loss = training.train_step(images, labels)
        right = torch.cat([training.validate(*batch) for batch in test_batches])
        accuracy = float(right.float().mean())
        training.accelerator.print(f"epoch {epoch}: loss {loss:.3f}, accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
