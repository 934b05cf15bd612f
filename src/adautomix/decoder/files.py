"""Decode image files to upright RGB pictures with 8 bits per channel.

Files are untrusted: only the formats listed here are decoded, whatever the suffix of the file, and
none of their decoders starts another program.
"""

import os
import stat
import struct
from contextlib import suppress
from typing import Any, BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

ALWAYS_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that every build decodes without starting another program."""

ALLOWED_FORMATS = (*ALWAYS_FORMATS, "DIB", "JPEG2000", "AVIF")

_WHITE = (255, 255, 255, 255)
_PLAIN = 4  # largest number of colors of a picture that is reported as plain

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281


def available_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are decoded."""
    Image.preinit()
    from PIL import Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin

    with suppress(ImportError):
        from PIL import AvifImagePlugin  # noqa: F401
    plugins = (Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin)
    known: tuple[str, ...] = ALLOWED_FORMATS if all(plugins) else ()
    with suppress(ImportError):  # optional package
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]

        pillow_heif.register_heif_opener()
        known += ("HEIF",)
    return tuple(name for name in known if name in Image.OPEN)


FORMATS = available_formats()


def open_file(path: str) -> BinaryIO:
    """Open a regular file; refuse anything else, such as a named pipe, which could block.

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
        OSError: its format is not one of those that are decoded.
    """
    Image.MAX_IMAGE_PIXELS = None  # the user's limit below replaces Pillow's
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"{width} × {height} pixels are more than max_pixels = {max_pixels}")
    return image


def is_turned(image: Image.Image) -> bool:
    """Return whether the EXIF orientation swaps width and height."""
    return image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)


def upright_rgb(image: Image.Image, depth: int | None, *, composite: bool) -> Image.Image:
    """Decode an opened image to RGB and apply its EXIF orientation.

    Args:
        image: an image from `open_image`.
        depth: bits per gray sample that the file states, see `stated_depth`.
        composite: composite transparent pictures on white instead of dropping the alpha channel.

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
    """Convert grayscale with more than 8 bits per sample to mode "L".

    Integers are scaled by their bit depth: the one stated in the file, or else the smallest of 8,
    12, 16, 24 and 31 bits that holds the largest value. Floating-point values are scaled from the
    smallest of the ranges 0 to 1, 255, 4095 and 65535 that holds the largest value, or else from 0
    to the largest value. Negative values and NaN become black.

    Args:
        image: mode "I", "I;16…" or "F".
        depth: bits per sample that the file states; None if it states none.
    """
    if image.mode == "F":
        return _from_float(image)
    image = image.convert("I")
    extrema: Any = image.getextrema()
    # 12-bit samples in 16-bit files are common; scaled as 16 bits, they would be nearly black.
    depth = depth or next(bits for bits in (8, 12, 16, 24, 31) if extrema[1] < 2**bits)
    scale = 2.0 ** (8 - depth)
    return image.convert("F").point(lambda value: value * scale + 0).convert("L")


def _from_float(image: Image.Image) -> Image.Image:
    import numpy as np  # imported here: other pictures do not need it

    values = np.nan_to_num(np.asarray(image), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max())
    limit = next((limit for limit in (1, 255, 4095, 65535) if largest <= limit), largest)
    levels = np.clip(values.astype(np.float64) * (255 / limit), 0, 255).round()
    return Image.fromarray(levels.astype(np.uint8))


def stated_depth(image: Image.Image, file: BinaryIO) -> int | None:
    """Return the bits per gray sample stated in a file, for formats that may not use all bits.

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
    """Return the gray depth in the sBIT chunk of a PNG file, without moving the file position."""
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
    """Return whether an RGB picture has at most four colors; it may have been decoded wrongly."""
    return image.getcolors(_PLAIN) is not None


def reason(error: Exception) -> str:
    """Return a short reason why a file could not be decoded, without its path."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be identified"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
