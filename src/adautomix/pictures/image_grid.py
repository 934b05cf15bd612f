"""Grids of images with captions, heat maps and text.

`torchvision.utils.make_grid` serves for images of one size without text. These grids also hold
images of different sizes, a caption below each image, text cells, column titles, and rules between
blocks of rows. Small images are enlarged by an integer factor, so that every pixel stays a sharp
square.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
"""An image `[H, W, 3]`."""

TILE = 128  # maximum height and width of an image in the grid
GAP = 12  # between columns, and above and below a block
LINE = 22  # height of a line of text
TEXT_SIZE = 15
MAX_BYTES = 200_000  # of a picture file, so that one report can embed many
WEBP_QUALITIES = (90, 70, 45)
HEAT_WEIGHT = 0.6  # weight of a heat map laid over an image
INK, MUTED, PAPER, RULE = "#1f2328", "#5b6470", "#ffffff", "#d9d9d4"

_COLOR_MAP = "viridis"
_BAR_SIZE = (40, 12)  # width and height of the color bar


@dataclass(frozen=True, eq=False)
class Tile:
    """An image in a grid.

    Attributes:
        pixels: uint8 `[H, W, 3]`.
        caption: one line below the image; it may extend below empty cells to the right.
        muted: whether the caption is gray instead of black.
    """

    pixels: Pixels
    caption: str = ""
    muted: bool = False


@dataclass(frozen=True)
class TextLine:
    """A line of text: first `bold` in bold, then `text`; gray if `muted`."""

    text: str = ""
    bold: str = ""
    muted: bool = False


@dataclass(frozen=True)
class Text:
    """A cell of text, from its top line to its bottom line; without lines it is a spacer."""

    lines: tuple[TextLine, ...] = ()


Cell: TypeAlias = Tile | Text | None
"""None is an empty cell, below which the caption on its left may extend."""
Row: TypeAlias = Sequence[Cell]
"""Cells from left to right; a row may be shorter than others."""
Block: TypeAlias = Sequence[Row]
"""Rows that belong together, without a rule between them."""


@dataclass(frozen=True)
class GridLayout:
    """The positions of cells, in pixels from the top left corner of the grid.

    Attributes:
        widths: width of each column.
        blocks: number of rows of each block.
        header: height of the column titles above the first block; 0 without titles.
        tile: height of the images.
        line: height of a line of text.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    header: int = LINE + GAP
    tile: int = TILE
    line: int = LINE

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the grid."""
        return self.left(len(self.widths)), self.rule(len(self.blocks))

    def left(self, column: int) -> int:
        """Return the left edge of a column; for the number of columns, the width of the grid."""
        return GAP + sum(self.widths[:column]) + column * GAP

    def rule(self, block: int) -> int:
        """Return the height of the rule above a block."""
        return self.header + sum(self._height(rows) for rows in self.blocks[:block])

    def top(self, block: int, row: int = 0) -> int:
        """Return the top edge of the cells in a row of a block."""
        return self.rule(block) + GAP + row * (self.tile + self.line)

    def _height(self, rows: int) -> int:
        return GAP + rows * (self.tile + self.line)


def image_grid(
    blocks: Sequence[Block],
    titles: Mapping[int, str] | None = None,
    *,
    widths: Sequence[int] | None = None,
    color_bar: int | None = None,
    tile: int = TILE,
    text_size: int = TEXT_SIZE,
) -> Image.Image:
    """Draw blocks of rows of cells.

    Args:
        blocks: the cells; rows may have different lengths.
        titles: column titles by column number, and a rule above each block; None: neither.
        widths: width of each column in pixels; None: `tile` for every column.
        color_bar: the column whose title is followed by a bar of the heat map colors, 0 to 1.
        tile: maximum height and width of an image in pixels.
        text_size: font size in pixels.
    """
    if widths is None:
        widths = [tile] * max(len(row) for block in blocks for row in block)
    layout = GridLayout(
        widths=tuple(widths),
        blocks=tuple(len(block) for block in blocks),
        header=0 if titles is None else LINE + GAP,
        tile=tile,
        line=round(LINE / TEXT_SIZE * text_size),
    )
    canvas = _Canvas(layout, text_size)
    if titles is not None:
        canvas.draw_titles(titles, color_bar)
    for number, block in enumerate(blocks):
        if titles is not None:
            canvas.draw_rule(layout.rule(number))
        for index, row in enumerate(block):
            canvas.draw_row(row, layout.top(number, index))
    return canvas.picture


class _Canvas:
    """A picture in progress."""

    def __init__(self, layout: GridLayout, text_size: int) -> None:
        self.layout = layout
        self.picture = Image.new("RGB", layout.size, PAPER)
        self.pen = ImageDraw.Draw(self.picture)
        self.text_size = text_size

    def draw_titles(self, titles: Mapping[int, str], color_bar: int | None) -> None:
        """Draw column titles, each up to the next one."""
        for column, title in titles.items():
            self.draw_text(title, self.layout.left(column), GAP, self.room(column, titles), MUTED)
        if color_bar is not None:
            right = self.layout.left(color_bar) + self.length(titles[color_bar])
            self.draw_color_bar(right + GAP, GAP)

    def draw_rule(self, y: int) -> None:
        """Draw a horizontal line over the whole width."""
        self.pen.line((GAP, y, self.picture.width - GAP, y), RULE)

    def draw_color_bar(self, x: int, y: int) -> None:
        """Draw the heat map colors from 0 to 1."""
        width, height = _BAR_SIZE
        ramp = np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (height, width))
        self.draw_text("0", x, y, width, MUTED)
        self.picture.paste(Image.fromarray(heat_map(ramp)), (x + 14, y + 4))
        self.draw_text("1", x + 18 + width, y, width, MUTED)

    def draw_row(self, row: Row, top: int) -> None:
        """Draw the cells of a row, and the captions on one line below the tallest image."""
        cells = {column: cell for column, cell in enumerate(row) if cell is not None}
        captions_y = top
        for column, cell in cells.items():
            if isinstance(cell, Tile):
                bottom = self.draw_image(cell.pixels, self.layout.left(column), top)
                captions_y = max(captions_y, bottom + 2)
            else:
                self.draw_lines(cell, column, top)
        for column, cell in cells.items():
            if isinstance(cell, Tile):
                ink = MUTED if cell.muted else INK
                x, width = self.layout.left(column), self.room(column, cells)
                self.draw_text(cell.caption, x, captions_y, width, ink)

    def draw_image(self, pixels: Pixels, x: int, y: int) -> int:
        """Draw an image at the size of a tile, and return its bottom edge."""
        image = fit_image(Image.fromarray(np.ascontiguousarray(pixels)), self.layout.tile)
        self.picture.paste(image, (x, y))
        return y + image.height

    def draw_lines(self, cell: Text, column: int, top: int) -> None:
        """Draw the lines of a text cell."""
        x, width = self.layout.left(column), self.layout.widths[column]
        for number, line in enumerate(cell.lines):
            y, ink, used = top + number * self.layout.line, MUTED if line.muted else INK, 0
            if line.bold:
                self.draw_text(line.bold, x, y, width, ink, bold=True)
                used = self.length(line.bold + "  ", bold=True)
            self.draw_text(line.text, x + used, y, width - used, ink)

    def draw_text(
        self, text: str, x: int, y: int, width: int, ink: str, *, bold: bool = False
    ) -> None:
        """Draw one line; if it is wider than `width`, end it with an ellipsis."""
        self.pen.text((x, y), self.shorten(text, width, bold=bold), ink, self.font(bold=bold))

    def shorten(self, text: str, width: int, *, bold: bool = False) -> str:
        """Return `text` on one line of at most `width` pixels."""
        text = " ".join(text.split())
        if not text or self.length(text, bold=bold) <= width:
            return text
        while text and self.length(text + "…", bold=bold) > width:
            text = text[:-1]
        return text.rstrip() + "…"

    def room(self, column: int, occupied: Mapping[int, Any]) -> int:
        """Return the width from a column to the next occupied one, or to the right edge."""
        after = min((c for c in occupied if c > column), default=len(self.layout.widths))
        return self.layout.left(after) - self.layout.left(column) - GAP

    def length(self, text: str, *, bold: bool = False) -> int:
        return round(self.pen.textlength(text, self.font(bold=bold)))

    def font(self, *, bold: bool = False) -> ImageFont.FreeTypeFont:
        return load_font(self.text_size, bold=bold)


@cache
def load_font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and has Greek letters."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def fit_image(image: Image.Image, side: int) -> Image.Image:
    """Return an image enlarged by an integer factor, or shrunk, to at most `side` pixels."""
    factor = side // max(image.size)
    if factor >= 1:
        size = (image.width * factor, image.height * factor)
        return image.resize(size, Image.Resampling.NEAREST)
    shrunk = image.copy()
    shrunk.thumbnail((side, side), Image.Resampling.LANCZOS)
    return shrunk


# ---------------------------------------------------------------------- tiles


def image_tile(image: npt.NDArray[Any], caption: str = "") -> Tile:
    """Return a tile of an image `[C, H, W]`, with one or three channels.

    Args:
        image: uint8, or floating point in [0, 1]; values outside this range are clipped.
        caption: the line below it.
    """
    if image.dtype != np.uint8:
        image = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
    pixels: Pixels = image.transpose(1, 2, 0)
    return Tile(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), caption)


def heat_tile(
    values: npt.NDArray[np.float32],
    caption: str = "",
    *,
    over: npt.NDArray[np.float32] | None = None,
    muted: bool = False,
) -> Tile:
    """Return a tile of values `[H, W]` in [0, 1] as a heat map.

    Args:
        values: dark is 0, bright is 1.
        caption: the line below it.
        over: an image `[3, H, W]` in [0, 1] to lay the heat map over, in gray.
        muted: whether the caption is gray.
    """
    colors = heat_map(values)
    if over is not None:
        gray = 255 * over.clip(0, 1).mean(axis=0)[..., None]
        blend = HEAT_WEIGHT * colors + (1 - HEAT_WEIGHT) * gray
        colors = np.rint(blend).astype(np.uint8)
    return Tile(colors, caption, muted)


def heat_map(values: npt.NDArray[np.float32]) -> Pixels:
    """Return viridis colors, uint8 `[H, W, 3]`, of values `[H, W]` in [0, 1]."""
    from matplotlib import colormaps

    table = np.asarray(colormaps[_COLOR_MAP].colors)  # type: ignore[attr-defined]
    index = np.rint(np.clip(values, 0, 1) * (len(table) - 1)).astype(np.intp)
    colors: Pixels = np.rint(255 * table[index]).astype(np.uint8)
    return colors


# ---------------------------------------------------------------------- files


def save_picture(picture: Image.Image, path: Path, max_bytes: int | None = MAX_BYTES) -> Path:
    """Write a picture as PNG or WebP, as the suffix of `path` says, and return the path.

    Args:
        picture: the picture.
        path: the file; its folder is created.
        max_bytes: largest size of the file; None: no limit. To stay below it, a PNG is reduced to
            256 colors, which may not suffice, and a WebP to a lower quality and then to a smaller
            picture.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".webp":
        _save_webp(picture, path, max_bytes)
    else:
        picture.save(path, optimize=True)
        if max_bytes is not None and path.stat().st_size > max_bytes:
            picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def _save_webp(picture: Image.Image, path: Path, max_bytes: int | None) -> None:
    while True:
        for quality in WEBP_QUALITIES:
            picture.save(path, quality=quality)
            if max_bytes is None or path.stat().st_size <= max_bytes:
                return
        picture = picture.reduce(2)
