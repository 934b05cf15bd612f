"""Print tables, lines and JSON."""

import json
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from adautomix.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


@cache
def console() -> "Console":
    """The terminal. Class names and paths are no markup, and no commands to the terminal."""
    from rich.console import Console

    class SafeConsole(Console):
        def render_str(self, text: str, **options: Any) -> "Text":
            return super().render_str(printable(text, None, keep_newlines=True), **options)

    return SafeConsole(
        width=None if sys.stdout.isatty() else 120, markup=False, emoji=False, highlight=False
    )


def print_line(text: object, *, bold: bool = False) -> None:
    """Print a line that the terminal may wrap."""
    console().print(printable(str(text), None), style="bold" if bold else None, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print machine-readable output."""
    print(json.dumps(value, indent=1))


def print_listing(rows: Sequence[tuple[str, ...]], columns: tuple[str, ...], as_json: bool) -> None:
    """Print rows as a table, or as JSON objects."""
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(printable, row))
    console().print(table)


def command_line() -> str:
    """The command as typed, for the record."""
    return shlex.join(["adautomix", *sys.argv[1:]])
