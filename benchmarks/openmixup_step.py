"""One training step of openmixup 0.2.9 as released: networks, mixing, losses, order of calls.

Three things are replaced so that it runs with a current PyTorch and only trains: `.cuda()` while it
runs, mmcv's compiled operators while it is imported, and the pictures that it draws at each step.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from peers import require_peer
from torch import Tensor, nn

from adautomix.errors import UsageError

# The mixers of openmixup that need nothing but images and labels; "vanilla" mixes nothing.
OPENMIXUP_MIXERS = (
    "vanilla",
    "mixup",
    "cutmix",
    "fmix",
    "gridmix",
    "resizemix",
    "saliencymix",
    "smoothmix",
)

# Depth of each network, and the channels of its last two stages.
RESNETS = {"resnet18": (18, 256, 512), "resnet34": (34, 256, 512), "resnet50": (50, 1024, 2048)}


@dataclass
class OpenMixupStep:
    """One training step of openmixup at each call.

    Attributes:
        model: the peer's model: networks, heads, mixing and losses.
        optimizer: over all that is trained.
        batch: images `[B, 3, H, W]` and labels `[B]` under the peer's names.
        device: where all of it lies.
    """

    model: Any
    optimizer: torch.optim.Optimizer
    batch: dict[str, Tensor]
    device: torch.device

    def __call__(self) -> None:
        """Forward, backward, optimizer and the peer's moving average, as its runner has them."""
        with cuda_means(self.device):
            loss = self.model.train_step(self.batch, self.optimizer)["loss"]
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if hasattr(self.model, "momentum_update"):
                self.model.momentum_update()


def openmixup_step(
    method: str,
    *,
    batch_size: int,
    classes: int,
    size: int,
    device: torch.device,
    model: str = "resnet18",
) -> OpenMixupStep:
    """A training step of the peer on a batch of noise that stays the same.

    Args:
        method: "adautomix" or one of `OPENMIXUP_MIXERS`.
        batch_size: images per step.
        classes: number of classes.
        size: image side in pixels; up to 64 the network has the peer's stem for CIFAR.
        device: the CPU or a GPU.
        model: one of `RESNETS`.

    Raises:
        UsageError: openmixup is not installed, or has no such method or network here.
    """
    require_peer("openmixup")
    config = openmixup_config(method, model, classes, size)
    with quietly(), cuda_means(device):
        network = import_openmixup_models().build_model(config).to(device).train()
    # It would draw three figures a step, whatever its settings; they are no part of training.
    network.co_plot_mix = lambda *args, **kwargs: None
    # Its recipes name PyTorch's SGD; its own module of optimizers no longer imports.
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=1e-4)
    return OpenMixupStep(network, optimizer, noise(batch_size, classes, size, device), device)


def noise(batch_size: int, classes: int, size: int, device: torch.device) -> dict[str, Tensor]:
    """A batch under the peer's names: the same one for the same arguments."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, size, size, generator=generator)
    labels = torch.randint(classes, (batch_size,), generator=generator)
    return {"img": images.to(device), "gt_label": labels.to(device)}


def openmixup_config(method: str, model: str, classes: int, size: int) -> dict[str, Any]:
    """The peer's description of a method on a network.

    Raises:
        UsageError: it has no such method or network here.
    """
    if model not in RESNETS:
        raise UsageError(f"no openmixup network {model!r} here: use one of {', '.join(RESNETS)}")
    if method == "adautomix":
        return adautomix_config(model, classes, size)
    if method not in OPENMIXUP_MIXERS:
        known = ", ".join((*OPENMIXUP_MIXERS, "adautomix"))
        raise UsageError(f"openmixup has no method {method!r} here: use one of {known}")
    return {
        "type": "MixUpClassification",
        "alpha": 1.0,
        "mix_mode": method,
        "mix_args": {"fmix": {"size": (size, size)}},
        "backbone": backbone_config(model, size, taps=(3,)),
        "head": head_config("ClsHead", model, classes),
    }


def adautomix_config(model: str, classes: int, size: int) -> dict[str, Any]:
    """AdAutoMix of three images with the published settings for CIFAR-100."""
    _, channels, _ = RESNETS[model]
    return {
        "type": "AdAutoMix",
        "alpha": 1.0,
        "mix_samples": 3,
        "momentum": 0.999,
        "lam_margin": 0.03,
        "mixup_radio": 0.5,
        "beta_radio": 0.3,
        "backbone": backbone_config(model, size, taps=(2, 3)),
        "mix_block": {
            "type": "AdaptiveMask",
            "in_channel": channels,
            "reduction": 2,
            "lam_concat": False,
            "use_scale": True,
            "unsampling_mode": "bilinear",
            "scale_factor": 4 if is_small(size) else 16,  # from stage 3 back to the pixels
        },
        "head_one": head_config("ClsHead", model, classes),
        "head_mix": head_config("ClsMixupHead", model, classes),
        "head_weights": dict.fromkeys(("head_mix_q", "head_one_q", "head_mix_k", "head_one_k"), 1),
    }


def backbone_config(model: str, size: int, taps: tuple[int, ...]) -> dict[str, Any]:
    """A ResNet that returns the stages `taps`, counted from 0."""
    kind = "ResNet_CIFAR" if is_small(size) else "ResNet"
    depth, _, _ = RESNETS[model]
    return {
        "type": kind,
        "depth": depth,
        "num_stages": 4,
        "out_indices": taps,
        "style": "pytorch",
    }


def head_config(kind: str, model: str, classes: int) -> dict[str, Any]:
    """A linear head over pooled features, trained with cross-entropy."""
    _, _, channels = RESNETS[model]
    return {
        "type": kind,
        "loss": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
        "with_avg_pool": True,
        "in_channels": channels,
        "num_classes": classes,
    }


def is_small(size: int) -> bool:
    """Whether images of this side get the stem for CIFAR."""
    return size <= 64


def import_openmixup_models() -> ModuleType:
    """The peer's module of models."""
    with without_compiled_operators():
        return import_module("openmixup.models")


@contextmanager
def without_compiled_operators() -> Iterator[None]:
    """Import openmixup without `mmcv.ops`, which would have to be compiled.

    One file of openmixup takes a deformable convolution from there by name, for networks that
    are not measured here. Where the real operators were imported before, they are left alone.
    """
    name = "mmcv.ops"
    absent = name not in sys.modules
    if absent:
        operators = ModuleType(name)
        vars(operators)["DeformConv2dPack"] = nn.Module
        sys.modules[name] = operators
    try:
        yield
    finally:
        if absent:
            del sys.modules[name]


@contextmanager
def quietly() -> Iterator[None]:
    """Without the peer's deprecations and its line of log for every parameter."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def cuda_means(device: torch.device) -> Iterator[None]:
    """Let `.cuda()` move tensors to `device`: the peer calls it on all that it draws."""

    def cuda(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tensor.to(device)

    with patch.object(Tensor, "cuda", cuda):
        yield
