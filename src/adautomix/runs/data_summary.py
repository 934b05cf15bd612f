"""The data summary of a run: what is trained on, and what was decided or passed over."""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from adautomix.config import TrainConfig
from adautomix.data import ImageData
from adautomix.data.balance import count_classes
from adautomix.data.sources.listing import count
from adautomix.device import describe_device
from adautomix.files import atomic_write
from adautomix.text import printable

FILE = "data_summary.json"


class DataSummary(BaseModel):
    """The content of `data_summary.json`, which is also printed before the first step.

    Attributes:
        data: the data set, as the setting names it.
        classes: number of classes.
        images: images per split.
        smallest_class: class with the fewest training images, and their number.
        largest_class: class with the most training images, and their number.
        image_size: side of the network's input in pixels.
        crop: random crop of training images, and whether they are flipped.
        mean: mean of each channel that images are normalized with.
        std: likewise the standard deviation.
        device: the hardware that computes the run.
        unreadable: image files that were skipped because they cannot be read.
        notes: what was decided and passed over.
        warnings: what looks wrong.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    classes: int
    images: dict[str, int]
    smallest_class: tuple[str, int]
    largest_class: tuple[str, int]
    image_size: int
    crop: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: str
    unreadable: int
    notes: list[str]
    warnings: list[str]

    def lines(self) -> list[str]:
        """The summary as text, a line per fact."""
        images = ", ".join(f"{number:,} {split}" for split, number in self.images.items())
        (small, fewest), (large, most) = self.smallest_class, self.largest_class
        mean, std = (" ".join(f"{value:.3f}" for value in color) for color in (self.mean, self.std))
        lines = [
            f"data: {self.data}, {count(self.classes, 'class', 'classes')}; images: {images}",
            f"training images per class: {fewest:,} ({small}) to {most:,} ({large})",
            f"input: {self.image_size}x{self.image_size}, crop {self.crop}; mean {mean}, std {std}",
            f"device: {self.device}",
        ]
        if self.unreadable:
            lines.append(f"note: skipped {count(self.unreadable, 'unreadable image')}")
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return [printable(line, None) for line in lines]


def summarize_data(data: ImageData, config: TrainConfig, device: torch.device) -> DataSummary:
    """Return the summary of a loaded data set and of how a run uses it."""
    images = count_classes(data.train.labels, len(data.classes)).tolist()
    sizes = sorted(zip(images, data.classes, strict=True))
    return DataSummary(
        data=config.data,
        classes=len(data.classes),
        images={name: len(split) for name, split in data.splits().items()},
        smallest_class=sizes[0][::-1],
        largest_class=sizes[-1][::-1],
        image_size=data.image_size,
        crop=_crop_text(data, config),
        mean=data.mean,
        std=data.std,
        device=describe_device(device),
        unreadable=len(data.bad_files),
        notes=list(data.notes),
        warnings=list(data.warnings),
    )


def _crop_text(data: ImageData, config: TrainConfig) -> str:
    crop = data.crop if config.crop == "auto" else config.crop
    pad = data.pad if config.pad is None else config.pad
    details = {
        "pad": f"pad by {pad} pixels",
        "resized": f"resized from at least {config.scale_min:.0%} of the area",
    }
    flip = data.flip if config.flip is None else config.flip
    return f"{details.get(crop, crop)}, {'flipped' if flip else 'not flipped'}"


def write_data_summary(summary: DataSummary, folder: Path) -> None:
    """Write `data_summary.json` into a run folder."""
    values: dict[str, Any] = summary.model_dump(mode="json")
    with atomic_write(folder / FILE) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")
