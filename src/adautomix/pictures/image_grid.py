"""A picture of mixed samples: what went in, how much of each went where, what came out.

Drawn pixel by pixel rather than plotted, so that a small image shows its own pixels, enlarged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from adautomix.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]

TILE = 128  # the most that one picture takes, in height and in width
GAP = 12
HEADER = 44
LINE = 22
_NAME_WIDTH, _TEXT_WIDTH = 152, 250
_MAP = "viridis"
INK, MUTED, PAPER, RULE = "#1f2328", "#5b6470", "#ffffff", "#d9d9d4"
_SIZE = 15


@dataclass(frozen=True, eq=False)
class MixRow:
    """One mix to draw.

    Attributes:
        method: name shown on the left.
        sources: the N originals, uint8 `[N, 3, H, W]`.
        masks: the share of each original at each pixel, 0..1, `[N, H, W]`; None without masks.
        mixed: the mix, uint8 `[3, H, W]`.
        lam: the N mixing ratios.
        labels: the names of the N originals' classes.
        note: a word below the method's name.
    """

    method: str
    sources: "Tensor"
    masks: "Tensor | None"
    mixed: "Tensor"
    lam: tuple[float, ...]
    labels: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Layout:
    """Where things lie, in pixels: rows of at most `ways` images, in columns of rows.

    Edges are those of the first column, until `x` of a row is added.
    """

    ways: int
    rows: int
    columns: int = 1

    @classmethod
    def of(cls, ways: int, rows: int) -> "Layout":
        """As many columns as make the picture about square."""
        width, height = cls(ways, rows).size
        return cls(ways, rows, max(1, round(math.sqrt(height / width))))

    @property
    def depth(self) -> int:
        """Rows of a column."""
        return -(-self.rows // self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole picture."""
        return self.columns * self.width, self._top(self.depth)

    @property
    def width(self) -> int:
        """Of a column."""
        return self.text_x + _TEXT_WIDTH + GAP

    @property
    def text_x(self) -> int:
        """Left edge of the text about λ and the label."""
        return self.mix_x + TILE + GAP

    @property
    def mix_x(self) -> int:
        """Left edge of the mixes."""
        return self.mask_x(self.ways) + GAP

    def source_x(self, n: int) -> int:
        """Left edge of original `n`."""
        return GAP + _NAME_WIDTH + n * (TILE + GAP)

    def mask_x(self, n: int) -> int:
        """Left edge of the mask of original `n`."""
        return self.source_x(self.ways + n) + GAP

    def x(self, row: int) -> int:
        """Left edge of the column of a row."""
        return row // self.depth * self.width

    def y(self, row: int) -> int:
        """Top edge of the pictures of a row."""
        return self._top(row % self.depth)

    def _top(self, place: int) -> int:
        return HEADER + GAP + place * (TILE + LINE + GAP)


def mix_grid(rows: Sequence[MixRow], path: Path) -> Path:
    """Write one PNG with a row a mix, and return its path.

    Rows may mix different numbers of images of different sizes. Many rows make several columns.
    Raises UsageError where there is no row, or a row's ratios, labels, masks and originals are not
    equally many.
    """
    if not rows:
        raise UsageError("no mix to draw: give at least one row")
    for row in rows:
        _check(row)
    layout = Layout.of(max(len(row.labels) for row in rows), len(rows))
    picture = Image.new("RGB", layout.size, PAPER)
    pen = ImageDraw.Draw(picture)
    for column in range(layout.columns):
        _draw_header(picture, pen, layout, column * layout.width)
    for index, row in enumerate(rows):
        _draw_row(picture, pen, layout, row, index)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    return path


def _check(row: MixRow) -> None:
    counts = {
        "originals": len(row.sources),
        "masks": len(row.sources if row.masks is None else row.masks),
        "ratios": len(row.lam),
        "labels": len(row.labels),
    }
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UsageError(f"a mix of {row.method} does not add up: {text}; give one of each a way")


def _draw_header(picture: Image.Image, pen: ImageDraw.ImageDraw, layout: Layout, left: int) -> None:
    y = HEADER - LINE
    titles = {
        GAP: "method",
        layout.source_x(0): "originals",
        layout.mask_x(0): "masks",
        layout.mix_x: "mix",
        layout.text_x: "label of the mix",
    }
    for x, title in titles.items():
        pen.text((left + x, y), title, MUTED, font())
    pen.line((left + GAP, HEADER, left + layout.width - GAP, HEADER), RULE)
    bar = left + layout.mask_x(0) + int(pen.textlength("masks", font()))
    _draw_color_bar(picture, pen, bar, y)


