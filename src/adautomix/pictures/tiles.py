"""Small pictures side by side, each with its name."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from torch import Tensor

_COLUMNS = 5
_TILE = 80  # pixels a side at most: 20 noisy ones stay below 150 kB
_WIDTH, _HEIGHT = 112, 106  # of a tile with its name and the room around
_SIZE = 11
_INK, _PAPER = "#1f2328", "#ffffff"


def write_tiles(tiles: "Mapping[str, Tensor]", path: Path) -> None:
    """Write one PNG of images uint8 `[3, S, S]` by name, five a row, in at most 256 colors."""
    rows = -(-len(tiles) // _COLUMNS)
    picture = Image.new("RGB", (_COLUMNS * _WIDTH, rows * _HEIGHT), _PAPER)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_SIZE)
    for index, (name, image) in enumerate(tiles.items()):
        row, column = divmod(index, _COLUMNS)
        x, y = column * _WIDTH + 4, row * _HEIGHT + 4
        pen.text((x, y), name, _INK, font)
        picture.paste(_tile(image), (x, y + _SIZE + 5))
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _tile(image: "Tensor") -> Image.Image:
    """An image enlarged by whole pixels, so that each is seen, or shrunk."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    times = _TILE // picture.width
    if times:
        return picture.resize((times * picture.width,) * 2, Image.Resampling.NEAREST)
    return picture.resize((_TILE, _TILE), Image.Resampling.BOX)
