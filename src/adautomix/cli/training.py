"""Commands that train one run: train and resume."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adautomix.cli.base import Command
from adautomix.cli.options import json_option, run_argument, source_options
from adautomix.cli.output import command_line, console, print_json, print_line, print_listing
from adautomix.cli.settings import SettingsCommand
from adautomix.errors import RunError, UsageError

if TYPE_CHECKING:
    from adautomix.training import RunResult

NO_DATA = (
    "train needs images: name a folder that has one subfolder of photos per class with "
    "`--data FOLDER`, or try `--data digits`, a small set that needs no download"
)
"""Message of a command that names no data set."""


@click.command(cls=SettingsCommand)
@click.option("--fresh", is_flag=True, help="Delete the run that is in --out, and start over.")
@source_options
@json_option
def train(
    fresh: bool, recipe: str | None, config: Path | None, as_json: bool, flags: dict[str, Any]
) -> None:
    """Train one classifier into a run folder, or continue the run that was stopped there.

    Settings come from a recipe, a YAML file and the options below; each overrides the one before.
    The settings of a method are listed by `adautomix train --method NAME --help`.
    """
    from adautomix import training
    from adautomix.config import load_config

    settings = load_config(recipe=recipe, file=config, flags=flags)
    if "data" not in settings.model_fields_set:
        raise UsageError(NO_DATA)
    result = training.train(settings, fresh=fresh, quiet=as_json, command=command_line())
    finish_run(result, as_json)


@click.command(cls=Command)
@run_argument
@click.option(
    "--verify",
    is_flag=True,
    help="Prove that resuming is exact: train the last stretch again and compare.",
)
@json_option
def resume(run: Path, verify: bool, as_json: bool) -> None:
    """Continue a stopped run exactly where it stopped, or prove that this would be exact."""
    from adautomix import training

    if verify:
        print_verification(run, as_json)
        return
    result = training.resume(run, quiet=as_json, command=command_line())
    finish_run(result, as_json)


def print_verification(run: Path, as_json: bool) -> None:
    """Print the hashes of a run and of the same run resumed from its previous checkpoint.

    Raises:
        RunError: The two differ.
    """
    from adautomix.training.verify import verify_resume

    result = verify_resume(run)
    rows = [
        (what, original[:16], resumed[:16], "equal" if original == resumed else "DIFFERENT")
        for what, original, resumed in result.rows
    ]
    print_listing(rows, ("what", "run", "resumed", "verdict"), as_json)
    if not result.equal:
        raise RunError(f"{run} does not resume exactly from step {result.start}")
    if not as_json:
        print_line(
            f"From step {result.start} to step {result.step}, resumed and uninterrupted are equal."
        )


def finish_run(result: "RunResult", as_json: bool) -> None:
    """Write the report of a run, then print its results and where they are.

    Of several processes only the main one does. The report of a run that had finished is kept.
    """
    from adautomix.distributed import is_main
    from adautomix.reporting.comparison import compare_runs
    from adautomix.reporting.flat_masks import flat_mask_lines
    from adautomix.reporting.page import write_page
    from adautomix.reporting.tables import run_notes, run_table
    from adautomix.reporting.verdict import all_lines
    from adautomix.runs.records import read_run, summary_fields

    if not is_main():
        return
    run = read_run(result.folder)
    page = result.folder / "report.html"
    if result.trained or not page.exists():
        write_page(compare_runs([run]), page)
    if as_json:
        print_json(summary_fields(run))
        return
    if run.summary is not None and run.summary.results:
        verdict, *rest = all_lines(dict(run.summary.results.items()))
        print_line(verdict, bold=True)
        for line in (*rest, *flat_mask_lines([run])):
            print_line(line)
    console().print(run_table(run))
    for line in run_notes(run):
        print_line(line)
    print_line(f"Run folder {result.folder}, page {page}")
