"""Class probabilities of image files and tensors, batch by batch with bounded memory."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from adautomix.data.augment import center_crop, normalize
from adautomix.data.color import Color
from adautomix.data.decoding.image_files import read_image
from adautomix.data.decoding.worker_pool import available_cpus
from adautomix.data.preparation import Preparation
from adautomix.errors import UsageError
from adautomix.models import Classifier, evaluating

Views = Literal["none", "flip"]
"""Test-time augmentation: none, or the mean over an image and its mirror image."""


class FilePrediction(NamedTuple):
    """The prediction for one image file.

    Attributes:
        file: the file as it was named.
        probabilities: float32 `[K]` on the CPU; None if the file cannot be read.
        problem: why it cannot be read; "" if it can.
    """

    file: Path
    probabilities: Tensor | None
    problem: str = ""


@dataclass(frozen=True)
class Predictor:
    """Predicts with one network; files are prepared as in evaluation.

    Attributes:
        model: the network, on its device.
        head: name of the head to evaluate.
        device: the device of the network.
        image_size: side of the network's input in pixels.
        mean: mean of each channel, of pixels scaled to [0, 1].
        std: likewise the standard deviation.
        preparation: how a file becomes an input.
        max_pixels: largest number of pixels that a picture may have.
        batch_size: images per forward pass.
        multi_label: whether each class has a probability of its own.
        views: test-time augmentation.
        temperature: number that divides the logits.
    """

    model: Classifier
    head: str
    device: torch.device
    image_size: int
    mean: Color
    std: Color
    preparation: Preparation
    max_pixels: int
    batch_size: int
    multi_label: bool
    views: Views = "none"
    temperature: float = 1.0

    def tensors(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the probabilities `[B, K]` of normalized images `[n, 3, H, W]`, by batch."""
        for batch in images.split(self.batch_size):
            yield self._probabilities(batch)

    def files(self, paths: Iterable[Path]) -> Iterator[FilePrediction]:
        """Yield one prediction per file, in order; a file that cannot be read stops nothing.

        Files are decoded ahead in threads. At most two batches of small pictures are held.
        """
        pictures = self._pictures(paths)
        while some := list(islice(pictures, self.batch_size)):
            read = [picture for _, picture in some if isinstance(picture, Tensor)]
            rows = iter(self._predict_pictures(torch.stack(read)) if read else ())
            for path, picture in some:
                if isinstance(picture, Tensor):
                    yield FilePrediction(path, next(rows))
                else:
                    yield FilePrediction(path, None, picture)

    def _predict_pictures(self, pictures: Tensor) -> Tensor:
        """Return the probabilities `[B, K]` of pictures, uint8 `[B, 3, S, S]`."""
        cropped = center_crop(pictures, self.image_size)
        return self._probabilities(normalize(cropped, self.mean, self.std))

    def _probabilities(self, images: Tensor) -> Tensor:
        """Return the probabilities `[B, K]`, on the CPU, of one batch of normalized images."""
        images = images.to(self.device)
        views = [images, images.flip(-1)] if self.views == "flip" else [images]
        with evaluating(self.model):
            found = [self._of_logits(self.model(view, head=self.head).float()) for view in views]
        return torch.stack(found).mean(dim=0).cpu()

    def _of_logits(self, logits: Tensor) -> Tensor:
        if self.multi_label:
            return logits.sigmoid()
        return (logits / self.temperature).softmax(dim=1)

    def _pictures(self, paths: Iterable[Path]) -> Iterator[tuple[Path, Tensor | str]]:
        """Yield each file with its picture, uint8 `[3, S, S]`, or with what is wrong with it."""
        with ThreadPoolExecutor(available_cpus()) as pool:
            ahead: deque[tuple[Path, Future[Tensor | str]]] = deque()
            for path in paths:
                ahead.append((path, pool.submit(self._read, path)))
                if len(ahead) > self.batch_size:
                    first, reading = ahead.popleft()
                    yield first, reading.result()
            while ahead:
                first, reading = ahead.popleft()
                yield first, reading.result()

    def _read(self, path: Path) -> Tensor | str:
        if path.is_dir():
            return f"cannot read {path}: it is a folder"
        try:
            return read_image(path, self.image_size, self.preparation, self.max_pixels)
        except UsageError as error:
            return str(error)
