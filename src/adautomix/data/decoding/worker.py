"""Image files to squares of RGB pixels: the program of a decoding process.

It imports Pillow and nothing heavier, so a process is ready in a tenth of a second. It answers
each line of standard input, the JSON list `[side, [path, ...]]`, with one JSON line
`{position: reason}` of the unreadable files, followed by `side * side * 3` bytes for every
path, in order (zeros for an unreadable one). It ends when its standard input does.
"""

import json
import signal
import sys
import warnings
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError


def decode(path: str, side: int) -> Image.Image:
    """The image's center square as `side` × `side` RGB.

    The shorter side is resized (bicubic, antialiased) to `side`. The camera's orientation is
    applied, transparency dropped, 16-bit gray scaled down. Raises whatever Pillow raises.
    """
    with Image.open(path) as image:
        # JPEG only: decode at 1/2, 1/4 or 1/8 where that still leaves twice the pixels needed.
        image.draft(None, (2 * side, 2 * side))
        ImageOps.exif_transpose(image, in_place=True)
        rgb = _rgb(image)
    if rgb.size != (side, side):
        rgb = ImageOps.fit(rgb, (side, side), Image.Resampling.BICUBIC)
    return rgb


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return image.convert("RGB")


def is_readable(path: str, side: int) -> bool:
    """Whether `decode` succeeds."""
    try:
        decode(path, side)
    except Exception:
        return False
    return True


def reason(error: Exception) -> str:
    """Why a file could not be decoded, in a few words without its path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be identified"
    return " ".join(str(error).split()) or type(error).__name__


def _answer(request: str, out: BinaryIO) -> None:
    side, paths = json.loads(request)
    bad, pixels = {}, []
    for position, path in enumerate(paths):
        try:
            pixels.append(decode(path, side).tobytes())
        except Exception as error:
            bad[position] = reason(error)
            pixels.append(bytes(side * side * 3))
    out.write(json.dumps(bad).encode() + b"\n")
    out.writelines(pixels)
    out.flush()


def main() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    warnings.simplefilter("ignore")
    for request in sys.stdin:
        _answer(request, sys.stdout.buffer)


if __name__ == "__main__":
    main()
