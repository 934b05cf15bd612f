"""Random numbers, images, networks and saliency maps for tests of single methods."""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from tiny import CLASSES, TinyClassifier, toy_images
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adautomix.methods import Method, Mixed, MixParams
from adautomix.models import Classifier, build_model

HEIGHT, WIDTH = 12, 10


def leaves(params: MixParams) -> list[Any]:
    """The values of parameters, also of nested ones, in order."""
    return pytree.tree_leaves(_values(params))


def _values(value: Any) -> Any:
    if isinstance(value, MixParams):
        return [_values(part) for part in vars(value).values()]
    return [_values(part) for part in value] if isinstance(value, tuple) else value


def same_params(one: MixParams, other: MixParams) -> bool:
    """Whether all values of two sets of parameters are equal."""
    values, others = leaves(one), leaves(other)
    return len(values) == len(others) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for a, b in zip(values, others, strict=True)
    )


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 6, height: int = HEIGHT, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Random images, each with a class of its own."""
    return torch.rand(count, 3, height, width, generator=rng(1)), torch.eye(count)


def toys(count: int = 7) -> tuple[Tensor, Tensor]:
    """16 × 16 images with a colored square, each with a different soft label."""
    images, _ = toy_images(count)
    return images, torch.rand(count, CLASSES, generator=rng(2)).softmax(dim=1)


def make(cls: type[Method], model: Any = None, smoothing: float = 0.0, **settings: Any) -> Any:
    """Create a method, typed as Any so that tests can pass hand-made parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return cls(
            cls.Settings(**settings),
            num_classes=CLASSES,
            seed=3,
            model=model,
            label_smoothing=smoothing,
        )


class Staged(TinyClassifier):
    """The tiny network, with its stage named."""

    stages = ("bn1",)


def staged(seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Staged()


OPTIONS: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 0.125, "stem": "cifar"},
    "convnext_tiny": {"width": 0.125, "stem": "cifar", "options": {"depths": (1, 1, 2, 1)}},
    "vit_tiny_patch16_224": {"width": 0.25, "options": {"patch_size": 4, "depth": 3}},
}


@functools.cache
def _built(name: str) -> Classifier:
    return build_model(name, CLASSES, image_size=16, seed=1, **OPTIONS[name])


def network(name: str = "resnet18") -> Classifier:
    """A small network for images of 16 pixels."""
    return copy.deepcopy(_built(name))


def telling_network() -> Any:
    """A small ResNet whose head weights are so large that its predictions differ."""
    model = network()
    for block in model.backbone.modules():
        if hasattr(block, "bn2"):  # which timm initializes with 0
            nn.init.ones_(block.bn2.weight)
    for head in model.heads.values():
        nn.init.normal_(head.weight, generator=rng(1))  # type: ignore[arg-type]
    return model


def blobs(count: int, side: int = 32, seed: int = 0) -> Tensor:
    """Saliency with a few peaks, like that of a trained network; sums to 1."""
    generator = rng(seed)
    smooth = F.interpolate(torch.randn(count, 1, 6, 6, generator=generator), side, mode="bicubic")
    rough = torch.randn(count, side, side, generator=generator)
    maps = (1.5 * smooth[:, 0] + 0.4 * rough).exp()
    return maps / maps.sum(dim=(1, 2), keepdim=True)


def flat(count: int, side: int = 32, seed: int = 0) -> Tensor:
    """Noise as saliency, like that of an untrained network; sums to 1."""
    maps = torch.rand(count, side, side, generator=rng(seed))
    return maps / maps.sum(dim=(1, 2), keepdim=True)


def rows_of(mixed: Mixed, rows: slice) -> list[Tensor]:
    """Images, labels, λ and masks of some of the mixes."""
    assert mixed.masks is not None
    return [mixed.images[rows], mixed.targets[rows], mixed.lam[rows], mixed.masks[rows]]


@contextmanager
def compiled(function: Callable[..., Any]) -> Iterator[Any]:
    """Compile a function as one graph, without graph breaks."""
    torch.compiler.reset()
    yield torch.compile(function, fullgraph=True, backend="eager")
    torch.compiler.reset()
