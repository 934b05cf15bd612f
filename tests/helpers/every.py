"""Images that can be learned and a small network, for tests of every method."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor

from adautomix.config import make_config
from adautomix.data.dataset import ImageData, InMemory
from adautomix.ema import Teacher
from adautomix.methods import METHODS, Method, Mixed, MixParams, Requirement
from adautomix.mixing.ops import soft_targets
from adautomix.models import Classifier, build_model
from adautomix.runs.folder import RunFolder
from adautomix.training.loop import Trainer

QUICK = ("adautomix", "cutmix", "manifoldmix", "snapmix", "transmix")
"""One method of each kind, whose trainings run in `make test`; CI trains the others too."""

CLASSES = 5
BATCH = 12
CNN = {"model": "resnet18", "width": 0.125}
TRANSFORMER = {
    "model": "vit_tiny_patch16_224",
    "width": 0.25,
    # Three blocks, because saliencygrafting cannot use the last two.
    "model_options": {"patch_size": 4, "depth": 3},
}


def each(names: Iterable[str] = METHODS) -> list[ParameterSet]:
    """Names of methods as parameters of a test; all but `QUICK` are marked slow."""
    return [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name)
        for name in names
    ]


def network_for(method: str) -> dict[str, Any]:
    """Settings of a small network that meets the method's requirements."""
    return TRANSFORMER if Requirement.PATCH_ATTENTION in METHODS[method].requires else CNN


def patches(count: int = 50, size: int = 16) -> ImageData:
    """Noise with a square in the color of the class; the 13 test images are training images."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    pixels = torch.randint(90, 150, (count, size, size, 3), generator=generator)
    colors = torch.randint(256, (CLASSES, 3), generator=torch.Generator().manual_seed(5))
    corners = torch.randint(size - 8, (count, 2), generator=generator).tolist()
    for image, label, (top, left) in zip(pixels, labels, corners, strict=True):
        image[top : top + 8, left : left + 8] = colors[label]
    pixels = pixels.to(torch.uint8)
    train = InMemory(pixels, torch.arange(48), labels[:48])
    test = InMemory(pixels, torch.arange(count - 13, count), labels[-13:])
    gray, fifth = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    return ImageData(
        "patches", tuple("abcde"), size, train, None, test, gray, fifth, "pad", 2, True, ()
    )


def trainer_of(method: str, folder: Path, **values: Any) -> Trainer:
    """A trainer of the method on `patches`."""
    settings: dict[str, Any] = {"batch_size": BATCH, "epochs": 2, "lr": 0.05, "log_every": 1}
    settings |= {"method": method, "device": "cpu", **network_for(method), **values}
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(make_config(settings), patches(), RunFolder(folder), quiet=True)


def steps_of(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    """Train that many steps and return the named losses of each."""
    rows: list[dict[str, float]] = []
    while len(rows) < steps:
        epoch, done = divmod(trainer.step, trainer.batches.steps_per_epoch)
        for batch in trainer.batches.epoch(epoch, done):
            trainer.log_meters.reset()
            trainer.train_step(batch)
            trainer.step += 1
            rows.append(trainer.log_meters.read())
            if len(rows) == steps:
                break
    return rows


def student_of(method: str, seed: int = 1) -> Classifier:
    """A small network for the method, initialized with a seed."""
    config = make_config({"method": method, **network_for(method)})
    return build_model(
        config.model,
        CLASSES,
        stem="cifar" if config.model.startswith("resnet") else "standard",
        width=config.width,
        image_size=16,
        heads=METHODS[method].heads,
        options=config.model_options,
        seed=seed,
    )


class Bench:
    """A method with networks and a batch."""

    def __init__(self, name: str, images: int = BATCH, **settings: Any) -> None:
        cls = METHODS[name]
        options = make_config({"method": name, name: settings}).method_settings
        self.student = student_of(name)
        self.teacher: Any = Teacher(self.student).model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.method: Method = cls(options, num_classes=CLASSES, model=self.student)
        data = patches(max(50, images))
        pixels, self.labels = next(data.train.read([torch.arange(images)]))
        self.images = (pixels.float() / 255 - 0.5) / 0.2
        self.targets = soft_targets(self.labels, CLASSES)

    def losses(self, labels: Tensor, step: int = 0) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.method.losses(self.images, labels, self.student, self.teacher, step)

    def make_params(self, step: int = 0) -> MixParams:
        params: MixParams = self.method.params_for_step(self.images.shape, step)
        return params

    def mix_batch(self, step: int = 0) -> Mixed:
        params = self.make_params(step)
        return self.method.mix_batch(self.images, self.targets, self.student, self.teacher, params)
