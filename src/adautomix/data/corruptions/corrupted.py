"""Images corrupted as they are read.

The corruptions are those of Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations*, ICLR 2019: 15 and 4 extra, at severities 1 to 5. They are
made by the library `imagecorruptions-imaug`, with the strengths of ImageNet-C at every image size.
The authors made CIFAR-10-C and CIFAR-100-C with weaker ones for 32 × 32 images, so figures on
those are only comparable with figures on the published arrays.
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
"""Those that the paper averages over; the extra ones are for validation."""
SEVERITIES = (1, 2, 3, 4, 5)

_REQUEST = 2**16  # pixels that a process takes at a time: some seconds of the slowest corruption
_CPU = torch.device("cpu")
_AHEAD = 2  # batches begun before they are needed
LIBRARY = "imagecorruptions-imaug"


class CorrupterPool(WorkerPool):
    """`workers` processes (default: one a processor) that corrupt; they start on first use."""

    def __init__(self, workers: int | None = None) -> None:
        super().__init__(corrupt.__file__, workers)

    def corrupt(
        self, images: Pixels, corruption: str, severity: int, seeds: Sequence[int], out: Pixels
    ) -> list[Future[None]]:
        """Fill `out` with corrupted `images`, `[n, S, S, 3]` both, each with a seed below 2³².

        The futures raise RunError where a process dies or the library fails.
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
    """A split whose images are corrupted as they are read, with batches on `device`.

    An image is a function of the seed, the corruption, the severity, the clean image and its row
    in the split; not of batches or of what else is corrupted.
    """

    clean: Split
    rows: Tensor
    """int64 `[n]`: the number that each image draws its randomness by."""
    image_size: int
    """Larger stored images are cut to this center first; smaller ones are corrupted as they are."""
    corruption: str
    severity: int
    seed: int
    corrupters: CorrupterPool
    device: torch.device = _CPU

    @property
    def labels(self) -> Tensor:
        """int64 `[n]`."""
        return self.clean.labels.to(self.device)

    def __len__(self) -> int:
        return len(self.clean)

    def to(self, device: torch.device) -> Self:
        """The split with its batches delivered to `device`."""
        return replace(self, device=device)

    def subset(self, rows: Tensor) -> Self:
        """The images at `rows`, corrupted as they are in the whole split."""
        return replace(self, clean=self.clean.subset(rows), rows=self.rows[rows])

    def read(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Corrupt in processes, a few batches ahead."""
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
    """The center of images `[B, 3, H, W]` as `[B, S, S, 3]` on the CPU, S at most `image_size`."""
    return center_crop(images, image_size).permute(0, 2, 3, 1).contiguous().cpu().numpy()
