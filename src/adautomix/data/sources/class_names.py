"""Read files that name numbered classes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from adautomix.data.sources.tables import cells_of, delimiter_of, read_lines
from adautomix.errors import UsageError

_STEMS = ("classes", "class_names", "labels", "label_names", "names", "categories")


def class_files(folder: Path) -> list[Path]:
    """Return the files in a folder that probably name classes, such as `classes.csv`."""
    names = [f"{stem}{suffix}" for stem in _STEMS for suffix in (".csv", ".tsv", ".txt")]
    return [folder / name for name in names if (folder / name).is_file()]


def read_class_names(path: Path) -> dict[int, str]:
    """Return class names by number.

    Lines hold "number, name" or "name, number", or a name alone, numbered from 0. Further columns
    and a header line are ignored.

    Raises:
        UsageError: the file cannot be read, or two classes have the same name.
    """
    lines = read_lines(path)
    rows = [_number_and_name(path, line) for line in lines]
    if len(rows) > 1 and rows[0] is None and all(rows[1:]):
        rows = rows[1:]  # a line of titles
    numbered = [row for row in rows if row is not None]
    if len(numbered) < len(rows):
        numbered = list(enumerate(lines))
    names = dict(numbered)
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    if twice:
        raise UsageError(f"{path} gives the name {twice[0]!r} to two classes: rename one")
    return names


def _number_and_name(path: Path, line: str) -> tuple[int, str] | None:
    """Return number and name in a line; None if neither of its first two cells is a number."""
    delimiter = delimiter_of(path, line)
    cells: Sequence[str] = cells_of(line, delimiter)
    if delimiter == " ":  # "1 red fox"
        cells = line.split(maxsplit=1)
    if len(cells) < 2:
        return None
    first, second = cells[:2]
    if first.isdecimal():
        return int(first), second
    return (int(second), first) if second.isdecimal() else None
