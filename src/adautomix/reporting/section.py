"""What a part of the page is made of, whatever it is about."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adautomix.evaluation.record import Evaluation
from adautomix.reporting.drawing import NETWORK_STYLES, SOLID, Chart, LineStyle

_QUALITY = 50  # of WebP, 0 to 100


@dataclass(frozen=True)
class Table:
    """A titled table, its cells written out; the first two columns are words, the rest numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """An embedded picture with the words that stand for it.

    Attributes:
        title: what it is.
        caption: what to see in it.
        alt: what a reader who cannot see it should know.
        source: a data URI.
    """

    title: str
    caption: str
    alt: str
    source: str


@dataclass(frozen=True)
class Section:
    """One part of the page, with a heading that the table of contents links to."""

    slug: str
    title: str
    note: str
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    pictures: Sequence[Picture] = ()

    @property
    def drawn(self) -> list[tuple[Chart, Any]]:
        """The charts with their SVG marked as safe: it is ours, and its words are escaped."""
        from markupsafe import Markup

        return [(chart, Markup(chart.svg)) for chart in self.charts]


@dataclass(frozen=True)
class Found:
    """What was found of one subject, and how it is shown beside others.

    Attributes:
        label: its name on this page.
        evaluation: the record.
        folder: where its pictures lie, in `evaluation/<suite>/`.
        color: number of its color; seeds of one method share one.
    """

    label: str
    evaluation: Evaluation
    folder: Path
    color: int

    def picture(self, suite: str, name: str) -> Path:
        """The path of a picture that a suite drew."""
        return self.folder / "evaluation" / suite / name


def line_style(network: str) -> LineStyle:
    """How the lines of a network are drawn."""
    return NETWORK_STYLES.get(network, SOLID)


def embedded(path: Path) -> str:
    """A picture file as a data URI, as WebP where that is smaller: a page is to be sent by mail."""
    from PIL import Image

    kind = {".png": "png", ".jpg": "jpeg", ".webp": "webp"}[path.suffix]
    content, small = path.read_bytes(), io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(small, "webp", quality=_QUALITY, method=4)
    if kind == "png" and small.tell() < len(content):
        kind, content = "webp", small.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
