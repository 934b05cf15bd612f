"""Which mixes the `preview` command draws."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adautomix.config import make_config, merge
from adautomix.methods import METHODS, find_method, suits
from adautomix.reporting.grid import MixRow
from adautomix.reporting.preview import data_batch, mix_rows, picture_batch
from adautomix.training.setup import build_networks, load_images
from adautomix.training.trained import load_trained

PICTURE_SIZE = 224
CPU = torch.device("cpu")
SMALL_TRANSFORMER = {
    "model": "vit_tiny_patch16_224",
    "stem": "standard",
    "width": 1.0,
    "model_options": {"depth": 4},
}


def preview_rows(
    values: dict[str, Any],
    *,
    methods: str,
    files: Sequence[Path],
    run: Path | None = None,
    count: int = 3,
) -> list[MixRow]:
    """Rows of mixes of one method, several or all.

    Args:
        values: nested settings: data set, network, seed, settings of the methods.
        methods: comma-separated names, or "all".
        files: pictures to mix; none: images of the data set.
        run: draw with the networks and the generator of this run, whose method is then the one.
        count: mixes a method.

    Raises:
        UsageError: a picture cannot be read, a setting is wrong.
    """
    if run is not None:
        return trained_rows(run, files, count)
    names = list(METHODS) if methods == "all" else [name.strip() for name in methods.split(",")]
    configs = [
        make_config(merge(lively(name), values) | {"method": name} | suited(name, values))
        for name in names
    ]
    data = None if files else load_images(configs[0])
    batch = data_batch(data, configs[0].seed, CPU) if data else picture_batch(files, PICTURE_SIZE)
    rows: list[MixRow] = []
    for config in configs:
        student, method, teacher = build_networks(
            config,
            num_classes=len(batch.classes),
            image_size=batch.images.shape[-1],
            device=CPU,
        )
        rows += mix_rows(method, batch, count=count, student=student, teacher=teacher.model)
    return rows


def suited(method: str, values: dict[str, Any]) -> dict[str, Any]:
    """A small vision transformer for a method that reads attention, where none was asked for."""
    return {} if suits(method, str(values.get("model", ""))) else SMALL_TRANSFORMER


def lively(method: str) -> dict[str, Any]:
    """Settings that show more in a few rows: λ per sample where the method has that."""
    if "per_sample" not in find_method(method).Settings.model_fields:
        return {}
    return {method: {"per_sample": True}}


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
    )
