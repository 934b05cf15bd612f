"""Mixing in the Trainer of Hugging Face: `compute_loss`, one method to override.

python examples/hf_trainer.py

Not in the data collator: the Trainer's evaluation has the same collator, and would mix too.
`compute_loss` is called in evaluation as well; `model.training` tells the two apart.
"""

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from digits import CLASSES, digits
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import adautomix as am
from adautomix.checks.doctor import Loop


class MixingTrainer(Trainer):
    """A Trainer whose training batches are mixed, on each process in its own way."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch
        seed = self.args.seed + 1_000_003 * self.args.process_index
        self.mix_generator = torch.Generator().manual_seed(seed)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Soft cross entropy: of mixes in training, of the images as they are in evaluation."""
        images, targets = inputs["pixel_values"], inputs["labels"]
        if model.training:
            mixed = am.mix.mixup(
                images, targets, num_classes=CLASSES, alpha=0.4, generator=self.mix_generator
            )
            images, targets = mixed.images, mixed.targets
        outputs = model(pixel_values=images)
        loss = F.cross_entropy(outputs.logits, targets)
        return (loss, outputs) if return_outputs else loss


def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Batches under the names that the Trainer wants."""
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}


def accuracy(prediction: Any) -> dict[str, float]:
    """The share of images told right."""
    right = prediction.predictions.argmax(axis=1) == prediction.label_ids
    return {"accuracy": float(right.mean())}


def make_trainer(folder: str, epochs: float) -> MixingTrainer:
    """A tiny ResNet on digits."""
    train, test = digits()
    network = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=CLASSES,
    )
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=20,
        per_device_eval_batch_size=500,
        learning_rate=5e-3,
        warmup_steps=20,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,  # the mix needs them all
    )
    return MixingTrainer(
        model=ResNetForImageClassification(network),
        args=arguments,
        data_collator=collate,
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=accuracy,
    )


def make_loop() -> Loop:
    """For `adautomix doctor examples/hf_trainer.py`."""
    trainer = make_trainer(tempfile.mkdtemp(), epochs=1)
    trainer.current_gradient_accumulation_steps = 1  # as `train` does
    optimizer = trainer.create_optimizer()
    train, _ = digits()

    def train_step(images: Tensor, labels: Tensor) -> None:
        trainer.training_step(trainer.model, {"pixel_values": images, "labels": labels})
        optimizer.step()
        optimizer.zero_grad()

    def validate(images: Tensor, labels: Tensor) -> None:
        trainer.evaluate([*zip(images, labels, strict=True)])

    return Loop(train_step, DataLoader(train, batch_size=20), validate)


def main(epochs: int = 6) -> float:
    """Train, and print the accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, epochs)
        trainer.train()
        figures = trainer.evaluate()
    print(f"accuracy {figures['eval_accuracy']:.1%}")
    return figures["eval_accuracy"]


if __name__ == "__main__":
    main()
