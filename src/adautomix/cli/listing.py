"""Commands that list what is available: methods, settings, sweeps, datasets and suites."""

import click

from adautomix.cli.base import Command
from adautomix.cli.options import json_option
from adautomix.cli.output import print_json, print_listing


@click.command(cls=Command)
@json_option
def methods(as_json: bool) -> None:
    """List the mixing methods, and what each requires and costs per step (F: one forward pass)."""
    from adautomix.methods import METHODS, describe_methods

    if as_json:
        print_json(describe_methods())
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
@json_option
def settings(as_json: bool) -> None:
    """List every setting with its default; each is an option of train."""
    from adautomix.config import list_settings

    print_listing(list_settings(), ("setting", "default", "meaning"), as_json)


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
