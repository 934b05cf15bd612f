"""Read lines and cells of CSV, TSV and text files."""

import csv
from pathlib import Path

from adautomix.errors import UsageError


def read_lines(path: Path) -> list[str]:
    """Return the non-empty lines of a file, stripped.

    Raises:
        UsageError: the file cannot be read as UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the list {path}: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def delimiter_of(path: Path, line: str) -> str:
    """Return the delimiter of a line: a tab, a comma, a semicolon or a space."""
    if path.suffix.lower() == ".tsv" or "\t" in line:
        return "\t"
    return "," if "," in line else ";" if ";" in line else " "


def cells_of(line: str, delimiter: str) -> list[str]:
    """Return the cells of a line, stripped.

    A space delimits only the last cell, because paths may contain spaces: "my photo.jpg cat".
    """
    if delimiter == " ":
        return line.rsplit(maxsplit=1)
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]


def read_cells(path: Path) -> list[list[str]]:
    """Return the cells of each line of a file; the first line determines the delimiter.

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
    """Return the number of cells in the first non-empty line of a file."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = next((line.strip() for line in file if line.strip()), "")
    return len(cells_of(first, delimiter_of(path, first))) if first else 0
