"""Choose the mixes that the `preview` command draws."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adautomix.config import make_config, merge
from adautomix.data.preparation import recorded_preparation
from adautomix.methods import METHODS, find_method, suits
from adautomix.pictures.mix_rows import (
    ImageBatch,
    MixRow,
    batch_from_data,
    batch_from_files,
    mix_rows,
)
from adautomix.runs.build import build_networks, load_images
from adautomix.runs.trained import load_trained

CPU = torch.device("cpu")
IMAGE_SIZE = 224  # of image files, if the user chose the network
SMALL_IMAGE_SIZE = 128  # of image files, for the small default network
CANDIDATES = 12  # mixes per method, of which the most informative are drawn
MANY_METHODS = 5  # draw one mix of each if there are at least this many
ROWS = 3  # mixes of each of fewer methods
SMALL_CNN = {"model": "resnet18", "width": 0.25}
# Methods that skip steps, alternate with Mixup, replace only a few patches or hardly mix images
# that differ always mix in a preview, and as much as they can.
SHOWCASE = {
    "per_sample": True,
    "prob": 1.0,
    "switch": 1.0,
    "tau": 1.0,
    "rho": 0.0,
    "tau_std": 1.0,
    "threshold_min": 1.0,
}


def preview_rows(
    values: dict[str, Any],
    *,
    methods: str,
    files: Sequence[Path],
    run: Path | None = None,
    count: int | None = None,
) -> list[MixRow]:
    """Return mixes of one or more methods, with untrained networks or with those of a run.

    Args:
        values: nested settings of the data set, the network, the seed and the methods.
        methods: comma-separated names, or "all"; not used with `run`.
        files: image files to mix; if empty, images of the data set are mixed.
        run: mix with the method, the networks and the generator of this run.
        count: mixes per method; None: `ROWS`, or 1 if there are many methods.

    Raises:
        UsageError: a file cannot be read, or a setting is wrong.
    """
    if run is not None:
        return trained_rows(run, files, count or ROWS)
    names = list(METHODS) if methods == "all" else [name.strip() for name in methods.split(",")]
    count = count or (ROWS if len(names) < MANY_METHODS else 1)
    config = make_config(values | {"method": names[0]})
    if files:
        size = SMALL_IMAGE_SIZE if "model" not in values else IMAGE_SIZE
        batch = batch_from_files(files, config.image_size or size)
    else:
        batch = batch_from_data(load_images(config), config.seed, CPU)
    return [row for name in names for row in untrained_rows(name, values, batch, count)]


def untrained_rows(
    name: str, values: dict[str, Any], batch: ImageBatch, count: int
) -> list[MixRow]:
    """Return mixes of one method with freshly initialized networks."""
    size = batch.images.shape[-1]
    settings = merge(merge(showcase_settings(name), values), model_settings(name, values, size))
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
        candidates=CANDIDATES,
        note="untrained" if hasattr(method, "generator") else "",
    )


def trained_rows(run: Path, files: Sequence[Path], count: int) -> list[MixRow]:
    """Return mixes with the method and the networks of a trained run."""
    trained = load_trained(run, device="cpu")
    info, networks = trained.data_info, trained.networks
    if files:
        batch = batch_from_files(
            files, info["image_size"], info["mean"], info["std"], recorded_preparation(info)
        )
    else:
        data = load_images(trained.config, recorded=info)
        batch = batch_from_data(data, trained.config.seed, CPU)
    return mix_rows(
        trained.method,
        batch,
        count=count,
        student=networks["student"],
        teacher=networks["teacher"],
        candidates=CANDIDATES,
    )


def model_settings(method: str, values: dict[str, Any], size: int) -> dict[str, Any]:
    """Return the settings of a small network if the user chose none, or an unsuitable one."""
    if not suits(method, str(values.get("model", ""))):
        return small_transformer(size)
    return {} if "model" in values or "width" in values else SMALL_CNN


def small_transformer(size: int) -> dict[str, Any]:
    """Return the settings of a vision transformer with about 8 × 8 patches."""
    patch = next(side for side in range(max(1, size // 8), 0, -1) if size % side == 0)
    options = {"patch_size": patch, "depth": 4}
    model = {"model": "vit_tiny_patch16_224", "model_options": options}
    return {**model, "stem": "standard", "width": 1.0, "pretrained": False}


def showcase_settings(method: str) -> dict[str, Any]:
    """Return those of the `SHOWCASE` settings that a method has."""
    fields = find_method(method).Settings.model_fields
    settings = {name: value for name, value in SHOWCASE.items() if name in fields}
    return {method: settings} if settings else {}
