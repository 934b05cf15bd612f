"""A tiny network with the interface of `Classifier`, and toy images that it can learn."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adautomix.ema import Teacher
from adautomix.mixing.ops import soft_targets
from adautomix.models import Features
from adautomix.rng import generator_at

CLASSES = 5


class TinyClassifier(nn.Module):
    """Two convolutions and two heads; its only tap is the first feature map with 8 channels."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(16)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({name: nn.Linear(16, CLASSES) for name in ("clean", "mixed")})

    def default_tap(self) -> int:
        return 1

    def tap_shape(self, tap: int) -> tuple[int, int, int]:
        return 8, 8, 8

    def features(self, images: Tensor, tap: int | None = None) -> Features:
        feature = self.feature_map(images, 1)
        last = self.bn2(self.conv2(feature)).relu()
        return Features(self.dropout(last.mean(dim=(2, 3))), None if tap is None else feature)

    def feature_map(self, images: Tensor, tap: int) -> Tensor:
        out: Tensor = self.bn1(self.conv1(images)).relu()
        return out

    def logits(self, pooled: Tensor, head: str = "clean") -> Tensor:
        out: Tensor = self.heads[head](pooled)
        return out

    def forward(self, images: Tensor, head: str = "clean") -> Tensor:
        return self.logits(self.features(images).pooled, head)


def tiny_classifier(seed: int = 0, dropout: float = 0.0) -> Any:
    """Create a network with the weights of a seed; typed so that it can replace a `Classifier`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyClassifier(dropout)


def toy_images(count: int, seed: int = 0, size: int = 16) -> tuple[Tensor, Tensor]:
    """Create noise images with a square in the color of the class; the labels are 0, 1, 2, …."""
    generator = torch.Generator().manual_seed(seed)
    colors = 2 * torch.randn(CLASSES, 3, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(count) % CLASSES
    images = 0.3 * torch.randn(count, 3, size, size, generator=generator)
    corners = torch.randint(size - 6, (count, 2), generator=generator).tolist()
    for image, label, (top, left) in zip(images, labels, corners, strict=True):
        image[:, top : top + 6, left : left + 6] += colors[label][:, None, None]
    return images, labels


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Copy all parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def gradients_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Copy the gradient of every parameter."""
    return {n: None if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}


def trained_networks() -> tuple[Any, Any]:
    """Return a student trained on the toy classes with both heads, and its teacher."""
    student = tiny_classifier()
    teacher = Teacher(student)
    images, labels = toy_images(40, seed=1)
    targets = soft_targets(labels, CLASSES)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for step in range(120):
        generator = generator_at(0, step, "student")
        perm = torch.randperm(40, generator=generator)
        lam = 0.5 + 0.5 * torch.rand((), generator=generator)
        mix, label = (lam * v + (1 - lam) * v[perm] for v in (images, targets))
        loss = F.cross_entropy(student(images), targets)
        loss = loss + F.cross_entropy(student(mix, head="mixed"), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update(student, 0.9)
    return student, teacher.model
