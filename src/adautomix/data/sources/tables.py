"""Lines and cells of CSV, TSV and text files."""

import csv
from pathlib import Path

from adautomix.errors import UsageError


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file that are not empty, without surrounding spaces.

    Raises:
        UsageError: the file cannot be read as UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the list {path}: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def delimiter_of(path: Path, line: str) -> str:
    """Return what separates the cells of a line: a tab, a comma, a semicolon or a space."""
    if path.suffix.lower() == ".tsv" or "\t" in line:
        return "\t"
    return "," if "," in line else ";" if ";" in line else " "


def cells_of(line: str, delimiter: str) -> list[str]:
    """Return the cells of a line, without surrounding spaces.

    A space separates only the last cell: of "my photo.jpg cat" the path holds a space.
    """
    if delimiter == " ":
        return line.rsplit(maxsplit=1)
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]


def read_cells(path: Path) -> list[list[str]]:
    """Return the cells of each line of a file; the first line decides what separates them.

    Raises:
        UsageError: the file cannot be read.
    """
    lines = read_lines(path)
    if not lines:
        return []
    delimiter = delimiter_of(path, lines[0])
    try:
        return [cells_of(line, delimiter) for line in lines]
    except csv.Error as error:
        raise UsageError(f"cannot read the list {path}: {error}") from None


def number_of_columns(path: Path) -> int:
    """Return the number of cells in the first line of a file that is not empty."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = next((line.strip() for line in file if line.strip()), "")
    return len(cells_of(first, delimiter_of(path, first))) if first else 0
