"""Evaluation targets: random images, and networks that are simple enough to compute by hand."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from adautomix.data import ImageData
from adautomix.data.color import Color
from adautomix.data.dataset import InMemory
from adautomix.evaluation.target import EvalTarget, PixelNetwork

KINDS = ("ant", "bee", "cat", "dog")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def linear_network(
    size: int, seed: int = 0, scale: float = 1.0, mean: Color = MEAN
) -> PixelNetwork:
    """Return a random linear map of the pixels to four logits with deviations of about `scale`."""
    layer = nn.Linear(3 * size**2, len(KINDS), bias=False)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(layer.weight.shape, generator=generator)
    layer.weight.data = scale * weight / layer.in_features**0.5
    return PixelNetwork(nn.Sequential(nn.Flatten(), layer), mean, STD)


def random_images(count: int, size: int, seed: int = 0) -> InMemory:
    """Return noise images with random labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, size, size, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(len(KINDS), (count,), generator=generator)
    return InMemory(pixels, torch.arange(count), labels)


def relabeled(split: InMemory, labels: Tensor) -> InMemory:
    """Return the same images with other labels."""
    return InMemory(split.images, split.rows, labels)


def make_target(
    test: InMemory,
    folder: Path,
    *,
    val: InMemory | None = None,
    networks: dict[str, PixelNetwork] | None = None,
    batch_size: int = 16,
) -> EvalTarget:
    """Return a target with these images; without `networks`, a linear student and teacher."""
    size = test.images.shape[1]
    if networks is None:
        networks = {
            "student": linear_network(size),
            "teacher": linear_network(size, seed=1, scale=3),
        }
    data = ImageData(
        name="noise",
        classes=KINDS,
        image_size=size,
        train=test,
        val=val,
        test=test,
        mean=MEAN,
        std=STD,
        crop="pad",
        pad=1,
        flip=True,
        bad_files=(),
    )
    return EvalTarget(
        name="noise",
        folder=folder,
        networks={name: network.eval() for name, network in networks.items()},
        data=data,
        device=torch.device("cpu"),
        batch_size=batch_size,
        seed=0,
        source={},
    )


def top1_accuracy(logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, float]:
    """Return the top-1 accuracy, 0 to 1, of each network's logits `[n, K]`."""
    return {name: float((z.argmax(dim=1) == labels).double().mean()) for name, z in logits.items()}
