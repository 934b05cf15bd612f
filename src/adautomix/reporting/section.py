"""The parts of a report page: sections with tables, charts and pictures."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adautomix.errors import UsageError
from adautomix.evaluation.record import Evaluation
from adautomix.reporting.drawing import NETWORK_STYLES, SOLID, Chart, LineStyle

_WEBP_QUALITY = 50  # 0 to 100


@dataclass(frozen=True)
class Table:
    """A table of text; the first two columns are left-aligned, the others right-aligned."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """An embedded picture.

    Attributes:
        title: heading above the picture.
        caption: explains what to look for in the picture.
        alt: text for readers who cannot see the picture.
        source: data URI.
    """

    title: str
    caption: str
    alt: str
    source: str


@dataclass(frozen=True)
class Photo:
    """A small picture of one test image.

    Attributes:
        source: data URI.
        truth: the class of the image.
        answer: what it was predicted as.
        name: name of the image file.
    """

    source: str
    truth: str
    answer: str
    name: str


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side, as many per row as fit on the screen."""

    title: str
    note: str
    photos: Sequence[Photo]


@dataclass(frozen=True)
class Section:
    """A section of the page; the table of contents links to its heading."""

    slug: str
    title: str
    note: str
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    pictures: Sequence[Picture] = ()
    galleries: Sequence[Gallery] = ()

    @property
    def drawn(self) -> list[tuple[Chart, Any]]:
        """Each chart with its SVG marked as safe HTML; text in the SVG is already escaped."""
        from markupsafe import Markup

        return [(chart, Markup(chart.svg)) for chart in self.charts]


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of one target, and how it is shown next to others.

    Attributes:
        label: name on this page.
        evaluation: the record.
        folder: folder of the record, with pictures in `evaluation/<suite>/`; None if the record
            was read from a single file.
        color: index of the color; seeds of one method share a color.
    """

    label: str
    evaluation: Evaluation
    folder: Path | None
    color: int

    def picture(self, suite: str, name: str) -> Path | None:
        """Return the path of a picture that a suite drew, or None if there is no such file."""
        path = None if self.folder is None else self.folder / "evaluation" / suite / name
        return path if path is not None and path.is_file() else None


def line_style(network: str) -> LineStyle:
    """Return the style of a network's lines in charts."""
    return NETWORK_STYLES.get(network, SOLID)


def embedded(path: Path) -> str:
    """Return a picture file as a data URI; PNG is converted to WebP if that is smaller.

    Raises:
        UsageError: the file is damaged.
    """
    from PIL import Image

    kind = {".png": "png", ".jpg": "jpeg", ".webp": "webp"}[path.suffix]
    small = io.BytesIO()
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=(kind,)) as picture:
            picture.convert("RGB").save(small, "webp", quality=_WEBP_QUALITY, method=4)
    except Exception as error:  # Pillow raises almost any exception on damaged files
        raise UsageError(
            f"cannot show {path}, which is damaged ({error}): delete it, and the page does without"
        ) from None
    if kind == "png" and small.tell() < len(content):
        kind, content = "webp", small.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
