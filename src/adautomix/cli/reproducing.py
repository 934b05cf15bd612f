"""Commands that reproduce published tables: recipes, table and ledger."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adautomix.cli.base import Command
from adautomix.cli.comparing import read_seed
from adautomix.cli.options import FILE, engine_choice, engine_options, json_option, names_in
from adautomix.cli.output import command_line, console, print_json, print_line, print_listing
from adautomix.cli.settings import SettingsCommand
from adautomix.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from adautomix.config.recipes import Cell
    from adautomix.tables.cost import Estimate
    from adautomix.tables.ledger import LedgerRow
    from adautomix.tables.tasks import Task
    from adautomix.training.engines.base import EngineChoice


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


@click.command(cls=SettingsCommand)
@click.argument("name", metavar="TABLE")
@click.option("--dry-run", is_flag=True, help="Print the runs and what they would cost.")
@click.option("--only", help="Run only names that match, such as cifar100-r18/*,*/adautomix@*.")
@click.option("--seeds", default="0", show_default=True, help="Seeds, comma-separated.")
@click.option(
    "--epochs-scale",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Factor on the epochs of all runs; 0.1 is a rehearsal.",
)
@click.option(
    "--out",
    "folder",
    type=FILE,
    default="runs/tables",
    show_default=True,
    help="Folder of the run folders, which tables share.",
)
@click.option(
    "--tflops",
    type=click.FloatRange(min=0, min_open=True),
    help="Speed of the device for --dry-run, in 10^12 operations per second; none: measured.",
)
@engine_options
@json_option
def table(
    name: str,
    dry_run: bool,
    only: str | None,
    seeds: str,
    epochs_scale: float,
    folder: Path,
    tflops: float | None,
    engine: str,
    options: tuple[str, ...],
    jobs: int | None,
    as_json: bool,
    flags: dict[str, Any],
) -> None:
    """Train and evaluate what a table of the AdAutoMix paper shows; the same command continues.

    TABLE is 1 to 11, or figure6, figure9, figure10 or figure14. Settings below override those of
    all recipes. `adautomix ledger` compares the results with the published figures.
    """
    from adautomix.config import unflatten
    from adautomix.tables.definition import find_table
    from adautomix.tables.tasks import expand

    title, definition = find_table(name)
    tasks = expand(
        definition,
        seeds=[read_seed(seed) for seed in names_in(seeds)],
        epochs_scale=epochs_scale,
        only=names_in(only or ""),
        overrides=unflatten(flags),
        out=folder,
    )
    if dry_run:
        print_plan(f"{title}: {definition.title}", definition.note, tasks, tflops, as_json)
        return
    run_table(tasks, folder, engine_choice(engine, options, jobs), as_json)


def print_plan(
    title: str, note: str, tasks: "list[Task]", tflops: float | None, as_json: bool
) -> None:
    """Print the runs of a table with their hours and memory, and the sum."""
    from adautomix.tables.cost import estimate, measure_speed

    with console().status("measuring the device", spinner="dots"):
        speed = 1e12 * tflops if tflops else measure_speed(tasks[0].settings())
    costs = [(task, estimate(task, speed)) for task in tasks]
    if as_json:
        print_json([plan_fields(task, cost) for task, cost in costs])
        return
    print_line(title, bold=True)
    columns = ("run", "seed", "epochs", "published (%)", "evaluate", "hours", "GiB", "state")
    print_listing([plan_cells(task, cost) for task, cost in costs], columns, as_json=False)
    hours = sum(cost.hours for _, cost in costs)
    print_line(
        f"{len(costs)} runs, {hours:,.1f} hours left; estimated from {speed / 1e12:.3g} TFLOP/s"
        f"{'' if tflops else ', measured here'}. {note and note[0].upper() + note[1:] + '.'}"
    )


def plan_cells(task: "Task", cost: "Estimate") -> tuple[str, ...]:
    """The row of a run in the plan of a table."""
    return (
        task.name,
        str(task.seed),
        str(task.settings().epochs),
        "–" if task.cell.top1 is None or task.settings().label else f"{task.cell.top1:.2f}",
        ", ".join(task.evaluate) or "–",
        f"{cost.hours:,.1f}",
        f"{cost.memory_gib:.1f}",
        cost.state if cost.basis == "estimated" else f"{cost.state}, measured",
    )


def plan_fields(task: "Task", cost: "Estimate") -> dict[str, Any]:
    """A run of a table for programs."""
    return {
        "run": task.name,
        "recipe": task.cell.name,
        "seed": task.seed,
        "folder": str(task.folder),
        "start": str(task.start) if task.start else None,
        "epochs": task.settings().epochs,
        "published_top1": task.cell.top1,
        "evaluate": task.evaluate,
        "hours": cost.hours,
        "memory_gib": cost.memory_gib,
        "basis": cost.basis,
        "state": cost.state,
    }


def run_table(tasks: "list[Task]", folder: Path, engine: "EngineChoice", as_json: bool) -> None:
    """Train and evaluate the tasks of a table, then print and write their rows of the ledger.

    Raises:
        RunError: A task failed; all others are done.
    """
    from adautomix.tables.execute import execute
    from adautomix.tables.ledger import collect, find_runs
    from adautomix.tables.ledger_page import row_fields, write_ledger_page
    from adautomix.training.jobs import raise_failures

    failures = execute(tasks, engine=engine, folder=folder, quiet=as_json, command=command_line())
    trained = [task.folder for task in tasks if (task.folder / "config.yaml").is_file()]
    if trained:
        cells = list({task.cell.name: task.cell for task in tasks}.values())
        rows = collect(find_runs(trained), cells)
        page = write_ledger_page(rows, folder / "ledger.html")
        if as_json:
            print_json([row_fields(row) for row in rows])
        else:
            print_ledger(rows)
            print_line(f"Page: {page.resolve()}")
    raise_failures(failures, len(tasks))


@click.command(cls=Command)
@click.argument("runs", nargs=-1, type=FILE, metavar="[RUN...]")
@click.option("--table", "name", help="List only the cells of this table, such as 1.")
@click.option("--out", "file", type=FILE, help="Markdown file to write, such as docs/ledger.md.")
@click.option("--page", type=FILE, help="HTML page to write.")
@click.option("--rows", "rows_file", type=FILE, help="Write the rows to this file, as JSON lines.")
@json_option
def ledger(
    runs: tuple[Path, ...],
    name: str | None,
    file: Path | None,
    page: Path | None,
    rows_file: Path | None,
    as_json: bool,
) -> None:
    """Compare runs with the published figures, cell by cell; cells without a run are listed too.

    RUN is a run folder, or a folder that holds some at any depth.
    """
    from adautomix.tables.definition import find_table
    from adautomix.tables.ledger import collect, find_runs
    from adautomix.tables.ledger_page import row_fields, write_ledger_page, write_markdown

    cells = find_table(name)[1].select() if name else None
    rows = collect(find_runs(runs) if runs else [], cells)
    if rows_file:
        lines = [json.dumps(row_fields(row)) + "\n" for row in rows]
        rows_file.write_text("".join(lines), encoding="utf-8")
    written = [write_markdown(rows, file)] if file else []
    written += [write_ledger_page(rows, page)] if page else []
    if as_json:
        print_json([row_fields(row) for row in rows])
        return
    print_ledger(rows)
    for path in written:
        print_line(f"Wrote {path}")


def print_ledger(rows: "list[LedgerRow]") -> None:
    """Print the rows with runs as a table, and how many cells have none."""
    from adautomix.tables.ledger_page import COLUMNS, cells_of, split_rows, summary_of

    done, _ = split_rows(rows)
    if done:
        shown = 8  # columns that fit a terminal
        cells = [tuple(cells_of(row)[:shown]) for row in done]
        print_listing(cells, COLUMNS[:shown], as_json=False)
    print_line(summary_of(rows))
