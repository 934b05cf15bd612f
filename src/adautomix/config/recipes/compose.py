"""Compose recipes from families, methods and cells, and find them by name."""

from functools import cache
from importlib import resources
from typing import Any

from adautomix.config.files import list_packaged, merge, parse_yaml, read_packaged, unflatten
from adautomix.config.recipes.cells import Cell, table_rows
from adautomix.config.recipes.families import read_families
from adautomix.errors import UsageError, unknown_name

RENAMED = {
    "cifar100/resnet18-vanilla": "cifar100-r18/vanilla@200",
    "cifar100/resnet18-mixup": "cifar100-r18/mixup@200",
    "cifar100/resnet18-cutmix": "cifar100-r18/cutmix@200",
    "cifar100/resnet18-adautomix": "cifar100-r18/adautomix@200",
    "cifar100/resnext50-adautomix": "cifar100-rx50/adautomix@800",
    "cifar100/convnext-tiny-adautomix": "cifar100-convnext-t/adautomix@200",
    "tiny-imagenet/resnet18-adautomix": "tiny-r18/adautomix@400",
    "imagenet/resnet50-adautomix": "imagenet-r50/adautomix@100",
    "cub200/resnet50-adautomix": "cub-r50/adautomix@200",
    "aircraft/resnet18-adautomix": "aircraft-r18/adautomix@200",
    "cars/resnet18-adautomix": "cars-r18/adautomix@200",
}
"""Names of earlier versions, which keep working."""

PLAIN = "recipes/plain"


@cache
def read_cells() -> dict[str, Cell]:
    """Return the cells of all tables by the name of their recipe."""
    return {cell.name: cell for cell in table_rows()}


@cache
def method_settings() -> dict[str, dict[str, Any]]:
    """Return the nested settings that a method has in every family, by method."""
    path = resources.files("adautomix.config.recipes") / "methods.yaml"
    methods: dict[str, dict[str, Any]] = parse_yaml("methods.yaml", path.read_text("utf-8"))
    return methods


def find_cell(name: str) -> Cell | None:
    """Return the cell that a recipe reproduces; None for a recipe that belongs to no table.

    Without `@EPOCHS` the cell with the fewest epochs is meant.

    Raises:
        UsageError: There is no recipe of that name; the message suggests the nearest.
    """
    cells = read_cells()
    name = RENAMED.get(name, name)
    if name in cells:
        return cells[name]
    without_epochs = [cell for cell in cells.values() if name == f"{cell.family}/{cell.method}"]
    if without_epochs:
        return min(without_epochs, key=lambda cell: cell.epochs)
    if name not in (plain := plain_recipes()):
        listing = "`adautomix recipes` lists them all"
        raise UsageError(unknown_name("recipe", name, [*cells, *plain, *RENAMED], listing))
    return None


def read_recipe(name: str) -> dict[str, Any]:
    """Return the nested settings of a recipe.

    Raises:
        UsageError: There is no recipe of that name (the message suggests the nearest), or the
            product cannot train it.
    """
    cell = find_cell(name)
    return compose(cell) if cell else read_packaged(PLAIN, name)


def compose(cell: Cell) -> dict[str, Any]:
    """Return the nested settings of a cell: those of its family, its method, and its own.

    Raises:
        UsageError: The product lacks the network or the method.
    """
    family = read_families()[cell.family]
    if reason := family.missing or cell.differs.get("method"):
        raise UsageError(f"{cell.name} cannot be trained: {reason}")
    settings = merge(family.settings, method_settings().get(cell.trained_method, {}))
    own = {"method": cell.trained_method, "epochs": cell.epochs, "recipe": cell.name}
    return merge(merge(settings, unflatten(cell.settings)), own)


def differences(cell: Cell) -> dict[str, str]:
    """Return what still differs from the source of a cell, by topic: its family's and its own."""
    return read_families()[cell.family].differs | cell.differs


def plain_recipes() -> dict[str, str]:
    """Return the recipes that belong to no table as name -> what it trains."""
    return list_packaged(PLAIN)


def list_recipes() -> dict[str, str]:
    """Return all recipes as name -> what it trains, in one line."""
    families = read_families()
    cells = {
        name: f"{families[cell.family].title}, {cell.epochs} epochs: {cell.method}"
        + (f", published {cell.top1:.2f} %" if cell.top1 else "")
        for name, cell in read_cells().items()
    }
    return plain_recipes() | cells
