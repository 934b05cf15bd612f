"""Which mixes the `preview` command draws, and what a run draws of itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adautomix.config import make_config, merge
from adautomix.data.pictures import prepare_pictures
from adautomix.data.pipeline import eval_batches
from adautomix.data.sets import ImageData
from adautomix.methods import METHODS, find_method
from adautomix.reporting.grid import MixRow
from adautomix.reporting.preview import mix_rows
from adautomix.rng import generator_at
from adautomix.training.loop import build_networks, load_images
from adautomix.training.trained import load_trained

GREY = (0.5, 0.5, 0.5)
PICTURE_SIZE = 224


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
    configs = [make_config(merge(lively(name), values) | {"method": name}) for name in names]
    data = None if files else load_images(configs[0])
    rows: list[MixRow] = []
    for config in configs:
        batch = (
            picture_batch(files, PICTURE_SIZE) if data is None else data_batch(data, config.seed)
        )
        size = batch["images"].shape[-1]
        classes = len(batch["classes"])
        student, method, teacher = build_networks(
            config, num_classes=classes, image_size=size, device=torch.device("cpu")
        )
        batch = fill(batch, max(count, method.min_batch))
        rows += mix_rows(method, **batch, count=count, student=student, teacher=teacher.model)
    return rows


def lively(method: str) -> dict[str, Any]:
    """Settings that show more in a few rows: λ per sample where the method has that."""
    if "per_sample" not in find_method(method).Settings.model_fields:
        return {}
    return {method: {"per_sample": True}}


def trained_rows(run: Path, files: Sequence[Path], count: int) -> list[MixRow]:
    """Mixes as a trained run makes them."""
    trained = load_trained(run, device="cpu")
    if files:
        card = trained.card
        batch = picture_batch(files, card["image_size"], card["mean"], card["std"])
        batch["classes"] = [path.stem for path in files]
    else:
        batch = data_batch(load_images(trained.config), trained.config.seed)
    batch = fill(batch, max(count, trained.method.min_batch))
    return mix_rows(
        trained.method,
        **batch,
        count=count,
        student=trained.networks["student"],
        teacher=trained.networks["teacher"],
    )


def picture_batch(
    files: Sequence[Path], size: int, mean: Any = GREY, std: Any = GREY
) -> dict[str, Any]:
    """Picture files as a batch; each is a class of its own, named after its file."""
    images = prepare_pictures(files, image_size=size, mean=mean, std=std)
    classes = [path.stem for path in files]
    return {
        "images": images,
        "labels": torch.arange(len(files)),
        "classes": classes,
        "mean": mean,
        "std": std,
    }


def data_batch(data: ImageData, seed: int, count: int = 16) -> dict[str, Any]:
    """A few test images as a batch, the same for every method."""
    rows = torch.randperm(len(data.test), generator=generator_at(seed, 0, "preview"))[:count]
    some = data.test.subset(rows)
    images, labels = next(eval_batches(some, data, batch_size=count, device=torch.device("cpu")))
    return {
        "images": images,
        "labels": labels,
        "classes": data.classes,
        "mean": data.mean,
        "std": data.std,
    }


def fill(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """The batch with its images repeated until there are `count`."""
    have = len(batch["images"])
    rows: Tensor = torch.arange(max(count, have)) % have
    return {**batch, "images": batch["images"][rows], "labels": batch["labels"][rows]}
