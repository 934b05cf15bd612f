"""Image files as upright RGB pictures of 8 bits per channel.

Files are untrusted: only the formats listed here are decoded, whatever the file is called, and none
of their decoders starts another program.
"""

import os
import stat
import struct
from contextlib import suppress
from typing import Any, BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

ALWAYS_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats, as Pillow names them, that every Pillow decodes without starting another program."""

ALLOWED_FORMATS = (*ALWAYS_FORMATS, "DIB", "JPEG2000", "AVIF")

_WHITE = (255, 255, 255, 255)
_PLAIN = 4  # colors up to which a picture is reported as plain

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281


def available_formats() -> tuple[str, ...]:
    """Names of the formats that are decoded, as Pillow calls them."""
    Image.preinit()
    from PIL import Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin

    with suppress(ImportError):
        from PIL import AvifImagePlugin  # noqa: F401
    plugins = (Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin)
    known: tuple[str, ...] = ALLOWED_FORMATS if all(plugins) else ()
    with suppress(ImportError):  # an optional package of the user's
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]

        pillow_heif.register_heif_opener()
        known += ("HEIF",)
    return tuple(name for name in known if name in Image.OPEN)


FORMATS = available_formats()


def open_file(path: str) -> BinaryIO:
    """Open a regular file; anything else, such as a named pipe, would block and is refused.

    Raises:
        OSError: there is no such file, it cannot be read, or it is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return os.fdopen(descriptor, "rb")


def open_image(file: BinaryIO, max_pixels: int) -> Image.Image:
    """Identify an image by its content, without decoding it.

    Raises:
        ValueError: it has more than `max_pixels` pixels.
        OSError: it is of no format that is decoded.
    """
    Image.MAX_IMAGE_PIXELS = None  # the limit below is the user's
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"{width} × {height} pixels are more than max_pixels = {max_pixels}")
    return image


def is_turned(image: Image.Image) -> bool:
    """Whether the camera's orientation swaps width and height."""
    return image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)


def upright_rgb(image: Image.Image, depth: int | None, *, composite: bool) -> Image.Image:
    """Decode an opened image to RGB with the camera's orientation applied.

    Args:
        image: an image from `open_image`.
        depth: bits per gray sample that the file states, see `stated_depth`.
        composite: put transparent pictures on white; otherwise their alpha channel is dropped.

    Raises:
        Exception: whatever Pillow raises for a damaged file.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        upright = eight_bit(upright, depth)
    elif composite and upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, _WHITE), upright)
    return upright.convert("RGB")


def eight_bit(image: Image.Image, depth: int | None) -> Image.Image:
    """Convert gray of more than 8 bits to mode "L".

    The range of integers is that of their bit depth: the file's if it says so, else the smallest
    of 8, 12, 16, 24 and 31 bits that holds the largest value. The range of floating-point values
    is 0 to 1, 255, 4095 or 65535, the smallest that holds the largest value, else the largest
    value itself. Values below 0 and NaN become black.

    Args:
        image: mode "I", "I;16…" or "F".
        depth: bits per sample that the file states; None if it states none.
    """
    if image.mode == "F":
        return _from_float(image)
    image = image.convert("I")
    extrema: Any = image.getextrema()
    # 12-bit samples in 16-bit files are common, and 8 bits of them would be nearly black.
    depth = depth or next(bits for bits in (8, 12, 16, 24, 31) if extrema[1] < 2**bits)
    scale = 2.0 ** (8 - depth)
    return image.convert("F").point(lambda value: value * scale + 0).convert("L")


def _from_float(image: Image.Image) -> Image.Image:
    import numpy as np  # late: other pictures do without

    values = np.nan_to_num(np.asarray(image), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max())
    limit = next((limit for limit in (1, 255, 4095, 65535) if largest <= limit), largest)
    levels = np.clip(values.astype(np.float64) * (255 / limit), 0, 255).round()
    return Image.fromarray(levels.astype(np.uint8))


def stated_depth(image: Image.Image, file: BinaryIO) -> int | None:
    """Bits per gray sample that a file states, if they can be fewer than its container holds.

    Args:
        image: an opened image.
        file: the file it was opened from.
    """
    if not image.mode.startswith("I"):
        return None
    if image.format == "TIFF":
        return _tiff_depth(image)
    if image.format == "PNG":
        return significant_bits(file)
    return 16 if image.format == "PPM" else None  # Pillow scales every PPM to 16 bits


def _tiff_depth(image: Image.Image) -> int | None:
    tags: Any = getattr(image, "tag_v2", {})
    bits, largest = tags.get(_BITS_PER_SAMPLE, (16,)), tags.get(_MAX_SAMPLE_VALUE)
    largest = largest[0] if isinstance(largest, tuple) else largest
    if largest:
        return int(largest).bit_length()
    return int(bits[0]) if bits[0] < 16 else None


def significant_bits(file: BinaryIO) -> int | None:
    """The gray depth that the sBIT chunk of a PNG file states; the position is kept."""
    start = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"sBIT" and length == 1:
                return file.read(1)[0]
            if kind in (b"IDAT", b"PLTE"):
                return None
            file.seek(length + 4, os.SEEK_CUR)
        return None
    finally:
        file.seek(start)


def is_plain(image: Image.Image) -> bool:
    """Whether an RGB picture has fewer than a handful of colors: it may have been misread."""
    return image.getcolors(_PLAIN) is not None


def reason(error: Exception) -> str:
    """Why a file could not be decoded, in a few words without its path."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be identified"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
