"""Definitions of the paper's tables, read from `tables.yaml`."""

from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from adautomix.config.recipes import Cell, read_cells
from adautomix.errors import UsageError, unknown_name


class CellBlock(BaseModel):
    """Cells of a table: every method on every family.

    Attributes:
        families: names of families.
        methods: names of methods; those that a family has no cell for are left out.
        epochs: numbers of epochs in order of preference; empty takes what the family has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    families: list[str]
    methods: list[str]
    epochs: list[int] = []

    def select(self) -> Iterator[Cell]:
        """Yield the cells, family by family; of several epochs the most preferred."""
        for family in self.families:
            for method in self.methods:
                found = [
                    cell
                    for cell in read_cells().values()
                    if (cell.family, cell.method) == (family, method)
                    and (not self.epochs or cell.epochs in self.epochs)
                ]
                if found:
                    yield min(found, key=self._preference)

    def _preference(self, cell: Cell) -> int:
        return self.epochs.index(cell.epochs) if self.epochs else cell.epochs


class TableDefinition(BaseModel):
    """One table or figure of the paper.

    Attributes:
        title: what it shows.
        cells: which recipes are trained.
        sweeps: packaged sweeps whose variants replace each recipe.
        evaluate: settings of the suites that each trained network goes through, by suite.
        settings: nested settings of all runs.
        note: what is not known of the original.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    cells: list[CellBlock] = Field(min_length=1)
    sweeps: list[str] = []
    evaluate: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {}
    note: str = ""

    def select(self) -> list[Cell]:
        """The cells of the table."""
        return [cell for block in self.cells for cell in block.select()]


@cache
def read_tables() -> dict[str, TableDefinition]:
    """Return the packaged definitions by name: "table1", …, "figure14"."""
    path = resources.files("adautomix.tables") / "tables.yaml"
    tables = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: TableDefinition.model_validate(table) for name, table in tables.items()}


def find_table(name: str) -> tuple[str, TableDefinition]:
    """Return the full name and the definition of "1", "table1", "figure 9" or "fig9".

    Raises:
        UsageError: There is no such table; the message suggests the nearest.
    """
    known = read_tables()
    plain = name.lower().replace(" ", "").replace(".", "").replace("-", "")
    if plain.isdigit():
        plain = f"table{plain}"
    if plain.startswith("fig") and not plain.startswith("figure"):
        plain = plain.replace("fig", "figure", 1)
    if plain not in known:
        raise UsageError(unknown_name("table", name, known, f"use {', '.join(known)}"))
    return plain, known[plain]
