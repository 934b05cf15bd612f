"""Program of a decoding process.

Each line of standard input is a request, a JSON object. The answer is one JSON line, followed by
the RGB bytes of all pictures in order. The program exits at the end of its standard input.

A request with "size" asks for pictures of `size` × `size` pixels. Each entry of "pictures" is
`[source, view, operations]`, see `views` and `operations`. A source is the path of an image file,
`[store, offset, width, height, checksum, path, limit]` for RGB bytes stored in a file, or
`[width, height]` for RGB bytes that follow the request. An unreadable picture is all zeros.

A request with "limit" asks for whole pictures of the files "paths". The answer gives the size of
each picture in "sizes", `[0, 0]` for an unreadable one.

The answer gives in "bad" the reason why a file is unreadable, by position, and in "plain" the
positions of pictures with only a few colors.
"""

import json
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

if __name__ == "__main__":  # started by its path, so the package must be made importable
    sys.path.append(str(Path(__file__).parents[2]))

from PIL import Image

from adautomix.decoder.files import is_plain, reason
from adautomix.decoder.operations import apply_operations
from adautomix.decoder.reading import (
    Rules,
    picture_of,
    read_view,
    read_whole,
    see,
    stored_picture,
)

Answer = tuple[dict[str, Any], list[bytes]]


def answer_views(request: dict[str, Any], given: BinaryIO) -> Answer:
    """Read one view of each picture and apply its operations."""
    size, rules = request["size"], Rules(**request["rules"])
    bad: dict[int, str] = {}
    plain: list[int] = []
    pixels: list[bytes] = []
    for position, (source, view, operations) in enumerate(request["pictures"]):
        try:
            image, picture = _view(source, view, size, rules, given)
            if picture is not None and is_plain(picture):
                plain.append(position)
            if operations:
                image = apply_operations(image, operations, request["fill"])
            pixels.append(image.tobytes())
        except Exception as error:  # Pillow raises what its plugins raise
            bad[position] = reason(error)
            pixels.append(bytes(size * size * 3))
    return {"bad": bad, "plain": plain}, pixels


def _view(
    source: Any, view: Sequence[Any], size: int, rules: Rules, given: BinaryIO
) -> tuple[Image.Image, Image.Image | None]:
    """Return the view, and the picture that it was taken from if that was decoded from a file."""
    if isinstance(source, str):
        return read_view(source, view, size, rules)
    if len(source) == 2:
        width, height = source
        return see(
            picture_of(given.read(width * height * 3), width, height), view, size, rules
        ), None
    return see(stored_picture(rules, *source), view, size, rules), None


def answer_whole(request: dict[str, Any]) -> Answer:
    """Read whole image files."""
    limit, rules = request["limit"], Rules(**request["rules"])
    bad: dict[int, str] = {}
    plain: list[int] = []
    sizes: list[tuple[int, int]] = []
    pixels: list[bytes] = []
    for position, path in enumerate(request["paths"]):
        try:
            picture = read_whole(path, limit, rules)
            if is_plain(picture):
                plain.append(position)
            pixels.append(picture.tobytes())
            sizes.append(picture.size)
        except Exception as error:  # Pillow raises what its plugins raise
            bad[position] = reason(error)
            sizes.append((0, 0))
    return {"bad": bad, "plain": plain, "sizes": sizes}, pixels


def requests(given: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield the requests from standard input."""
    while line := given.readline():
        yield json.loads(line)


def main() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    warnings.simplefilter("ignore")
    given, out = sys.stdin.buffer, sys.stdout.buffer
    for request in requests(given):
        answer, pixels = (
            answer_views(request, given) if "size" in request else answer_whole(request)
        )
        out.write(json.dumps(answer).encode() + b"\n")
        out.writelines(pixels)
        out.flush()


if __name__ == "__main__":
    main()
