"""Packaged recipes: one for each cell of the published tables, and a few of our own.

A recipe of a cell, such as `cifar100-r18/adautomix@200`, is composed from three files; each
overrides the one before:

- `families/*.yaml`: data, augmentation, network and schedule of each family, which all its cells
  share, and how its figures were published;
- `methods.yaml`: what a method has in every family;
- `cells.csv`: one row per cell with the published figure, where figure and settings come from,
  the settings of this cell alone, and what still differs from the source.

`plain/` holds recipes that belong to no table.
"""

from adautomix.config.recipes.cells import BASES, FIGURES, Cell, cell_name
from adautomix.config.recipes.compose import (
    compose,
    differences,
    find_cell,
    list_recipes,
    plain_recipes,
    read_cells,
    read_recipe,
)
from adautomix.config.recipes.families import Family, read_families

__all__ = [
    "BASES",
    "FIGURES",
    "Cell",
    "Family",
    "cell_name",
    "compose",
    "differences",
    "find_cell",
    "list_recipes",
    "plain_recipes",
    "read_cells",
    "read_families",
    "read_recipe",
]
