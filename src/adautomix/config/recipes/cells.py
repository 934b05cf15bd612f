"""The cells of the published tables, one per row of `cells.csv`."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, cast

Network = Literal["student", "teacher"]

FIGURES = {
    "paper": "the AdAutoMix paper",
    "authors": "the tables of the authors' repository",
    "openmixup": "the benchmark of openmixup",
    "sumix": "the readme of SUMix",
    "": "no figure published",
}
"""Where a published figure comes from."""

BASES = {
    "log": "the configuration in the log of the authors' run",
    "config": "the released configuration",
    "readme": "the readme of the authors",
    "inferred": "the records in the authors' log, by arithmetic",
    "guess": "the settings of a related cell",
}
"""Where the settings of a cell come from."""


@dataclass(frozen=True)
class Cell:
    """One cell of a published table: a method trained on a family for a number of epochs.

    Attributes:
        family: name of the family, such as "cifar100-r18".
        method: name of the method; after a colon, the method it wraps or the name of a variant.
        epochs: number of epochs.
        top1: published top-1 accuracy in percent, as printed; None if there is none.
        figure: where that figure comes from, a key of `FIGURES`.
        basis: where the settings come from, a key of `BASES`.
        network: the network whose accuracy was published.
        settings: settings of this cell alone, by dotted name.
        differs: what still differs from the source, by topic.
        note: where the sources disagree, and which of them was followed.
    """

    family: str
    method: str
    epochs: int
    top1: float | None
    figure: str
    basis: str
    network: Network
    settings: dict[str, Any]
    differs: dict[str, str]
    note: str

    @property
    def name(self) -> str:
        """Name of the recipe."""
        return cell_name(self.family, self.method, self.epochs)

    @property
    def trained_method(self) -> str:
        """Name of the method in the product."""
        return self.method.partition(":")[0]

    @property
    def is_variant(self) -> bool:
        """Whether the cell repeats another with settings inferred from the authors' records."""
        return self.basis == "inferred"


def cell_name(family: str, method: str, epochs: int) -> str:
    """Name of the recipe of a cell."""
    return f"{family}/{method}@{epochs}"


def table_rows() -> Iterator[Cell]:
    """Yield the rows of the packaged table."""
    path = resources.files("adautomix.config.recipes") / "cells.csv"
    for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
        yield Cell(
            family=row["family"],
            method=row["method"],
            epochs=int(row["epochs"]),
            top1=float(row["top1"]) if row["top1"] else None,
            figure=row["figure"],
            basis=row["basis"],
            network=cast(Network, row["network"]),
            settings={name: typed(text) for name, text in pairs(row["settings"], "=")},
            differs=dict(pairs(row["differs"], ":")),
            note=row["note"],
        )


def pairs(text: str, separator: str) -> Iterator[tuple[str, str]]:
    """Split "name=value; name=value" into names and values."""
    for part in filter(None, text.split("; ")):
        name, _, value = part.partition(separator)
        yield name.strip(), value.strip()


def typed(text: str) -> Any:
    """Return the value of a setting: a number, true, false, none or a word."""
    if text == "none":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
