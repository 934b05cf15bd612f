"""A pool of decoding processes, and functions that decode many files with it."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from adautomix.data.color import Pixels
from adautomix.data.decoding.worker_pool import WorkerLostError, WorkerPool, ahead
from adautomix.decoder import __main__ as program
from adautomix.decoder.reading import Rules
from adautomix.errors import RunError

BadRows = dict[int, str]
"""Reason why a file is unreadable, by row."""

GRAY = (128, 128, 128)

_PATIENCE, _PATIENCE_PER_PICTURE = 60.0, 4.0  # timeout of a request, in seconds
_CHUNK = 64  # squares per request
_WHOLE_CHUNK = 8  # whole pictures per request, fewer because they may be large


class Source(NamedTuple):
    """Where a decoding process finds a picture."""

    place: str | tuple[Any, ...]
    """Image file, location of stored bytes, or size of `pixels`; see `decoder.__main__`."""
    pixels: memoryview | None = None
    """RGB bytes that are sent with the request."""
    name: str = ""
    """Name of the picture in error messages."""


class Request(NamedTuple):
    """A view of one picture and the operations applied to it, see `decoder.__main__`."""

    source: Source
    view: Sequence[Any]
    operations: Sequence[Sequence[Any]] = ()


@dataclass
class Outcome:
    """Problems found while decoding, by position."""

    bad: BadRows = field(default_factory=dict)
    """Unreadable files with the reason."""
    plain: list[int] = field(default_factory=list)
    """Pictures with only a few colors."""


class DecoderPool(WorkerPool):
    """Pool of decoding processes, which start on first use.

    Args:
        workers: number of processes; None: one per processor.
    """

    def __init__(self, workers: int | None = None) -> None:
        super().__init__(program.__file__, workers)

    def render(
        self,
        requests: Sequence[Request],
        out: Pixels,
        rules: Rules,
        fill: tuple[int, int, int] = GRAY,
    ) -> Future[Outcome]:
        """Render the requested pictures into `out` in the background.

        A file that crashes or hangs its decoding process counts as unreadable. Unreadable files
        give zeros.

        Args:
            requests: one per picture.
            out: uint8 `[len(requests), S, S, 3]`, which is filled.
            rules: rules for decoding a file.
            fill: color of pixels that an operation moves in from outside the picture.

        Returns:
            Future of the outcome; it raises RunError if all of several pictures lose their process.
        """
        return self.submit(self._render, requests, out, rules, fill)

    def _render(
        self, requests: Sequence[Request], out: Pixels, rules: Rules, fill: tuple[int, int, int]
    ) -> Outcome:
        def ask(some: slice) -> Outcome:
            pictures = [[r.source.place, r.view, r.operations] for r in requests[some]]
            line: dict[str, Any] = {"size": out.shape[1], "fill": fill, "rules": asdict(rules)}
            given = [r.source.pixels for r in requests[some] if r.source.pixels is not None]
            line["pictures"] = pictures
            return _outcome(self.exchange(line, lambda _: out[some], given, _patience(some)))

        names = [request.source.name or str(request.source.place) for request in requests]
        return _one_by_one(ask, names, lambda position: out[position].fill(0))

    def whole(
        self, paths: Sequence[str], limit: int | None, rules: Rules
    ) -> "Future[tuple[list[Pixels], Outcome]]":
        """Decode whole files in the background.

        Args:
            paths: the files.
            limit: largest shorter side in pixels; larger pictures are downscaled. None: no limit.
            rules: rules for decoding a file.

        Returns:
            Future of the pictures, uint8 `[H, W, 3]` each, `[0, 0, 3]` if unreadable, and of the
            outcome.
        """
        return self.submit(self._whole, paths, limit, rules)

    def _whole(
        self, paths: Sequence[str], limit: int | None, rules: Rules
    ) -> tuple[list[Pixels], Outcome]:
        pictures = [np.empty((0, 0, 3), np.uint8) for _ in paths]

        def ask(some: slice) -> Outcome:
            flat = np.empty(0, np.uint8)

            def place(answer: Any) -> Pixels:
                nonlocal flat
                flat = np.empty(sum(3 * w * h for w, h in answer["sizes"]), np.uint8)
                return flat

            line = {"limit": limit, "rules": asdict(rules), "paths": paths[some]}
            answer = self.exchange(line, place, (), _patience(some))
            start = 0
            for position, (width, height) in enumerate(answer["sizes"], some.start):
                end = start + 3 * width * height
                pictures[position] = flat[start:end].reshape(height, width, 3)
                start = end
            return _outcome(answer)

        outcome = _one_by_one(ask, paths, lambda _: None)
        return pictures, outcome


def _patience(some: slice) -> float:
    return _PATIENCE + _PATIENCE_PER_PICTURE * float(some.stop - some.start)


def _outcome(answer: Any) -> Outcome:
    bad = {int(position): reason for position, reason in answer["bad"].items()}
    return Outcome(bad, answer["plain"])


def _one_by_one(
    ask: Callable[[slice], Outcome], names: Sequence[str], clear: Callable[[int], None]
) -> Outcome:
    """Request all at once; if the process is lost, request each alone to find the cause."""
    with suppress(WorkerLostError):
        return ask(slice(0, len(names)))
    whole, lost = Outcome(), 0
    for position in range(len(names)):
        try:
            alone = ask(slice(position, position + 1))
        except WorkerLostError as error:
            lost += 1
            clear(position)
            alone = Outcome({0: f"the process that decoded it was lost: {error}"})
        found = _shifted(alone, position)
        whole.bad.update(found.bad)
        whole.plain.extend(found.plain)
    if lost == len(names) > 1:
        raise RunError(
            f"a decoding process ended while it read {names[0]} and the {len(names) - 1} "
            "images after it: too little memory? use fewer workers"
        )
    return whole


def decode_squares(
    paths: Sequence[str], side: int, rules: Rules, *, workers: int | None, progress: bool
) -> Generator[tuple[Pixels, Outcome]]:
    """Decode the center square of every file, in chunks.

    Args:
        paths: the files.
        side: side of the squares in pixels.
        rules: rules for decoding a file.
        workers: number of decoding processes; None: one per processor.
        progress: show a progress bar on standard error.

    Yields:
        Pixels uint8 `[k, side, side, 3]` and outcome of k consecutive files.
    """
    requests = [Request(Source(path), ("square",)) for path in paths]
    with DecoderPool(workers) as decoders:

        def begin(start: int) -> tuple[Pixels, Future[Outcome]]:
            chunk = requests[start : start + _CHUNK]
            out = np.empty((len(chunk), side, side, 3), np.uint8)
            return out, decoders.render(chunk, out, rules)

        begun = (begin(start) for start in range(0, len(paths), _CHUNK))
        start = 0
        with progress_counter(len(paths), progress) as advance:
            for out, future in ahead(begun, 4 * decoders.workers):
                yield out, _shifted(future.result(), start)
                start += len(out)
                advance(len(out))


def decode_whole(
    paths: Sequence[str], limit: int | None, rules: Rules, *, workers: int | None, progress: bool
) -> Generator[tuple[list[Pixels], Outcome]]:
    """Decode every file whole, in chunks.

    Args:
        paths: the files.
        limit: largest shorter side in pixels, see `DecoderPool.whole`.
        rules: rules for decoding a file.
        workers: number of decoding processes; None: one per processor.
        progress: show a progress bar on standard error.

    Yields:
        Pictures uint8 `[H, W, 3]` and outcome of consecutive files.
    """
    with DecoderPool(workers) as decoders:
        begun = (
            decoders.whole(paths[start : start + _WHOLE_CHUNK], limit, rules)
            for start in range(0, len(paths), _WHOLE_CHUNK)
        )
        start = 0
        with progress_counter(len(paths), progress) as advance:
            for future in ahead(begun, 2 * decoders.workers):
                pictures, outcome = future.result()
                yield pictures, _shifted(outcome, start)
                start += len(pictures)
                advance(len(pictures))


def _shifted(outcome: Outcome, start: int) -> Outcome:
    bad = {start + position: reason for position, reason in outcome.bad.items()}
    return Outcome(bad, [start + position for position in outcome.plain])


@contextmanager
def progress_counter(total: int, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error if `enabled`; yield a function that advances it."""
    from rich.console import Console  # imported here: only a first load shows a bar
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
    console = Console(stderr=True)
    with Progress(*columns, *left, console=console, disable=not enabled) as bar:
        task = bar.add_task("Reading images", total=total)
        yield lambda count: bar.advance(task, count)
