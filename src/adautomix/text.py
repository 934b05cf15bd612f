"""Make text from file names, class names and labels safe to print, whatever it contains.

Names of files are arbitrary bytes. Printed as they are, they can move the cursor, change colors,
reverse the direction of the line or add rows to a table.
"""

import unicodedata

MAX_LENGTH = 200
# Control, format (such as right-to-left marks), surrogate, private-use and unassigned characters,
# and the separators of lines and paragraphs.
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_FORMULA_SIGNS = {"=", "+", "-", "@", "\t", "\r"}
_JOINERS = {"\u200c", "\u200d"}  # part of the spelling of Persian and Indic words, and of emoji


def printable(
    text: str, max_length: int | None = MAX_LENGTH, *, keep_newlines: bool = False
) -> str:
    r"""Return text that every terminal, table and page shows as it is.

    Args:
        text: any text; bytes of a file name that are not UTF-8 are surrogates in it.
        max_length: cut the middle out of longer text; None keeps all of it.
        keep_newlines: keep newlines, for text that is meant to have several lines.

    Example:
        >>> printable("cat\n\x1b[31m")
        'cat\\n\\x1b[31m'
    """
    if text.isascii() and text.isprintable():
        safe = text
    else:
        kept = {*_JOINERS, "\n"} if keep_newlines else _JOINERS
        safe = "".join(c if c in kept else _escaped(c) for c in text)
    if max_length is None or len(safe) <= max_length:
        return safe
    head = (max_length - 1) // 2
    return f"{safe[:head]}…{safe[len(safe) - (max_length - 1 - head) :]}"


def csv_cell(text: str) -> str:
    """Return text for a cell of a CSV file that no spreadsheet takes for a formula.

    Spreadsheets run a cell that begins with one of = + - @, a tab or a carriage return. Such text
    gets an apostrophe before it, which they hide. A name with other control characters is escaped
    as by `printable`.

    Example:
        >>> csv_cell("=1+2.jpg")
        "'=1+2.jpg"
    """
    return f"'{printable(text, None)}" if text[:1] in _FORMULA_SIGNS else printable(text, None)


def _escaped(character: str) -> str:
    """A character, or its escape as Python writes it."""
    if unicodedata.category(character) not in _UNSAFE:
        return character
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
