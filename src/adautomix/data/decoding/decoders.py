"""A pool of decoding processes, and a whole folder decoded by it."""

from collections.abc import Generator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from adautomix.data.color import Pixels
from adautomix.data.decoding import worker as decode
from adautomix.data.decoding.worker_pool import WorkerPool, ahead
from adautomix.errors import RunError

if TYPE_CHECKING:
    from rich.progress import Progress

BadRows = dict[int, str]  # which files are unreadable, and why
_CHUNK = 64  # images of one request


class DecoderPool(WorkerPool):
    """`workers` processes (default: one a processor) that decode; they start on first use."""

    def __init__(self, workers: int | None = None) -> None:
        super().__init__(decode.__file__, workers)

    def decode(self, paths: Sequence[str], out: Pixels) -> Future[BadRows]:
        """Fill `out` `[len(paths), S, S, 3]` in the background.

        The future gives the position and reason of each unreadable file, whose pixels are zeros;
        it raises RunError if the process dies.
        """
        return self.submit(self._decode, paths, out)

    def _decode(self, paths: Sequence[str], out: Pixels) -> BadRows:
        try:
            bad: dict[str, str] = self.exchange([out.shape[1], list(paths)], out)
        except (OSError, ValueError) as error:
            raise RunError(
                f"a decoding process ended while it read {paths[0]} and the {len(paths) - 1} "
                "images after it: too little memory? use fewer workers"
            ) from error
        return {int(position): reason for position, reason in bad.items()}


def decode_all(
    paths: Sequence[str], side: int, *, workers: int | None, progress: bool
) -> Generator[tuple[Pixels, BadRows]]:
    """Decode every file, chunk by chunk: pixels `[k, side, side, 3]` and which are unreadable."""

    def begin(start: int) -> tuple[int, Pixels, Future[BadRows]]:
        chunk = paths[start : start + _CHUNK]
        out = np.empty((len(chunk), side, side, 3), np.uint8)
        return start, out, decoders.decode(chunk, out)

    with DecoderPool(workers) as decoders, _progress_bar(progress) as bar:
        task = bar.add_task("Reading images", total=len(paths))
        begun = (begin(start) for start in range(0, len(paths), _CHUNK))
        for start, out, future in ahead(begun, 4 * decoders.workers):
            yield out, {start + position: reason for position, reason in future.result().items()}
            bar.advance(task, len(out))


def _progress_bar(enabled: bool) -> "Progress":
    from rich.console import Console  # late: only a first load shows it
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:,.0f} images/s")

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate()
    left = TextColumn("left"), TimeRemainingColumn()
    return Progress(*columns, *left, console=Console(stderr=True), disable=not enabled)
