"""Commands about several runs: compare and report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adautomix.cli.base import Command
from adautomix.cli.options import (
    FILE,
    baseline_option,
    complete_packaged,
    engine_choice,
    engine_options,
    json_option,
    names_in,
    source_options,
)
from adautomix.cli.output import command_line, console, print_json, print_line
from adautomix.cli.settings import SettingsCommand
from adautomix.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adautomix.reporting.comparison import Comparison
    from adautomix.training.jobs import Failure


@click.command(cls=SettingsCommand)
@click.option("--methods", help="Methods to compare, comma-separated; none: vanilla,adautomix.")
@click.option(
    "--sweep",
    shell_complete=complete_packaged("sweeps"),
    help="Compare the variants of this sweep instead: one of `adautomix sweeps`, or a YAML file.",
)
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds, comma-separated.")
@click.option(
    "--out",
    "folder",
    type=FILE,
    default="runs/compare",
    show_default=True,
    help="Folder of the run folders.",
)
@engine_options
@baseline_option
@source_options
@json_option
def compare(
    methods: str | None,
    sweep: str | None,
    seeds: str,
    folder: Path,
    engine: str,
    options: tuple[str, ...],
    jobs: int | None,
    baseline: str | None,
    recipe: str | None,
    config: Path | None,
    as_json: bool,
    flags: dict[str, Any],
) -> None:
    """Train several methods, or variants of one, with several seeds.

    The result is one table, with confidence intervals and significance, and one report. Runs that
    exist already are finished, not repeated, and a run that fails does not stop the others. With
    --help, `--methods NAME,…` also lists the settings of these methods.
    """
    from adautomix.config import merge_sources
    from adautomix.reporting.page import write_page
    from adautomix.reporting.significance import pick_baseline
    from adautomix.training import compare as comparing
    from adautomix.training.jobs import raise_failures

    variants = variants_of(methods, sweep)
    if baseline:
        pick_baseline(list(variants), baseline)  # A wrong name must stop us before the training.
    folders, failures = comparing.run_comparison(
        merge_sources(recipe=recipe, file=config, flags=flags),
        variants=variants,
        seeds=[read_seed(seed) for seed in names_in(seeds)],
        out=folder,
        engine=engine_choice(engine, options, jobs),
        quiet=as_json,
        command=command_line(),
    )
    comparison = compare_done(folders, failures, baseline)
    if comparison is not None:
        print_comparison(comparison, write_page(comparison, folder / "report.html"), as_json)
    raise_failures(failures, len(folders))


def compare_done(
    folders: "Sequence[Path]", failures: "Sequence[Failure]", baseline: str | None
) -> "Comparison | None":
    """Return the comparison of the runs that did not fail; None if all did."""
    from adautomix.reporting.comparison import compare_runs
    from adautomix.runs.records import read_runs

    failed = {failure.job.folder for failure in failures}
    done = [folder for folder in folders if folder not in failed]
    if not done:
        return None
    runs = read_runs(done)
    known = baseline in {run.label for run in runs}  # else all its runs failed
    return compare_runs(runs, baseline if known else None)


def print_comparison(comparison: "Comparison", page: Path, as_json: bool) -> None:
    """Print the table of a comparison and what is significant in it, and where its page is."""
    from adautomix.reporting.flat_masks import flat_mask_lines
    from adautomix.reporting.tables import comparison_table, significance_lines
    from adautomix.reporting.verdict import worse_than_plain
    from adautomix.runs.records import summary_fields

    if as_json:
        print_json([summary_fields(run) for run in comparison.runs])
        return
    console().print(comparison_table(comparison))
    advice = (*worse_than_plain(comparison), *flat_mask_lines(comparison.runs))
    for line in (*significance_lines(comparison), *advice):
        console().print(line)
    print_line(f"Page: {page.resolve()}")


def variants_of(methods: str | None, sweep: str | None) -> dict[str, dict[str, Any]]:
    """Return what is compared, by name: methods, or the variants of a sweep.

    Raises:
        UsageError: Both were named, or there is no such sweep.
    """
    from adautomix.config.sweeps import read_sweep
    from adautomix.training.compare import method_variants

    if sweep is None:
        return method_variants(names_in("vanilla,adautomix" if methods is None else methods))
    if methods is not None:
        raise UsageError("--methods and --sweep both say what to compare: leave out one")
    return read_sweep(sweep)


def read_seed(text: str) -> int:
    """Return a seed.

    Raises:
        UsageError: The text is not a whole number.
    """
    if not text.isdigit():
        raise UsageError(f"--seeds: {text!r} is no whole number; write 0,1,2")
    return int(text)


@click.command(cls=Command)
@click.argument("sources", nargs=-1, required=True, type=FILE, metavar="SOURCE...")
@click.option("--out", "page", type=FILE, help="HTML file to write; none: report.html.")
@click.option("--rows", type=FILE, help="Also write the comparison to this file, as JSON lines.")
@click.option(
    "--markdown", is_flag=True, help="Also print the table and the significance in Markdown."
)
@baseline_option
def report(
    sources: tuple[Path, ...],
    page: Path | None,
    rows: Path | None,
    markdown: bool,
    baseline: str | None,
) -> None:
    """Write one self-contained HTML report about runs.

    It shows the final results, significance, accuracy at equal time, curves, samples and settings.
    SOURCE is a run folder, a folder of runs, a .jsonl file written by --rows, or the
    evaluation.json of `adautomix evaluate`.
    """
    from adautomix.reporting.page import write_report
    from adautomix.reporting.rows import write_rows
    from adautomix.reporting.sources import read_sources
    from adautomix.reporting.tables import markdown_table, significance_lines

    read = read_sources(sources, baseline)
    if read.comparison is None and (markdown or rows):
        raise UsageError("--markdown and --rows need runs: name run folders or a file of rows")
    if read.comparison is not None and markdown:
        lines = significance_lines(read.comparison)
        print(markdown_table(read.comparison), *lines, sep="\n")
    if read.comparison is not None and rows:
        write_rows(read.comparison, rows)
    single = len(sources) == 1 and sources[0].is_dir()
    target = page or (sources[0] / "report.html" if single else Path("report.html"))
    print_line(f"Wrote {write_report(read, target)}")
