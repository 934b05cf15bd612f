"""Expand a table into the runs and evaluations that reproduce it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from adautomix.config import TrainConfig, make_config, merge
from adautomix.config.recipes import Cell, cell_name, compose, read_cells, read_families
from adautomix.config.sweeps import read_sweep
from adautomix.errors import UsageError
from adautomix.tables.definition import TableDefinition


@dataclass(frozen=True)
class Task:
    """One run of a table, and the suites that its networks go through.

    Attributes:
        name: name of the recipe, with the variant of a sweep behind a slash.
        cell: the cell that the run reproduces.
        seed: random seed.
        folder: the run folder.
        values: nested settings, not yet checked, because `start` must exist for that.
        evaluate: settings of each suite, by suite.
        start: folder of the run that provides the initial weights; None if there is none.
    """

    name: str
    cell: Cell
    seed: int
    folder: Path
    values: dict[str, Any] = field(repr=False)
    evaluate: dict[str, dict[str, Any]] = field(default_factory=dict)
    start: Path | None = None

    def settings(self) -> TrainConfig:
        """Return the checked settings, without the weights that the run starts from.

        Raises:
            UsageError: A setting is wrong.
        """
        return make_config(self.values | {"out": str(self.folder)})

    def config(self) -> TrainConfig:
        """Return the checked settings of the run, with the weights that it starts from.

        Raises:
            UsageError: A setting is wrong, or the run that provides the weights is missing.
        """
        if self.start is None:
            return self.settings()
        return make_config(self.values | {"out": str(self.folder), "init": str(self.start)})


def expand(
    table: TableDefinition,
    *,
    seeds: Sequence[int] = (0,),
    epochs_scale: float = 1.0,
    only: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    out: Path = Path("runs/tables"),
) -> list[Task]:
    """Return the tasks of a table in the order in which they run.

    Runs that provide initial weights come before those that start from them.

    Args:
        table: The table.
        seeds: Random seeds; each cell is trained with all of them.
        epochs_scale: Factor on the epochs and the warm-up of all runs; below 1 for a rehearsal.
        only: Patterns such as `cifar100-r18/*` or `*/adautomix*`; a run whose name matches none
            is left out. Empty keeps all.
        overrides: Nested settings that override those of the recipes.
        out: Folder of all run folders. Tables that share runs share their folders.

    Raises:
        UsageError: No run is left, or a cell cannot be trained.
    """
    tasks: dict[Path, Task] = {}
    for cell in trainable(table.select()):
        for label, changes in variants(table):
            values = merge(merge(compose(cell), changes), table.settings)
            values = merge(scale_epochs(values, epochs_scale), overrides or {})
            name = f"{cell.name}/{label}" if label else cell.name
            if only and not any(fnmatch(name, pattern) for pattern in only):
                continue
            for seed in seeds:
                task = make_task(name, cell, seed, values, table.evaluate, out)
                for earlier in starts(task, epochs_scale, overrides or {}, out):
                    tasks.setdefault(earlier.folder, earlier)
                tasks[task.folder] = task
    if not tasks:
        raise UsageError(f"no run of this table matches {', '.join(only)}: see --dry-run")
    return list(tasks.values())


def trainable(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that the product can train."""
    families = read_families()
    return [
        cell for cell in cells if not families[cell.family].missing and "method" not in cell.differs
    ]


def variants(table: TableDefinition) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield label and settings of each variant that is trained of a cell; one if none varies."""
    if not table.sweeps:
        yield "", {}
    for sweep in table.sweeps:
        yield from read_sweep(sweep).items()


def scale_epochs(values: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Return settings whose epochs and warm-up are multiplied; at least one epoch is left."""
    scaled = dict(values) | {"epochs": max(1, round(values["epochs"] * factor))}
    if "warmup_epochs" in values:
        scaled["warmup_epochs"] = values["warmup_epochs"] * factor
    return scaled


def make_task(
    name: str,
    cell: Cell,
    seed: int,
    values: Mapping[str, Any],
    evaluate: dict[str, dict[str, Any]],
    out: Path,
) -> Task:
    """Return the task of one seed; its folder follows from its name."""
    folder = out / f"{name.replace(':', '-')}-s{seed}"
    start = None
    if family := read_families()[cell.family].start:
        start = out / f"{start_cell(cell, family).name.replace(':', '-')}-s{seed}"
    return Task(name, cell, seed, folder, dict(values) | {"seed": seed}, evaluate, start)


def start_cell(cell: Cell, family: str) -> Cell:
    """Return the cell of a family whose run provides the initial weights of another cell."""
    epochs = min(one.epochs for one in read_cells().values() if one.family == family)
    return read_cells()[cell_name(family, cell.method, epochs)]


def starts(task: Task, scale: float, overrides: Mapping[str, Any], out: Path) -> Iterator[Task]:
    """Yield the task whose run provides the initial weights, if there is one."""
    if family := read_families()[task.cell.family].start:
        cell = start_cell(task.cell, family)
        values = merge(scale_epochs(compose(cell), scale), overrides)
        yield make_task(cell.name, cell, task.seed, values, {}, out)
