"""Render batches of images in decoding processes, a few batches ahead."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from adautomix.data.decoding.decoders import GRAY, DecoderPool, Outcome, Request
from adautomix.data.decoding.worker_pool import ahead
from adautomix.decoder.reading import Rules
from adautomix.device import to_device
from adautomix.errors import RunError

_CHUNK = 16  # images per request to a decoding process
_PREFETCH = 4  # batches started before they are needed


def render(
    jobs: Iterable[tuple[Tensor, Sequence[Request]]],
    size: int,
    rules: Rules,
    decoders: DecoderPool,
    labels: Tensor,
    fill: tuple[int, int, int] = GRAY,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Render batches in order, without waiting for the device.

    Args:
        jobs: rows int64 `[B]` and one request per row, for each batch.
        size: side of the images in pixels.
        rules: rules for decoding a file.
        decoders: the decoding processes.
        labels: labels `[n]` or `[n, K]` of all rows, on the device that batches are delivered to.
        fill: color of pixels that an operation moves in from outside the picture.

    Yields:
        Images uint8 `[B, 3, size, size]` and labels `[B]` or `[B, K]`, on the device.

    Raises:
        RunError: a file cannot be read.
    """
    pinned = labels.device.type == "cuda"

    def begin(rows: Tensor, requests: Sequence[Request]) -> _Pending:
        shape = (len(requests), size, size, 3)
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        pixels = images.numpy()
        chunks = [slice(start, start + _CHUNK) for start in range(0, len(requests), _CHUNK)]
        parts = [
            (requests[at], decoders.render(requests[at], pixels[at], rules, fill)) for at in chunks
        ]
        return _Pending(rows, images, parts)

    for pending in ahead((begin(*job) for job in jobs), _PREFETCH):
        for requests, future in pending.parts:
            _refuse_bad(requests, future.result())
        rows = to_device(pending.rows, labels.device)
        images = to_device(pending.images, labels.device)
        yield images.permute(0, 3, 1, 2), labels[rows]


@dataclass(frozen=True)
class _Pending:
    """A batch that is being rendered."""

    rows: Tensor
    images: Tensor
    parts: list[tuple[Sequence[Request], Future[Outcome]]]
    """Requests and outcome of each chunk."""


def _refuse_bad(requests: Sequence[Request], outcome: Outcome) -> None:
    for position, reason in outcome.bad.items():
        source = requests[position].source
        raise RunError(
            f"cannot read image {source.name or source.place}: {reason}; remove it, or "
            "check every image first and leave out the unreadable: --skip-bad (skip_bad: true)"
        )
