"""One page per command, written from the help that the command line prints."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape

import click

from adautomix.cli.app import cli

SHOWN = {"evaluate": ["--suites", "all"]}
"""Arguments before --help, for commands whose help depends on them."""

Examples = Mapping[str, Sequence[tuple[str, str, str]]]
"""Command -> (line as typed, title of the page that has it, address of the page)."""


class MarkdownFormatter(click.HelpFormatter):
    """Collects the help of a command as Markdown instead of text for a terminal."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """Write the first line of the help as a block of code."""
        self.write(f"    {prog} {args}\n\n")

    def write_heading(self, heading: str) -> None:
        """Write the title of a group of options."""
        self.write(f"\n## {heading}\n\n")

    def write_text(self, text: str) -> None:
        """Write paragraphs; one that starts with \\b keeps its lines."""
        for paragraph in text.strip().split("\n\n"):
            if paragraph.startswith("\b"):
                lines = paragraph.splitlines()[1:]
                self.write("".join(f"    {line}\n" for line in lines) + "\n")
            else:
                self.write(as_markdown(" ".join(paragraph.split())) + "\n\n")

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        """Write options with their meanings as a list of definitions."""
        for term, meaning in rows:
            self.write(f"`{term.strip()}`\n:   {as_markdown(meaning)}\n\n")

    @contextmanager
    def indentation(self) -> Iterator[None]:
        """Leave the text where it is: Markdown would take it for code."""
        yield


def as_markdown(text: str) -> str:
    """Return text with the signs of Markdown and HTML escaped outside of `code`."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_\[\]|])", r"\\\1", escape(part, quote=False)) for part in parts[::2]]
    return "`".join(parts)


def command_page(name: str, examples: Sequence[tuple[str, str, str]] = ()) -> str:
    """Return the page of a command: its help, then lines of the documentation that use it."""
    command = cli.commands[name]
    arguments = [*SHOWN.get(name, []), "--help"]
    context = command.make_context(
        f"adautomix {name}", arguments, parent=click.Context(cli), resilient_parsing=True
    )
    formatter = MarkdownFormatter()
    command.format_help(context, formatter)
    parts = [f"# adautomix {name}\n", formatter.getvalue().rstrip() + "\n"]
    if examples:
        parts.append("## Examples in this documentation\n")
        parts += [f"[{title}]({address}):\n\n    {line}\n" for line, title, address in examples]
    return "\n".join(parts)


def command_pages(examples: Examples) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of an overview and of the page of each command."""
    yield "commands/index.md", overview()
    for name in cli.commands:
        yield f"commands/{name}.md", command_page(name, examples.get(name, ()))


def overview() -> str:
    """Return the page that lists the commands in the sections of `adautomix --help`."""
    lines = ["# Commands\n", f"{cli.help}\n"]
    for title, commands in cli.sections.items():
        lines.append(f"## {title}\n")
        for command in commands:
            meaning = as_markdown(command.get_short_help_str(200))
            lines.append(f"[`adautomix {command.name}`]({command.name}.md)\n:   {meaning}\n")
    lines.append(
        "`adautomix COMMAND --help` prints the same as these pages. Every error is one line on "
        "standard error; the exit status is 2 for wrong usage and 1 for what failed.\n"
    )
    return "\n".join(lines)


def command_nav() -> list[dict[str, str] | str]:
    """Return the pages for the navigation."""
    return ["commands/index.md", *({name: f"commands/{name}.md"} for name in cli.commands)]
