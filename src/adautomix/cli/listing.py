"""Commands that list what is available: methods, settings, sweeps, datasets and suites."""

import click

from adautomix.cli.base import Command
from adautomix.cli.options import json_option
from adautomix.cli.output import print_json, print_listing
from adautomix.errors import UsageError


def complete_methods(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Offer the names of methods for shell completion."""
    from adautomix.methods import METHODS

    return [name for name in METHODS if name.startswith(incomplete)]


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=complete_methods)
@json_option
@click.option("--markdown", is_flag=True, help="Print the cards of all methods as Markdown.")
def methods(name: str | None, as_json: bool, markdown: bool) -> None:
    """List the mixing methods, and what each requires and costs per step (F: one forward pass).

    With the name of a method, print its card: paper, formulas, requirements, cost, settings with
    the source of each default, deviations, and published figures.
    """
    from adautomix.methods import (
        METHODS,
        describe,
        describe_methods,
        find_method,
        method_card,
        methods_page,
    )

    if as_json:
        print_json(describe(find_method(name)) if name else describe_methods())
        return
    if name or markdown:
        print(method_card(name) if name else methods_page(), end="\n" if name else "")
        return
    rows = [
        (
            name,
            method.summary,
            ", ".join(sorted(item.value.replace("_", " ") for item in method.requires)),
            f"{method.cost:g}F",
        )
        for name, method in METHODS.items()
    ]
    print_listing(rows, ("method", "what it does", "requires", "cost per step"), as_json=False)


@click.command(cls=Command)
@click.argument("words", nargs=-1, metavar="[FILTER]...")
@json_option
def settings(words: tuple[str, ...], as_json: bool) -> None:
    """List every setting with its default; each is an option of train.

    With a FILTER, list those that have all of these words in their name or meaning.
    """
    from adautomix.config import list_settings
    from adautomix.validation import unknown_setting

    rows = list_settings()
    found = [row for row in rows if all(is_about(row, word) for word in words)]
    if not found:
        raise UsageError(unknown_setting(" ".join(words), [row[0] for row in rows]))
    print_listing(found, ("setting", "default", "meaning"), as_json)


def is_about(row: tuple[str, str, str], word: str) -> bool:
    """Return whether a setting has a word, written as in files or as a flag, in its row."""
    text = word.lower()
    return text.replace("-", "_") in row[0] or text in row[2].lower()


@click.command(cls=Command)
@json_option
def sweeps(as_json: bool) -> None:
    """List the packaged sweeps, for `adautomix compare --sweep`."""
    from adautomix.config.sweeps import list_sweeps

    print_listing(list_sweeps(), ("sweep", "what is varied", "variants"), as_json)


@click.command(cls=Command)
@json_option
def datasets(as_json: bool) -> None:
    """List the data sets, for --data."""
    from adautomix.data import DATASETS

    print_listing(list(DATASETS.items()), ("data", "what it is"), as_json)


@click.command(cls=Command)
@json_option
def suites(as_json: bool) -> None:
    """List the suites of `adautomix evaluate` and their settings."""
    from adautomix.evaluation.registry import SUITES
    from adautomix.validation import field_rows

    rows = [(name, "", suite.summary) for name, suite in SUITES.items()]
    for name, suite in SUITES.items():
        rows += field_rows(f"{name}.", suite.Settings)
    print_listing(rows, ("suite or setting", "default", "meaning"), as_json)
