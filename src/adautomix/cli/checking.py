"""Commands that look for mistakes: check-mix and doctor."""

import dataclasses
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from adautomix.cli.base import Command
from adautomix.cli.options import json_option, names_in, source_options
from adautomix.cli.output import console, print_json, print_line, print_listing
from adautomix.cli.settings import SettingsCommand
from adautomix.errors import RunError


@click.command("check-mix", cls=SettingsCommand)
@click.option("--method", help="Methods to check, comma-separated, or all (the default).")
@click.option(
    "--object",
    "objects",
    multiple=True,
    help="Mixer of yours: path.py:name or module:name; repeat the option for several.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=4),
    default=8,
    show_default=True,
    help="Images per batch.",
)
@click.option(
    "--size",
    type=click.IntRange(min=8),
    default=32,
    show_default=True,
    help="Side of the images in pixels.",
)
@click.option(
    "--batches",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Batches per mixer.",
)
@source_options
@json_option
def check_mix(
    method: str | None,
    objects: tuple[str, ...],
    batch: int,
    size: int,
    batches: int,
    recipe: str | None,
    config: Path | None,
    as_json: bool,
    flags: dict[str, Any],
) -> None:
    """Check that every mixed label matches the pixels, by counting them.

    Checks our methods or a mixer of yours: --object names a timm, torchvision or kornia object, a
    function (images, labels) -> (images, targets), or a function without arguments that returns
    either. Takes the settings of the methods.
    """
    from adautomix.checks import label_ledger as ledger
    from adautomix.checks import mixers
    from adautomix.config import merge_sources
    from adautomix.methods import METHODS

    settings = ledger.CheckSettings(batch, size, batches)
    with console().status("counting pixels", spinner="dots"):
        rows = [mixers.check_address(address, settings) for address in objects]
        if method or not objects:
            names = list(METHODS) if method in (None, "all") else names_in(str(method))
            values = merge_sources(recipe=recipe, file=config, flags=flags)
            rows += ledger.check_methods(names, values, settings)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        print_listing([row.cells() for row in rows], ledger.COLUMN_TITLES, as_json=False)
    if wrong := [row.name for row in rows if not row.ok]:
        raise RunError(f"labels do not match the pixels: {', '.join(wrong)}")


@click.command(cls=Command)
@click.argument("script")
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=6,
    show_default=True,
    help="Training batches to run.",
)
@click.option("--alone", is_flag=True, help="Skip the check with two processes.")
@json_option
def doctor(script: str, steps: int, alone: bool, as_json: bool) -> None:
    """Run a few batches of your training loop and look for mistakes with mixing.

    SCRIPT is path.py, or path.py:name of a function; the function (make_loop by default) returns
    an adautomix.checks.doctor.Loop, as docs/doctor.md shows. Found are mixing left on in
    validation or after its end, hard labels for mixed images, and the same λ in every process.
    """
    from adautomix.checks.doctor import examine
    from adautomix.checks.script import load_named

    # The loop may print; stdout is for our findings alone.
    with console().status("running the loop", spinner="dots"), redirect_stdout(sys.stderr):
        make_loop = load_named(script, default="make_loop")
        findings = examine(make_loop, steps=steps, processes=not alone)
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    for finding in [] if as_json else findings:
        print_line(f"- {finding}")
    if findings:
        count = "1 problem" if len(findings) == 1 else f"{len(findings)} problems"
        raise RunError(f"{script}: {count} found; see the fixes above")
    if not as_json:
        print_line(f"No problems found in {script}.")
