"""Commands that reproduce published tables: recipes."""

from typing import TYPE_CHECKING, Any

import click

from adautomix.cli.base import Command
from adautomix.cli.options import json_option
from adautomix.cli.output import print_json, print_line, print_listing
from adautomix.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from adautomix.config.recipes import Cell


@click.command(cls=Command)
@click.option("--family", help="List only this family, such as cifar100-r18.")
@click.option("--method", help="List only this method, such as adautomix.")
@json_option
def recipes(family: str | None, method: str | None, as_json: bool) -> None:
    """List the packaged recipes, for --recipe, and what still differs from their sources.

    A recipe FAMILY/METHOD@EPOCHS reproduces one cell of a published table. The accuracy is that of
    the student, or of the teacher for methods that train one.
    """
    from adautomix.config.recipes import plain_recipes, read_cells

    cells = select_cells(list(read_cells().values()), family, method)
    plain = {} if family or method else plain_recipes()
    if as_json:
        rows = [recipe_fields(cell) for cell in cells]
        print_json(rows + [plain_fields(*one) for one in plain.items()])
        return
    columns = ("recipe", "published (%)", "figure", "settings", "still differs in")
    print_listing([recipe_cells(cell) for cell in cells], columns, as_json=False)
    for name, summary in plain.items():
        print_line(f"{name}: {summary}")


def select_cells(cells: "list[Cell]", family: str | None, method: str | None) -> "list[Cell]":
    """Return the cells of a family and of a method; None stands for all.

    Raises:
        UsageError: There is no such family or method; the message suggests the nearest.
    """
    for kind, name, known in (
        ("family", family, {cell.family for cell in cells}),
        ("method of a recipe", method, {cell.method for cell in cells}),
    ):
        if name is not None and name not in known:
            raise UsageError(unknown_name(kind, name, known, f"use {', '.join(sorted(known))}"))
    return [
        cell
        for cell in cells
        if family in (None, cell.family) and method in (None, cell.method, cell.trained_method)
    ]


def recipe_cells(cell: "Cell") -> tuple[str, ...]:
    """The row of a recipe in the listing."""
    from adautomix.config.recipes import differences

    published = "–" if cell.top1 is None else f"{cell.top1:.2f} {cell.network}"
    return cell.name, published, cell.figure or "–", cell.basis, ", ".join(differences(cell))


def recipe_fields(cell: "Cell") -> dict[str, Any]:
    """A recipe of a cell for programs."""
    from adautomix.config.recipes import BASES, FIGURES, differences, list_recipes

    return {
        "recipe": cell.name,
        "what it is": list_recipes()[cell.name],
        "family": cell.family,
        "method": cell.method,
        "epochs": cell.epochs,
        "published_top1": cell.top1,
        "network": cell.network,
        "figure_from": FIGURES[cell.figure],
        "settings_from": BASES[cell.basis],
        "differs": differences(cell),
        "note": cell.note,
    }


def plain_fields(name: str, summary: str) -> dict[str, Any]:
    """A recipe of no table for programs, with the same keys."""
    cell_only = ("family", "method", "epochs", "published_top1", "network", "figure_from")
    return {
        "recipe": name,
        "what it is": summary,
        **dict.fromkeys(cell_only),
        "settings_from": "this package",
        "differs": {},
        "note": "",
    }
