"""Evaluate the networks of a running training, and draw the mixes that it learns from."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adautomix.class_results import ClassResults, class_results
from adautomix.config import TrainConfig
from adautomix.data import ImageData, eval_batches
from adautomix.data.dataset import OnDisk, Split, split_files
from adautomix.device import autocast, exact
from adautomix.distributed import gather_rows, is_main, rank, world_size
from adautomix.methods import Method
from adautomix.metrics import collect_logits, is_right, score
from adautomix.models import Classifier, frozen_running_stats
from adautomix.models.memory import fitting_batch, forward_bytes, one_image
from adautomix.pictures.mix_rows import batch_from_data, mix_grid, mix_rows
from adautomix.rng import generator_at
from adautomix.runs.schema import BestEpoch, EpochRow, NetworkName, NetworkScores

PROBE_IMAGES = 512
SAMPLE_ROWS = 4
NETWORKS: tuple[NetworkName, NetworkName] = ("student", "teacher")


@dataclass(frozen=True)
class Evaluator:
    """Evaluates student and teacher without changing them.

    Attributes:
        config: the settings.
        data: the images.
        method: the mixing method; it names the head to evaluate.
        student: the trained network.
        teacher: its moving average.
        device: where the networks are.
        correct: for each network a uint8 tensor `[n]`, 1 for each test image that the latest
            evaluation classified correctly; empty before the first evaluation.
        results: for each network its results per class in the latest evaluation, likewise.
    """

    config: TrainConfig
    data: ImageData
    method: Method
    student: Classifier
    teacher: Classifier
    device: torch.device
    correct: dict[str, Tensor] = field(default_factory=dict, init=False)
    results: dict[NetworkName, ClassResults] = field(default_factory=dict, init=False)

    def evaluate(self) -> dict[str, Any]:
        """The evaluation fields of an `EpochRow`: student, teacher, val and probe."""
        with autocast(self.device, self.config.precision):
            test = self.scores("test")
            val = None if self.data.val is None else self.scores("val")
            fields: dict[str, Any] = {"val": val, "probe": self.probe()}
            return fields | {name: test[name] for name in NETWORKS}

    @cached_property
    def batch_size(self) -> int:
        """The number of images per forward pass, such that it stays within `max_memory`."""
        image = one_image(self.data.image_size, self.device)
        size = forward_bytes(self.student, image, head=self.method.eval_head)
        return fitting_batch(self.config.eval_batch_size, size, self.config.max_memory)

    def scores(self, split: str) -> NetworkScores:
        """The scores of both networks on one split, which the processes evaluate together."""
        images = self.data.splits()[split]
        rows = rank_rows(len(images)).to(images.labels.device)
        batches = eval_batches(
            images.subset(rows) if world_size() > 1 else images,
            self.data,
            batch_size=self.batch_size,
            device=self.device,
        )
        networks = {"student": self.student, "teacher": self.teacher}
        logits, _ = collect_logits(networks, batches, self.method.eval_head)
        # The last process repeats the first rows to have as many as the others; drop them here.
        logits = {name: gather_rows(values)[: len(images)] for name, values in logits.items()}
        labels = images.labels.to(self.device)
        if split == "test":
            files = split_files(self.data, "test")
            for name in NETWORKS:
                values = logits[name]
                self.correct[name] = is_right(values, labels).to(torch.uint8)
                self.results[name] = class_results(values, labels, self.data.classes, files)
        return {name: score(logits[name], labels) for name in NETWORKS}

    def predictions(self) -> dict[str, Tensor]:
        """`correct` of the latest evaluation, and in "images" a fingerprint of each test image."""
        correct = {name: values.cpu() for name, values in self.correct.items()}
        return correct | {"images": fingerprints(self.data.test)}

    def probe(self) -> float:
        """The student's accuracy on a fixed random sample of unmixed training images, 0 to 1."""
        count = min(PROBE_IMAGES, len(self.data.train))
        generator = generator_at(self.config.seed, 0, "probe")
        rows = torch.randperm(len(self.data.train), generator=generator)[:count]
        sample = self.data.train.subset(rows.to(self.device))
        batches = eval_batches(sample, self.data, batch_size=self.batch_size, device=self.device)
        networks = {"student": self.student}
        logits, labels = collect_logits(networks, batches, self.method.eval_head)
        return float(exact(is_right(logits["student"], labels)).mean())

    def draw_samples(self, path: Path, step: int) -> None:
        """Write a picture of the mixes that the student is trained on at this step."""
        batch = batch_from_data(self.data, self.config.seed, self.device)
        with frozen_running_stats(self.teacher), autocast(self.device, self.config.precision):
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
    """The rows that this process evaluates, int64.

    Every process gets the same number of rows; the last one wraps around to row 0 if necessary.
    """
    per_rank = -(-count // world_size())
    return torch.arange(rank() * per_rank, (rank() + 1) * per_rank) % count


def fingerprints(split: Split) -> Tensor:
    """A hash of each image, int64 `[n]`: equal in every run that has the image at any position.

    The hash is of the pixels, or of the path where reading the pixels would decode the file again.
    """
    contents: Iterable[bytes]
    if isinstance(split, OnDisk):
        contents = map(os.fsencode, split.paths)
    else:
        chunks = split.read(torch.arange(len(split)).split(PROBE_IMAGES))
        contents = (image.tobytes() for images, _ in chunks for image in images.cpu().numpy())
    digests = b"".join(blake2b(content, digest_size=8).digest() for content in contents)
    return torch.from_numpy(np.frombuffer(digests, dtype=np.int64).copy())


def best_so_far(row: EpochRow, best: BestEpoch | None) -> BestEpoch | None:
    """The better network of an epoch if it beats the best one before, else None.

    Networks are compared on the held-out images if there are any, else on the test images, by
    their top-1 accuracy, or by their mAP where images have several labels.

    Args:
        row: the row of the epoch; one without scores beats nothing.
        best: the best so far.
    """
    if row.student is None or row.teacher is None:
        return None
    test: NetworkScores = {"student": row.student, "teacher": row.teacher}
    scores = test if row.val is None else row.val
    network = max(NETWORKS, key=lambda name: scores[name].main)
    found = scores[network]
    if best is not None and found.main <= best.main:
        return None
    split = "test" if row.val is None else "val"
    return BestEpoch(epoch=row.epoch, network=network, top1=found.top1, map=found.map, split=split)
