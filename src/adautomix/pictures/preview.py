"""Which mixes the `preview` command draws."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adautomix.config import make_config, merge
from adautomix.methods import METHODS, find_method, suits
from adautomix.pictures.image_grid import MixRow
from adautomix.pictures.mix_rows import Batch, data_batch, mix_rows, picture_batch
from adautomix.runs.build import build_networks, load_images
from adautomix.runs.trained import load_trained

CPU = torch.device("cpu")
PICTURE_SIZE, SMALL_PICTURE_SIZE = 224, 128  # for a network of the user's, and for ours
CHOOSE_FROM = 12  # mixes of a method, where few are shown
MANY = 5  # methods: one mix of each will do
SMALL_CNN = {"model": "resnet18", "width": 0.25}
# Methods that rest, take turns with Mixup or swap only what is clear-cut show what they can do.
LIVELY = {"per_sample": True, "prob": 1.0, "switch": 1.0, "tau": 1.0, "rho": 0.0}


def preview_rows(
    values: dict[str, Any],
    *,
    methods: str,
    files: Sequence[Path],
    run: Path | None = None,
    count: int | None = None,
) -> list[MixRow]:
    """Rows of mixes of one method, several or all, with networks that are not trained.

    Args:
        values: nested settings: data set, network, seed, settings of the methods.
        methods: comma-separated names, or "all".
        files: pictures to mix; none: images of the data set.
        run: draw with the networks and the generator of this run, whose method is then the one.
        count: mixes a method; none: 3, or 1 of each of many.

    Raises:
        UsageError: a picture cannot be read, a setting is wrong.
    """
    if run is not None:
        return trained_rows(run, files, count or 3)
    names = list(METHODS) if methods == "all" else [name.strip() for name in methods.split(",")]
    count = count or (3 if len(names) < MANY else 1)
    first = make_config(values | {"method": names[0]})
    if files:
        small = SMALL_PICTURE_SIZE if "model" not in values else PICTURE_SIZE
        batch = picture_batch(files, first.image_size or small)
    else:
        batch = data_batch(load_images(first), first.seed, CPU)
    return [row for name in names for row in untrained_rows(name, values, batch, count)]


def untrained_rows(name: str, values: dict[str, Any], batch: Batch, count: int) -> list[MixRow]:
    """Mixes of one method with networks as they are before training."""
    size = batch.images.shape[-1]
    settings = merge(merge(lively(name), values), suited(name, values, size))
    student, method, teacher = build_networks(
        make_config(settings | {"method": name}),
        num_classes=len(batch.classes),
        image_size=size,
        device=CPU,
    )
    return mix_rows(
        method,
        batch,
        count=count,
        student=student,
        teacher=teacher.model,
        choose_from=CHOOSE_FROM,
        note="untrained" if hasattr(method, "generator") else "",
    )


def suited(method: str, values: dict[str, Any], size: int) -> dict[str, Any]:
    """The network: the user's, or a small one where there is none or the method cannot use it."""
    if not suits(method, str(values.get("model", ""))):
        return small_transformer(size)
    return {} if "model" in values or "width" in values else SMALL_CNN


def small_transformer(size: int) -> dict[str, Any]:
    """A vision transformer for images of that size, of about eight patches a side."""
    patch = next(side for side in range(max(1, size // 8), 0, -1) if size % side == 0)
    options = {"patch_size": patch, "depth": 4}
    model = {"model": "vit_tiny_patch16_224", "model_options": options}
    return {**model, "stem": "standard", "width": 1.0, "pretrained": False}


def lively(method: str) -> dict[str, Any]:
    """Settings of the method that show more in a few mixes."""
    fields = find_method(method).Settings.model_fields
    settings = {name: value for name, value in LIVELY.items() if name in fields}
    return {method: settings} if settings else {}


def trained_rows(run: Path, files: Sequence[Path], count: int) -> list[MixRow]:
    """Mixes as a trained run makes them."""
    trained = load_trained(run, device="cpu")
    card, networks = trained.card, trained.networks
    if files:
        batch = picture_batch(files, card["image_size"], card["mean"], card["std"])
    else:
        batch = data_batch(load_images(trained.config), trained.config.seed, CPU)
    return mix_rows(
        trained.method,
        batch,
        count=count,
        student=networks["student"],
        teacher=networks["teacher"],
        choose_from=CHOOSE_FROM,
    )
