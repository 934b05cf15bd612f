"""How good the networks of a running training are, and what its mixes look like."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adautomix.config import TrainConfig
from adautomix.data import ImageData, eval_batches
from adautomix.data.dataset import OnDisk, Split
from adautomix.device import autocast
from adautomix.distributed import gather_rows, is_main, rank, world
from adautomix.methods import Method
from adautomix.metrics import Scores, collect_logits, score
from adautomix.models import Classifier, evaluating, frozen_statistics
from adautomix.pictures.image_grid import mix_grid
from adautomix.pictures.mix_rows import data_batch, mix_rows
from adautomix.rng import generator_at

PROBE_IMAGES = 512
SAMPLE_ROWS = 4


@dataclass(frozen=True)
class Evaluator:
    """Looks at the networks of a run without changing them."""

    config: TrainConfig
    data: ImageData
    method: Method
    student: Classifier
    teacher: Classifier
    device: torch.device
    right: dict[str, Tensor] = field(default_factory=dict, init=False)
    """Of each network, which test images it got right when last evaluated: uint8 `[n]`."""

    def evaluate(self) -> dict[str, Any]:
        """Scores of both networks on the test set and on held-out images, and the probe."""
        with autocast(self.device, self.config.precision):
            row = plain(self.scores("test"))
            if self.data.val is not None:
                row["val"] = plain(self.scores("val"))
            return row | {"probe": self.probe()}

    def scores(self, split: str) -> dict[str, Scores]:
        """Scores of both networks on one split."""
        every = self.data.splits()[split]
        rows = rank_rows(len(every)).to(every.labels.device)
        batches = eval_batches(
            every.subset(rows) if world() > 1 else every,
            self.data,
            batch_size=self.config.eval_batch_size,
            device=self.device,
        )
        networks = {"student": self.student, "teacher": self.teacher}
        logits, _ = collect_logits(networks, batches, self.method.eval_head)
        logits = {name: gather_rows(values)[: len(every)] for name, values in logits.items()}
        labels = every.labels.to(self.device)
        if split == "test":
            for name, values in logits.items():
                self.right[name] = (values.argmax(dim=1) == labels).to(torch.uint8)
        return {name: score(values, labels) for name, values in logits.items()}

    def predictions(self) -> dict[str, Tensor]:
        """`right` of the latest evaluation, beside it which "images" these were."""
        return {name: values.cpu() for name, values in self.right.items()} | {
            "images": fingerprints(self.data.test)
        }

    def probe(self) -> float:
        """The student's accuracy on a few unmixed, uncropped training images."""
        count = min(PROBE_IMAGES, len(self.data.train))
        generator = generator_at(self.config.seed, 0, "probe")
        rows = torch.randperm(len(self.data.train), generator=generator)[:count]
        some = self.data.train.subset(rows.to(self.device))
        images, labels = next(eval_batches(some, self.data, batch_size=count, device=self.device))
        with evaluating(self.student):
            predicted = self.student(images, head=self.method.eval_head).argmax(dim=1)
        return float((predicted == labels).double().mean())

    def draw_samples(self, path: Path, step: int) -> None:
        """A picture of the mixes that the student learns from at this step."""
        batch = data_batch(self.data, self.config.seed, self.device)
        with frozen_statistics(self.teacher), autocast(self.device, self.config.precision):
            rows = mix_rows(
                self.method,
                batch,
                count=SAMPLE_ROWS,
                student=self.student,
                teacher=self.teacher,
                step=step,
            )
        if is_main():
            path.parent.mkdir(exist_ok=True)
            mix_grid(rows, path)


def rank_rows(count: int) -> Tensor:
    """The rows that this process evaluates, as many as any other: the last may begin again at 0."""
    share = -(-count // world())
    return torch.arange(rank() * share, (rank() + 1) * share) % count


def fingerprints(split: Split) -> Tensor:
    """int64 `[n]`: a number for each image, the same in every run that has it in any place.

    A hash of its pixels; of its path where every reading would decode the file again.
    """
    contents: Iterable[bytes]
    if isinstance(split, OnDisk):
        contents = map(os.fsencode, split.paths)
    else:
        chunks = split.read(torch.arange(len(split)).split(PROBE_IMAGES))
        contents = (image.tobytes() for images, _ in chunks for image in images.cpu().numpy())
    digests = b"".join(blake2b(content, digest_size=8).digest() for content in contents)
    return torch.from_numpy(np.frombuffer(digests, dtype=np.int64).copy())


def plain(scores: dict[str, Scores]) -> dict[str, Any]:
    """Scores as nested dictionaries."""
    return {name: values._asdict() for name, values in scores.items()}


def best_so_far(row: dict[str, Any], best: dict[str, Any] | None) -> dict[str, Any] | None:
    """The better network of an epoch if it beats all before, else None.

    It is picked on held-out images where there are some, else on the test set, and says which.

    Args:
        row: an epoch's line of `metrics.jsonl`; one without scores beats nothing.
        best: the best before.
    """
    split = "val" if "val" in row else "test"
    scores = row["val"] if split == "val" else row
    if "student" not in scores:
        return None
    network = max(("student", "teacher"), key=lambda name: scores[name]["top1"])
    top1 = scores[network]["top1"]
    if best is not None and top1 <= best["top1"]:
        return None
    return {"epoch": row["epoch"], "network": network, "top1": top1, "split": split}
