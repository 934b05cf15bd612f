"""Blocks of small pictures, each with a line of words below: mixes, masks and maps side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from adautomix.pictures.image_grid import (
    GAP,
    INK,
    LINE,
    MUTED,
    PAPER,
    RULE,
    TILE,
    Pixels,
    fit,
    font,
    heat,
    paste,
)

MOST_BYTES = 200_000  # of a picture, so that a page can hold many
QUALITIES = (90, 70, 45)
HEAT_SHARE = 0.6  # of a heat map laid over an image


@dataclass(frozen=True, eq=False)
class Tile:
    """A small picture, uint8 `[H, W, 3]`, and what it is; long words reach below free places."""

    pixels: Pixels
    caption: str = ""


Row = Sequence[Tile | None]
"""Tiles from left to right; None leaves a place free."""


def write_sheet(
    blocks: Sequence[Sequence[Row]], path: Path, titles: Mapping[int, str] | None = None
) -> Path:
    """Write blocks of rows below one another, with a rule above each, as one WebP file.

    Args:
        blocks: of rows; not all need to have as many tiles.
        path: ends in `.webp`.
        titles: above some columns, by their number.
    """
    columns = max(len(row) for block in blocks for row in block)
    heights = [GAP + len(block) * (TILE + LINE) for block in blocks]
    y = LINE + GAP
    picture = Image.new("RGB", (GAP + columns * (TILE + GAP), y + sum(heights)), PAPER)
    pen = ImageDraw.Draw(picture)
    write_words(pen, titles or {}, columns, GAP, MUTED)
    for block, height in zip(blocks, heights, strict=True):
        pen.line((GAP, y, picture.width - GAP, y), RULE)
        for number, row in enumerate(block):
            draw_row(picture, row, columns, y + GAP + number * (TILE + LINE))
        y += height
    return save_small(picture, path)


def draw_row(picture: Image.Image, row: Row, columns: int, y: int) -> None:
    """The tiles of a row, and their words on one line below the largest."""
    there = {column: tile for column, tile in enumerate(row) if tile is not None}
    below = max(paste(picture, tile.pixels, left(column), y) for column, tile in there.items())
    words = {column: tile.caption for column, tile in there.items()}
    write_words(ImageDraw.Draw(picture), words, columns, below, INK)


def write_words(
    pen: ImageDraw.ImageDraw, words: Mapping[int, str], columns: int, y: int, ink: str
) -> None:
    """Words at the left edges of columns, each as long as there is room before the next."""
    for column, text in words.items():
        after = min((other for other in words if other > column), default=columns)
        pen.text((left(column), y), fit(pen, text, left(after) - left(column) - GAP), ink, font())


def left(column: int) -> int:
    """Left edge of a column."""
    return GAP + column * (TILE + GAP)


def save_small(picture: Image.Image, path: Path) -> Path:
    """Save as WebP: less finely, and at last smaller, where it has more than `MOST_BYTES`."""
    while True:
        for quality in QUALITIES:
            picture.save(path, quality=quality)
            if path.stat().st_size <= MOST_BYTES:
                return path
        picture = picture.reduce(2)


def image_tile(image: npt.NDArray[np.float32], caption: str = "") -> Tile:
    """A tile of an image `[3, H, W]` in [0, 1]; what is outside is cut off."""
    pixels: Pixels = np.rint(255 * image.clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)
    return Tile(pixels, caption)


def heat_tile(
    values: npt.NDArray[np.float32],
    caption: str = "",
    over: npt.NDArray[np.float32] | None = None,
) -> Tile:
    """A tile of values `[H, W]`, 0 to 1, in colors that the color-blind tell apart.

    With `over`, an image `[3, H, W]` in [0, 1], they are laid over it in gray.
    """
    colors = heat(values)
    if over is not None:
        gray = 255 * over.clip(0, 1).mean(axis=0)[..., None]
        mixed = HEAT_SHARE * colors + (1 - HEAT_SHARE) * gray
        colors = np.rint(mixed).astype(np.uint8)
    return Tile(colors, caption)
