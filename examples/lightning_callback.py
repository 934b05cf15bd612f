"""Mixing as a callback of Lightning: the module stays as it was.

python examples/lightning_callback.py

Lightning seeds every process alike, so a mix drawn from PyTorch's global generator would be the
same on all of them: the callback has a generator of its own, seeded by rank.
"""

import logging
import os
import warnings
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from digits import CLASSES, digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import adautomix as am
from adautomix.checks.doctor import Loop


class Digits(L.LightningModule):
    """A classifier as anybody writes it; cross entropy takes hard and soft labels."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.model = am.build_model(
            "resnet18", CLASSES, width=0.125, stem="cifar", image_size=16, heads=("clean",)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The accuracy of a batch."""
        images, labels = batch
        right = self.model(images).argmax(dim=1) == labels
        self.log("accuracy", right.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Mixing(L.Callback):
    """Mixes training batches, and only these, by any method of `adautomix.functional`.

    Args:
        name: of the method.
        num_classes: K.
        off_after: training steps that mix; none: all.
        settings: the method's own.
    """

    def __init__(
        self, name: str, num_classes: int, off_after: int | None = None, **settings: Any
    ) -> None:
        self.mix = getattr(am.mix, name)
        self.settings = {"num_classes": num_classes, **settings}
        self.off_after = off_after

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Each process draws its own mixes, from the step at which it starts."""
        seed = 1_000_003 * trainer.global_rank + trainer.global_step
        self.generator = torch.Generator().manual_seed(seed)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: list[Tensor], batch_idx: int
    ) -> None:
        """Put the mix in the place of the batch."""
        if self.off_after is None or trainer.global_step < self.off_after:
            mixed = self.mix(*batch, generator=self.generator, **self.settings)
            batch[:] = [mixed.images, mixed.targets]


def quiet_trainer(mixing: Mixing, **options: Any) -> L.Trainer:
    """A trainer on the CPU, of as many processes as were started."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    return L.Trainer(
        accelerator="cpu",
        devices=int(os.environ.get("WORLD_SIZE", "1")),
        callbacks=[mixing],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def make_loop() -> Loop:
    """For `adautomix doctor examples/lightning_callback.py`: one batch at a time through `fit`."""
    module = Digits()
    trainer = quiet_trainer(
        Mixing("cutmix", CLASSES, off_after=8), max_epochs=0, use_distributed_sampler=False
    )
    train, _ = digits()

    def whole(images: Tensor, labels: Tensor) -> DataLoader:
        return DataLoader(TensorDataset(images, labels), batch_size=len(images))

    def train_step(images: Tensor, labels: Tensor) -> None:
        trainer.fit_loop.max_epochs += 1
        trainer.fit(module, whole(images, labels))

    def validate(images: Tensor, labels: Tensor) -> None:
        trainer.validate(module, whole(images, labels), verbose=False)

    return Loop(train_step, DataLoader(train, batch_size=20), validate, off_after=8)


def main(epochs: int = 6) -> float:
    """Train, and print the accuracy."""
    L.seed_everything(0)
    train, test = digits()
    batches = DataLoader(train, batch_size=20, shuffle=True, drop_last=True)
    mixing = Mixing("cutmix", CLASSES, off_after=epochs * len(batches) * 9 // 10)
    trainer = quiet_trainer(mixing, max_epochs=epochs)
    trainer.fit(Digits(), batches, DataLoader(test, batch_size=500))
    accuracy = float(trainer.callback_metrics["accuracy"])
    print(f"accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
