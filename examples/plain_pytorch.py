"""AdAutoMix in a plain PyTorch loop: eight lines changed, each marked, with what it replaces.

python examples/plain_pytorch.py
"""

import torch
from digits import CLASSES, digits
from torch import Tensor
from torch.utils.data import DataLoader

# plain: import timm
import adautomix as am  # changed
from adautomix.checks.doctor import Loop


class Training:
    """Model, optimizer, and what is done with a batch."""

    def __init__(self, steps: int) -> None:
        # plain: self.model = timm.create_model("resnet18", num_classes=CLASSES)
        options = {"width": 0.125, "stem": "cifar", "image_size": 16}  # changed
        self.model = am.build_model("resnet18", CLASSES, **options)  # changed
        options = {"num_classes": CLASSES, "steps": steps}  # changed
        self.method = am.create_method("adautomix", model=self.model, **options)  # changed
        # plain: weights = self.model.parameters()
        weights = [*self.model.parameters(), *self.method.parameters()]  # changed
        self.optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of the optimizer."""
        self.model.train()
        # plain: loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        loss = self.method(images, labels)  # changed
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.method.after_step()  # changed
        return loss.detach()

    @torch.no_grad()
    def validate(self, images: Tensor, labels: Tensor) -> Tensor:
        """How many images are told right."""
        self.model.eval()
        return (self.model(images).argmax(dim=1) == labels).sum()


def make_loop() -> Loop:
    """For `adautomix doctor examples/plain_pytorch.py`."""
    training = Training(steps=20)
    train, _ = digits()
    return Loop(training.train_step, DataLoader(train, batch_size=20), training.validate)


def main(epochs: int = 3) -> float:
    """Train, and print the accuracy after each epoch."""
    torch.manual_seed(0)
    train, test = digits()
    batches = DataLoader(train, batch_size=20, shuffle=True, drop_last=True)
    training = Training(steps=epochs * len(batches))
    for epoch in range(epochs):
        for images, labels in batches:
            loss = training.train_step(images, labels)
        right = sum(training.validate(*batch) for batch in DataLoader(test, batch_size=500))
        accuracy = float(right) / len(test)
        print(f"epoch {epoch}: loss {loss:.3f}, accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
