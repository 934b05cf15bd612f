"""Images that are corrupted when they are read.

The corruptions are those of Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations*, ICLR 2019: 15 standard and 4 extra ones, at severities 1 to
5. The library `imagecorruptions-imaug` applies them with the strengths of ImageNet-C at every image
size. CIFAR-10-C and CIFAR-100-C use weaker corruptions for 32 × 32 images, so published results on
them are not comparable with results on CIFAR images corrupted here.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from adautomix.data.augment import center_crop
from adautomix.data.color import Pixels
from adautomix.data.corruptions import worker as corrupt
from adautomix.data.dataset import Split
from adautomix.data.decoding.worker_pool import WorkerLostError, WorkerPool, ahead
from adautomix.errors import RunError
from adautomix.rng import seed_at

CATEGORIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
CORRUPTIONS = tuple(name for names in CATEGORIES.values() for name in names)
PAPER_CORRUPTIONS = CORRUPTIONS[:15]
"""Corruptions that the paper averages over; the extra ones are meant for validation."""
SEVERITIES = (1, 2, 3, 4, 5)

_REQUEST = 2**16  # pixels per request: a few seconds of the slowest corruption
_CPU = torch.device("cpu")
_AHEAD = 2  # batches started before they are needed
LIBRARY = "imagecorruptions-imaug"


class CorrupterPool(WorkerPool):
    """Pool of processes that corrupt images, which start on first use.

    Args:
        workers: number of processes; None: one per processor.
    """

    def __init__(self, workers: int | None = None) -> None:
        super().__init__(corrupt.__file__, workers)

    def corrupt(
        self, images: Pixels, corruption: str, severity: int, seeds: Sequence[int], out: Pixels
    ) -> list[Future[None]]:
        """Write corrupted images into `out` in the background.

        Args:
            images: uint8 `[n, S, S, 3]`.
            corruption: one of `CORRUPTIONS`.
            severity: 1 to 5.
            seeds: one seed below 2³² per image.
            out: uint8 `[n, S, S, 3]`, which is filled.

        Returns:
            Futures to wait for; they raise RunError if a process dies or the library fails.
        """
        side = images.shape[1]
        chunk = max(1, _REQUEST // side**2)
        chunks = (slice(start, start + chunk) for start in range(0, len(images), chunk))
        return [
            self.submit(self._corrupt, [corruption, severity, side, seeds[at]], images[at], out[at])
            for at in chunks
        ]

    def _corrupt(self, request: list[object], images: Pixels, out: Pixels) -> None:
        try:
            problem = self.exchange(request, lambda _: out, [images.tobytes()])
        except WorkerLostError as error:
            raise RunError(
                f"a process ended while it made {request[0]}: too little memory? use fewer "
                "workers (--corruption.workers)"
            ) from error
        if problem is not None:
            raise RunError(
                f"cannot make {request[0]} with {LIBRARY}: {problem}; where a library of the "
                "screen is missing, replace opencv-python by opencv-python-headless"
            )


@dataclass(frozen=True)
class Corrupted:
    """A split whose images are corrupted when they are read, with batches on `device`.

    A corrupted image depends only on the seed, the corruption, the severity, the clean image and
    its row in the split, not on the batch that it is read in.
    """

    clean: Split
    rows: Tensor
    """int64 `[n]`: number per image that selects its random numbers."""
    image_size: int
    """Larger images are center-cropped to this side first; smaller ones keep their size."""
    corruption: str
    severity: int
    seed: int
    corrupters: CorrupterPool
    device: torch.device = _CPU

    @property
    def labels(self) -> Tensor:
        """Class indices, int64 `[n]`, on `device`."""
        return self.clean.labels.to(self.device)

    def __len__(self) -> int:
        return len(self.clean)

    def to(self, device: torch.device) -> Self:
        """Return the split with its batches delivered to `device`."""
        return replace(self, device=device)

    def subset(self, rows: Tensor) -> Self:
        """Return the split of the images at `rows`, corrupted exactly as in the whole split."""
        return replace(self, clean=self.clean.subset(rows), rows=self.rows[rows])

    def read(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Corrupt batches ahead in worker processes; see `Split.read`."""
        known = list(batches)
        clean = self.clean.read(known)
        begun = (self._begin(rows, *batch) for rows, batch in zip(known, clean, strict=True))
        for pixels, labels, parts in ahead(begun, _AHEAD):
            for part in parts:
                part.result()
            images = torch.from_numpy(pixels).to(self.device)
            yield images.permute(0, 3, 1, 2), labels.to(self.device)

    def _begin(
        self, batch: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Pixels, Tensor, list[Future[None]]]:
        clean = channels_last(images, self.image_size)
        stream = f"corruption/{self.corruption}/{self.severity}"
        seeds = [seed_at(self.seed, row, stream) % 2**32 for row in self.rows[batch].tolist()]
        out = np.empty_like(clean)
        parts = self.corrupters.corrupt(clean, self.corruption, self.severity, seeds, out)
        return out, labels, parts


def channels_last(images: Tensor, image_size: int) -> Pixels:
    """Center-crop images `[B, 3, H, W]` to `[B, S, S, 3]` on the CPU, S at most `image_size`."""
    return center_crop(images, image_size).permute(0, 2, 3, 1).contiguous().cpu().numpy()
