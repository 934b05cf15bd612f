"""The blocks of code in a Markdown page, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

PROMPT = "$ "
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: what follows the opening fence; empty for an indented block.
        text: the lines of the block, without fence and indentation.
    """

    language: str
    text: str

    def typed(self) -> list[str]:
        """Return what is typed after a prompt, each with the lines that continue it."""
        found: list[str] = []
        for line in self.text.splitlines():
            if line.startswith(PROMPT):
                found.append(line.removeprefix(PROMPT))
            elif found and found[-1].endswith("\\"):
                found[-1] += f"\n{line}"
        return found

    def commands(self) -> list[str]:
        """Return the commands, each on one line; if any has a prompt, other lines are output."""
        lines = self.typed() or self.text.replace("\\\n", " ").splitlines()
        return [" ".join(line.replace("\\\n", " ").split()) for line in lines if line.strip()]


def code_blocks(page: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page, then its indented ones."""
    for match in _FENCED.finditer(page):
        yield Block(match[1], match[2])
    for match in _INDENTED.finditer(_FENCED.sub("", page)):
        yield Block("", re.sub("^    ", "", match[0], flags=re.MULTILINE))


def words_of(command: str) -> list[str]:
    """Return the words of a command as a shell splits them, without its comment."""
    return shlex.split(command, comments=True)
