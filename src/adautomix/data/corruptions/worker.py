"""Program of a worker process that corrupts images.

It imports the corruption library but not torch. A request is one line on standard input, the JSON
list `[corruption, severity, side, [seed, ...]]`, followed by `side * side * 3` bytes per image. The
answer is one JSON line, null or an error message, followed by the same number of bytes. The program
exits at the end of its standard input.
"""

import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

_SEEDED = ("glass_blur", "impulse_noise")  # these take a seed instead of NumPy's global state


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator (seed below 2³²) within the block, then restore its state."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def corrupt(image: Pixels, corruption: str, severity: int, seed: int) -> Pixels:
    """Corrupt one image; the result depends on the arguments alone.

    Args:
        image: uint8 `[S, S, 3]`, at least 32 pixels per side.
        corruption: name in `imagecorruptions`.
        severity: 1 to 5.
        seed: random seed below 2³².
    """
    import imagecorruptions

    own = {"seed": seed} if corruption in _SEEDED else {}
    # Spatter divides by its largest drop. If no drop falls on a small image, the library returns a
    # black image; return the image unchanged instead.
    invalid: Any = "raise" if corruption == "spatter" else "ignore"
    with numpy_seeded(seed), np.errstate(invalid=invalid):
        try:
            changed = imagecorruptions.corrupt(image, severity, corruption, **own)
        except FloatingPointError:
            return image
    return np.asarray(changed, np.uint8)


def corrupt_all(images: Pixels, corruption: str, severity: int, seeds: Sequence[int]) -> Pixels:
    """Corrupt images `[n, S, S, 3]` with one seed per image."""
    changed = [corrupt(x, corruption, severity, s) for x, s in zip(images, seeds, strict=True)]
    return np.stack(changed)


@cache
def _make_fast() -> None:
    """Configure OpenCV for a process that only corrupts images."""
    from imagecorruptions.corruptions import cv2

    cv2.setNumThreads(1)  # there is one process per processor
    cv2.imread = cache(cv2.imread)  # frost rereads one of its six textures for every image


def _answer(request: bytes, given: BinaryIO, out: BinaryIO) -> None:
    corruption, severity, side, seeds = json.loads(request)
    shape = (len(seeds), side, side, 3)
    images = np.frombuffer(given.read(len(seeds) * side * side * 3), np.uint8).reshape(shape)
    problem = None
    try:
        _make_fast()
        images = corrupt_all(images, corruption, severity, seeds)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    out.write(json.dumps(problem).encode() + b"\n" + images.tobytes())
    out.flush()


def main() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    warnings.simplefilter("ignore")
    given, out = sys.stdin.buffer, sys.stdout.buffer
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = nowhere  # output of the library would corrupt the answers
        for request in given:
            _answer(request, given, out)


if __name__ == "__main__":
    main()