def _draw_color_bar(
    picture: Image.Image, pen: ImageDraw.ImageDraw, x: int, y: int, width: int = 40
) -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (12, width))
    pen.text((x + GAP, y), "0", MUTED, font())
    picture.paste(Image.fromarray(heat(ramp)), (x + 2 * GAP + 2, y + 4))
    pen.text((x + 2 * GAP + width + 6, y), "1", MUTED, font())


def _draw_row(
    picture: Image.Image, pen: ImageDraw.ImageDraw, layout: Layout, row: MixRow, index: int
) -> None:
    left, y = layout.x(index), layout.y(index)
    name = fit(pen, row.method, _NAME_WIDTH - GAP, bold=True)
    pen.text((left + GAP, y), name, INK, font(bold=True))
    pen.text((left + GAP, y + LINE), fit(pen, row.note, _NAME_WIDTH - GAP), MUTED, font())
    for n, (source, label) in enumerate(zip(row.sources, row.labels, strict=True)):
        x = left + layout.source_x(n)
        below = paste(picture, channels_last(source), x, y)
        pen.text((x, below), fit(pen, label, TILE), INK, font())
    if row.masks is None:
        pen.text((left + layout.mask_x(0), y), "no mask", MUTED, font())
    else:
        for n, mask in enumerate(row.masks.detach().cpu().float().numpy()):
            x = left + layout.mask_x(n)
            below = paste(picture, heat(mask), x, y)
            pen.text((x, below), f"mean {mask.mean():.2f}", MUTED, font())
    paste(picture, channels_last(row.mixed), left + layout.mix_x, y)
    _draw_label(pen, row, left + layout.text_x, y)


def _draw_label(pen: ImageDraw.ImageDraw, row: MixRow, x: int, y: int) -> None:
    """λ, then the weight of each class in the soft label, equal classes added up."""
    pen.text((x, y), "λ = " + ", ".join(f"{lam:.2f}" for lam in row.lam), INK, font())
    weights: dict[str, float] = {}
    for label, lam in zip(row.labels, row.lam, strict=True):
        weights[label] = weights.get(label, 0.0) + lam
    figure = int(pen.textlength("0.00  ", font()))
    for line, (label, weight) in enumerate(weights.items(), start=1):
        top = y + line * LINE + 4
        pen.text((x, top), f"{weight:.2f}", INK, font(bold=True))
        pen.text((x + figure + 4, top), fit(pen, label, _TEXT_WIDTH - figure - 4), INK, font())


def heat(values: npt.NDArray[np.float32]) -> Pixels:
    """Colors uint8 `[H, W, 3]` of values 0..1 `[H, W]`: dark is 0, bright is 1."""
    from matplotlib import colormaps

    table = np.asarray(colormaps[_MAP].colors)  # type: ignore[attr-defined]
    index = np.rint(np.clip(values, 0, 1) * (len(table) - 1)).astype(np.intp)
    colors: Pixels = np.rint(255 * table[index]).astype(np.uint8)
    return colors


def channels_last(image: "Tensor") -> Pixels:
    """Uint8 `[H, W, 3]` of an image `[C, H, W]`; one gray channel becomes three."""
    pixels: Pixels = image.detach().cpu().numpy().transpose(1, 2, 0)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def paste(picture: Image.Image, pixels: Pixels, x: int, y: int) -> int:
    """Put an image into its tile, and return where a caption goes.

    It is enlarged by whole pixels, so that each is seen as a square, or shrunk if it must be.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    times = TILE // max(image.size)
    if times >= 1:
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    else:
        image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    picture.paste(image, (x, y))
    return y + image.height + 2


def fit(pen: ImageDraw.ImageDraw, text: str, width: int, *, bold: bool = False) -> str:
    """`text` on one line, its end replaced by an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    face = font(bold=bold)
    if pen.textlength(text, face) <= width:
        return text
    while text and pen.textlength(text + "…", face) > width:
        text = text[:-1]
    return text.rstrip() + "…"


@cache
def font(*, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The typeface that comes with matplotlib: there on every machine, with Greek letters."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), _SIZE)
