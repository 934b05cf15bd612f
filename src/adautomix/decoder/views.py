"""Views: regions of a picture, resized to the network's input size.

A view is a JSON list that begins with its name:

- `["square"]`: the center square, resized.
- `["center", resize]`: the shorter side resized to `resize`, then the center cropped, as
  torchvision's `Resize` and `CenterCrop` do.
- `["box", areas, ratios, top, left]`: a random box, as in torchvision's `RandomResizedCrop`.
- `["padded", view, pad, top, left]`: a crop of another view, padded by reflection. If `view` is
  null, the center of the picture takes its place; a smaller picture is enlarged after the crop.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageOps

RATIO = (3 / 4, 4 / 3)
"""Smallest and largest aspect ratio (width divided by height) of a random box."""

OVERSAMPLING = 3
"""Smallest ratio of decoded to needed side when a JPEG file is decoded at reduced size.

With 3, 99 % of the pixels of photographs differ from those of a full decode by at most two of 255
levels; with 2, by at most three.
"""

SQUARE_OVERSAMPLING = 2
"""`OVERSAMPLING` for center squares; changing it would change the pixels of existing runs."""

RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


class Box(NamedTuple):
    """A region of a picture, in pixels of the whole picture."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def shorter(self) -> float:
        """Length of the shorter side."""
        return min(self.right - self.left, self.bottom - self.top)


def random_box(
    width: int,
    height: int,
    areas: Sequence[float],
    ratios: Sequence[float],
    top: float,
    left: float,
) -> Box:
    """Return the first box that fits a picture, in whole pixels, or else the largest centered box.

    Args:
        width: width of the picture.
        height: height of the picture.
        areas: area of each candidate, as a fraction of the picture.
        ratios: width divided by height of each candidate.
        top: vertical position in [0, 1), as a fraction of the possible offsets.
        left: horizontal position in [0, 1), as a fraction of the possible offsets.
    """
    for area, ratio in zip(areas, ratios, strict=True):
        columns = round(math.sqrt(area * width * height * ratio))
        rows = round(math.sqrt(area * width * height / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            x = min(int(left * (width - columns + 1)), width - columns)
            y = min(int(top * (height - rows + 1)), height - rows)
            return Box(x, y, x + columns, y + rows)
    columns = min(width, max(1, round(height * RATIO[1])))
    rows = min(height, max(1, round(width / RATIO[0])))
    x, y = (width - columns) // 2, (height - rows) // 2
    return Box(x, y, x + columns, y + rows)


def center_box(width: int, height: int, resize: int, size: int) -> Box:
    """Return the region left by resizing the shorter side to `resize` and cropping to `size`."""
    new_width = resize if width <= height else int(resize * width / height)
    new_height = resize if height <= width else int(resize * height / width)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    across, down = width / new_width, height / new_height
    return Box(left * across, top * down, (left + size) * across, (top + size) * down)


def square_box(width: int, height: int) -> Box:
    """Return the center square of a picture."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return Box(left, top, left + side, top + side)


def box_of(view: Sequence[Any], width: int, height: int, size: int) -> Box:
    """Return the region of a picture that a view shows."""
    name, *values = view
    if name == "box":
        return random_box(width, height, *values)
    if name == "center":
        (resize,) = values
        return center_box(width, height, resize, size)
    if name == "square":
        return square_box(width, height)
    return Box(0, 0, width, height)


def draft(
    image: Image.Image, shorter: float, size: int, oversampling: float = OVERSAMPLING
) -> None:
    """Decode a JPEG file at 1/2, 1/4 or 1/8 of its size if enough pixels remain.

    Args:
        image: an opened image that is not yet decoded; formats other than JPEG are unaffected.
        shorter: shorter side in pixels of the region that is needed.
        size: side in pixels that this region will be resized to.
        oversampling: smallest side of the decoded region, as a multiple of `size`.
    """
    factor = oversampling * size / shorter
    if factor < 1:
        width, height = (max(1, int(side * factor + 1e-6)) for side in image.size)
        image.draft(None, (width, height))


def cut(
    image: Image.Image, box: Box, full: tuple[int, int], size: int, resample: Image.Resampling
) -> Image.Image:
    """Resize a region to `size` × `size`, as if the whole picture were resized and then cropped.

    The filter reads pixels outside the region, unlike in `cut_out`.

    Args:
        image: the decoded picture, possibly at reduced size.
        box: the region, in pixels of the whole picture.
        full: width and height of the whole picture.
        size: side of the result in pixels.
        resample: the filter; when downscaling it is widened, which prevents aliasing.
    """
    # A JPEG file decoded at 1/8 rounds its size up: the last pixel covers less than 8 × 8.
    scale = 1 / max(1, round(full[0] / image.width))
    left, top, right, bottom = (edge * scale for edge in box)
    inside = (max(0.0, left), max(0.0, top), min(right, image.width), min(bottom, image.height))
    return image.resize((size, size), resample, inside)


def cut_out(
    image: Image.Image, box: Box, full: tuple[int, int], size: int, resample: Image.Resampling
) -> Image.Image:
    """Like `cut`, but crop before resizing, as torchvision's `resized_crop` does."""
    if image.size != full:
        return cut(image, box, full, size, resample)  # the edges may fall within pixels
    image = image.crop((int(box.left), int(box.top), int(box.right), int(box.bottom)))
    return image if image.size == (size, size) else image.resize((size, size), resample)


def square(image: Image.Image, side: int) -> Image.Image:
    """Resize the center square of a picture to `side` × `side` with a bicubic filter."""
    if image.size == (side, side):
        return image
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Crop to the center `size` × `size` pixels; smaller pictures are returned unchanged."""
    left, top = max(0, (image.width - size) // 2), max(0, (image.height - size) // 2)
    return image.crop((left, top, min(left + size, image.width), min(top + size, image.height)))


def padded(image: Image.Image, pad: int, top: int, left: int) -> Image.Image:
    """Pad a picture by reflection and crop it back to its size at offset (`top`, `left`)."""
    if not pad:
        return image
    width, height = image.size
    wide = Image.new("RGB", (width + 2 * pad, height))
    mirrored = ImageOps.mirror(image)
    wide.paste(image, (pad, 0))
    wide.paste(mirrored.crop((width - 1 - pad, 0, width - 1, height)), (0, 0))
    wide.paste(mirrored.crop((1, 0, 1 + pad, height)), (pad + width, 0))
    flipped = ImageOps.flip(wide)
    whole = Image.new("RGB", (width + 2 * pad, height + 2 * pad))
    whole.paste(wide, (0, pad))
    whole.paste(flipped.crop((0, height - 1 - pad, wide.width, height - 1)), (0, 0))
    whole.paste(flipped.crop((0, 1, wide.width, 1 + pad)), (0, pad + height))
    return whole.crop((left, top, left + width, top + height))
