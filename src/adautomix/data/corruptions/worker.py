"""Corrupts images: the program of a corrupting process.

It imports the corruptions and what they need, torch is not among it. It answers each line of
standard input, the JSON list `[corruption, severity, side, [seed, ...]]`, and the
`side * side * 3` bytes per image that follow it with one JSON line, null or what went wrong, and
as many bytes. It ends when its standard input does.
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

_SEEDED = ("glass_blur", "impulse_noise")  # these draw from generators of their own


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """NumPy's global random numbers from a seed below 2³²; their state is put back afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def corrupt(image: Pixels, corruption: str, severity: int, seed: int) -> Pixels:
    """One image `[S, S, 3]` corrupted: a function of its arguments alone.

    Args:
        image: at least 32 pixels per side.
        corruption: by its name in `imagecorruptions`.
        severity: 1 to 5.
        seed: below 2³².
    """
    import imagecorruptions

    own = {"seed": seed} if corruption in _SEEDED else {}
    # Spatter divides by its largest drop. Where no drop falls on a small image the library gives
    # a black one: here the image stays as it is.
    invalid: Any = "raise" if corruption == "spatter" else "ignore"
    with numpy_seeded(seed), np.errstate(invalid=invalid):
        try:
            changed = imagecorruptions.corrupt(image, severity, corruption, **own)
        except FloatingPointError:
            return image
    return np.asarray(changed, np.uint8)


def corrupt_all(images: Pixels, corruption: str, severity: int, seeds: Sequence[int]) -> Pixels:
    """Images `[n, S, S, 3]`, each with its own seed."""
    changed = [corrupt(x, corruption, severity, s) for x, s in zip(images, seeds, strict=True)]
    return np.stack(changed)


@cache
def _make_fast() -> None:
    """Suit OpenCV to a process that does nothing but corrupt."""
    from imagecorruptions.corruptions import cv2

    cv2.setNumThreads(1)  # there is a process a processor
    cv2.imread = cache(cv2.imread)  # frost reads one of its six pictures for every image


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    warnings.simplefilter("ignore")
    given, out = sys.stdin.buffer, sys.stdout.buffer
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = nowhere  # the library prints
        for request in given:
            _answer(request, given, out)


if __name__ == "__main__":
    main()
