"""Read views of image files, of stored pictures and of decoded pixels."""

import mmap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from adautomix.decoder.files import is_turned, open_file, open_image, stated_depth, upright_rgb
from adautomix.decoder.views import (
    OVERSAMPLING,
    RESAMPLE,
    SQUARE_OVERSAMPLING,
    box_of,
    center_crop,
    cut,
    cut_out,
    draft,
    padded,
    square,
)

View = Sequence[Any]


@dataclass(frozen=True)
class Rules:
    """Rules for decoding image files to RGB pictures.

    Attributes:
        max_pixels: largest number of pixels that a picture may have.
        composite: composite transparent pictures on white instead of dropping the alpha channel.
        crop_bottom: number of pixel rows removed from the bottom of every picture.
        resample: filter of a resized view: "bicubic" or "bilinear", with antialiasing.
    """

    max_pixels: int = 178_956_970
    composite: bool = True
    crop_bottom: int = 0
    resample: str = "bicubic"


def read_view(path: str, view: View, size: int, rules: Rules) -> tuple[Image.Image, Image.Image]:
    """Read a view of an image file.

    Args:
        path: the file.
        view: see `views`.
        size: side of the result in pixels.
        rules: rules for decoding the file.

    Returns:
        The view, `size` × `size`, and the decoded picture that it was taken from.

    Raises:
        Exception: whatever Pillow raises, ValueError or OSError.
    """
    if view[0] == "padded":
        inner, picture = read_view(path, view[1], size, rules)
        return padded(inner, *view[2:]), picture
    with open_file(path) as file:
        image = open_image(file, rules.max_pixels)
        depth, full = stated_depth(image, file), _upright_size(image)
        width, height = full[0], max(1, full[1] - rules.crop_bottom)
        box = box_of(view, width, height, size)
        squared = view[0] == "square"
        draft(image, box.shorter, size, SQUARE_OVERSAMPLING if squared else OVERSAMPLING)
        picture = upright_rgb(image, depth, composite=rules.composite)
    if squared:
        return square(_without_bottom(picture, height / full[1]), size), picture
    make = cut_out if view[0] == "box" else cut
    return make(picture, box, full, size, RESAMPLE[rules.resample]), picture


def read_prepared(
    path: str,
    image_size: int,
    *,
    kind: str,
    resize: int,
    interpolation: str = "bicubic",
    composite: bool = True,
    max_pixels: int = Rules.max_pixels,
) -> Image.Image:
    """Read an image file as evaluation and prediction do; exported folders hold this code too.

    Args:
        path: the file.
        image_size: side of the result in pixels.
        kind: see `adautomix.data.preparation.Preparation`, as for the next three.
        resize: side in pixels that the picture or its center square is resized to.
        interpolation: filter of the resize.
        composite: composite transparent pictures on white instead of dropping the alpha channel.
        max_pixels: largest number of pixels that the picture may have.

    Raises:
        Exception: whatever Pillow raises, ValueError or OSError.
    """
    rules = Rules(max_pixels, composite, resample=interpolation)
    if kind == "square":
        return center_crop(read_view(path, ("square",), resize, rules)[0], image_size)
    return read_view(path, ("center", resize), image_size, rules)[0]


def read_whole(path: str, limit: int | None, rules: Rules) -> Image.Image:
    """Read a whole image file.

    Args:
        path: the file.
        limit: largest shorter side in pixels; larger pictures are downscaled. None: no limit.
        rules: rules for decoding the file.

    Raises:
        Exception: whatever Pillow raises, ValueError or OSError.
    """
    with open_file(path) as file:
        image = open_image(file, rules.max_pixels)
        depth, full = stated_depth(image, file), _upright_size(image)
        height = max(1, full[1] - rules.crop_bottom)
        shorter = min(full[0], height)
        if limit is not None:
            draft(image, shorter, limit)
        picture = upright_rgb(image, depth, composite=rules.composite)
    picture = _without_bottom(picture, height / full[1])
    if limit is None or shorter <= limit:
        return picture
    size = round(full[0] * limit / shorter), round(height * limit / shorter)
    return picture.resize(size, RESAMPLE[rules.resample])


def see(picture: Image.Image, view: View, size: int, rules: Rules) -> Image.Image:
    """Return a view of a decoded picture, resized to `size` × `size`."""
    resample = RESAMPLE[rules.resample]
    if view[0] == "square":
        return square(picture, size)
    if view[0] == "padded":
        inner, *offsets = view[1:]
        seen = center_crop(picture, size) if inner is None else see(picture, inner, size, rules)
        whole = padded(seen, *offsets)
        return whole if whole.size == (size, size) else whole.resize((size, size), resample)
    make = cut_out if view[0] == "box" else cut
    return make(picture, box_of(view, *picture.size, size), picture.size, size, resample)


def stored_picture(
    rules: Rules,
    store: str,
    offset: int,
    width: int,
    height: int,
    checksum: int,
    path: str,
    limit: int | None,
) -> Image.Image:
    """Return a picture whose RGB bytes are stored in a file; if damaged, decode the original again.

    Args:
        rules: rules for decoding the original.
        store: the file that holds the bytes.
        offset: offset of the picture in the store, in bytes.
        width: width of the picture.
        height: height of the picture.
        checksum: CRC-32 of the bytes.
        path: the image file that they were decoded from.
        limit: see `read_whole`.
    """
    pixels = memoryview(_mapped(store))[offset : offset + width * height * 3]
    if zlib.crc32(pixels) != checksum:
        return read_whole(path, limit, rules)
    return picture_of(pixels, width, height)


def picture_of(pixels: Any, width: int, height: int) -> Image.Image:
    """Wrap RGB bytes, in any object that supports the buffer protocol, as a picture."""
    return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)


@cache
def _mapped(path: str) -> mmap.mmap:
    with Path(path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if is_turned(image) else (width, height)


def _without_bottom(picture: Image.Image, remaining: float) -> Image.Image:
    """Crop the bottom so that the fraction `remaining` of the height is left."""
    height = max(1, round(picture.height * remaining))
    return picture if height == picture.height else picture.crop((0, 0, picture.width, height))
