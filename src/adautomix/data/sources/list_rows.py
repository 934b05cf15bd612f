"""Read the rows of a list file: image, labels and split, with or without a header line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adautomix.data.sources.listing import IMAGE_TYPES
from adautomix.data.sources.splits import split_called
from adautomix.data.sources.tables import read_cells
from adautomix.errors import UsageError

_PATH_TITLES = (
    *("path", "file", "filename", "file_name", "filepath", "image", "image_id", "image_path"),
    *("image_name", "img", "id", "name"),
)
_LABEL_TITLES = (
    *("label", "labels", "class", "category", "target", "class_name", "label_name", "class_id"),
    *("label_id", "y", "tags", "breed", "species"),
)
_SPLIT_TITLES = ("split", "subset", "set", "partition", "fold", "usage")
_SEPARATORS = "|;"
_FLAGS = {"0": False, "0.0": False, "1": True, "1.0": True}


@dataclass(frozen=True)
class Row:
    """One line of a list.

    Attributes:
        path: the file as written.
        labels: the labels as written; one, unless the list gives several to an image.
        split: the split as written; None if the list has no such column.
    """

    path: str
    labels: tuple[str, ...]
    split: str | None


@dataclass(frozen=True)
class ListRows:
    """The rows of one list file.

    Attributes:
        path: the file.
        rows: its rows.
        several: whether an image may have several labels, or none.
        ignored: number of columns that are not used.
    """

    path: Path
    rows: list[Row]
    several: bool
    ignored: int


@dataclass(frozen=True)
class _Columns:
    """The columns of image, labels and split; several label columns hold 0 or 1 per class."""

    image: int
    labels: tuple[int, ...]
    split: int | None


def read_list_rows(path: Path) -> ListRows:
    """Return the rows of a list, with or without a header line.

    Several labels of an image are separated by "|" or ";", or every class has its own column that
    holds 0 or 1.

    Raises:
        UsageError: the list is empty, or a line has no label.
    """
    lines = read_cells(path)
    titles = lines[0] if lines and _are_titles(lines[0]) else []
    body = lines[1:] if titles else lines
    if not body:
        raise UsageError(f"the list {path} names no image")
    columns = _title_columns(path, titles, body) if titles else _bare_columns(lines)
    used = [columns.image, *columns.labels, *([] if columns.split is None else [columns.split])]
    for number, cells in enumerate(body, 2 if titles else 1):
        if len(cells) <= max(used) or not all(cells[k] for k in columns.labels):
            raise UsageError(f"line {number} of {path} has no label: write lines like path,label")
    rows = [
        Row(
            cells[columns.image],
            _labels(cells, columns, titles),
            None if columns.split is None else cells[columns.split],
        )
        for cells in body
    ]
    several = any(len(row.labels) != 1 for row in rows)
    return ListRows(path, rows, several, max(0, len(body[0]) - len(used)))


def _labels(cells: Sequence[str], columns: _Columns, titles: Sequence[str]) -> tuple[str, ...]:
    if len(columns.labels) > 1:
        return tuple(titles[k] for k in columns.labels if _FLAGS[cells[k]])
    text = cells[columns.labels[0]]
    for separator in _SEPARATORS:
        text = text.replace(separator, _SEPARATORS[0])
    return tuple(part.strip() for part in text.split(_SEPARATORS[0]) if part.strip())


def _are_titles(cells: Sequence[str]) -> bool:
    """Return whether a first line is a header: it has a known title and names no image file."""
    names = [cell.lower() for cell in cells]
    if any(name.endswith(IMAGE_TYPES) for name in names):
        return False
    return any(name in _PATH_TITLES + _LABEL_TITLES + _SPLIT_TITLES for name in names)


def _title_columns(path: Path, titles: Sequence[str], body: Sequence[Sequence[str]]) -> _Columns:
    """Determine the columns from their titles."""
    names = [title.lower() for title in titles]
    split = _column(names, _SPLIT_TITLES)
    image = _column(names, _PATH_TITLES)
    label = _column(names, _LABEL_TITLES)
    rest = [k for k in range(len(names)) if k not in (image, label, split)]
    if image is None and rest:
        image = rest.pop(0)
    if label is None and len(rest) > 1 and _are_flags(rest, body) and image is not None:
        return _Columns(image, tuple(rest), split)
    if label is None and rest:
        label = rest.pop(0)
    if image is None or label is None:
        raise UsageError(
            f"the list {path} has the columns {', '.join(titles)}: name them path, label and, if "
            "there is one, split"
        )
    return _Columns(image, (label,), split)


def _are_flags(columns: Sequence[int], body: Sequence[Sequence[str]]) -> bool:
    return all(len(cells) > k and cells[k] in _FLAGS for cells in body for k in columns)


def _column(titles: Sequence[str], known: Sequence[str]) -> int | None:
    """Return the column of the first known title that occurs; None if there is none."""
    return next((titles.index(title) for title in known if title in titles), None)


def _bare_columns(lines: Sequence[Sequence[str]]) -> _Columns:
    """Determine columns without a header: path, label, and split if all third cells name splits."""
    third = all(len(cells) > 2 and split_called(cells[2]) for cells in lines)
    return _Columns(0, (1,), 2 if third else None)
