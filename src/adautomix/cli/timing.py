"""Commands that time training steps: plan and bench."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from adautomix.cli.comparing import variants_of
from adautomix.cli.options import FILE, complete_packaged, json_option, source_options
from adautomix.cli.output import console, print_json, print_line, print_listing
from adautomix.cli.settings import SettingsCommand


@click.command(cls=SettingsCommand)
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    help="Steps to time per method; none: up to 20, in about half a minute.",
)
@source_options
@json_option
def plan(
    steps: int | None, recipe: str | None, config: Path | None, as_json: bool, flags: dict[str, Any]
) -> None:
    """Estimate what a run would cost, beside plain training and Mixup.

    Takes the settings of train, runs a few steps on the actual images, and writes no run folder.
    """
    from adautomix.bench import plan as planning
    from adautomix.config import load_config

    settings = load_config(recipe=recipe, file=config, flags=flags)
    with timing_status(steps or planning.STEPS) as on_progress:
        rows = planning.plan(settings, steps=steps, on_progress=on_progress)
    print_figures(rows, as_json)


@click.command(cls=SettingsCommand)
@click.option(
    "--methods",
    help="Methods, comma-separated; all: every method that the network supports; "
    "none: vanilla,adautomix.",
)
@click.option(
    "--sweep",
    shell_complete=complete_packaged("sweeps"),
    help="Time the variants of this sweep instead: one of `adautomix sweeps`, or a YAML file.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=10,
    show_default=True,
    help="Steps to time per method.",
)
@click.option(
    "--classes",
    type=click.IntRange(min=2),
    default=100,
    show_default=True,
    help="Number of classes.",
)
@click.option(
    "--size",
    type=click.IntRange(min=8),
    default=32,
    show_default=True,
    help="Side of the images in pixels.",
)
@click.option("--phases", is_flag=True, help="Also time the phases of a step.")
@click.option(
    "--work", is_flag=True, help="Also count operations, as a fraction of the peak throughput."
)
@click.option("--rows", type=FILE, help="Append the results to this file, as JSON lines.")
@source_options
@json_option
def bench(
    methods: str | None,
    sweep: str | None,
    steps: int,
    classes: int,
    size: int,
    phases: bool,
    work: bool,
    rows: Path | None,
    recipe: str | None,
    config: Path | None,
    as_json: bool,
    flags: dict[str, Any],
) -> None:
    """Time the real training step of several methods or variants, in alternation.

    Takes the settings of train. With --help, `--methods NAME,…` also lists the settings of these
    methods.
    """
    from adautomix.bench.rows import append
    from adautomix.bench.suite import run_suite
    from adautomix.bench.workload import Workload
    from adautomix.config import make_config, merge_sources
    from adautomix.methods import METHODS, suits

    values = merge_sources(recipe=recipe, file=config, flags=flags)
    if methods == "all" and sweep is None:
        methods = ",".join(name for name in METHODS if suits(name, make_config(values).model))
    variants = variants_of(methods, sweep)
    workload = Workload(values, list(variants), steps, classes, size, variants)
    with timing_status(steps) as on_progress:
        results = run_suite(
            workload,
            phases=phases,
            work=work,
            on_progress=on_progress,
        )
    for kind, figures in results.items():
        if rows:
            append(rows, kind, figures, device=workload.device())
        if not as_json:
            print_line(kind, bold=True)
            print_figures(figures)
    if as_json:
        print_json(results)


@contextmanager
def timing_status(steps: int) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many rounds are timed; yields the callback that is told."""
    with console().status("timing", spinner="dots") as status:
        yield lambda done: status.update(f"timing: {done} of {steps} rounds")


def print_figures(figures: list[dict[str, Any]], as_json: bool = False) -> None:
    """Print rows of data as a table, or as JSON."""
    from adautomix.reporting.bench_table import table_of

    if as_json:
        print_json(figures)
        return
    titles, cells = table_of(figures)
    print_listing([tuple(line) for line in cells], tuple(titles), as_json=False)
