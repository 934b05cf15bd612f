"""The command that searches for a method and its settings: tune."""

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adautomix.cli.comparing import compare_done
from adautomix.cli.options import (
    FILE,
    engine_choice,
    engine_options,
    json_option,
    names_in,
    source_options,
)
from adautomix.cli.output import command_line, console, print_json, print_line, print_listing
from adautomix.cli.settings import SettingsCommand
from adautomix.errors import UsageError

if TYPE_CHECKING:
    from adautomix.reporting.comparison import Comparison
    from adautomix.training.tune import Candidate, TuneResult

UNITS = {"s": 1, "m": 60, "h": 3600}
SHOWN = 10  # candidates in the table


@click.command(cls=SettingsCommand)
@click.option("--budget", required=True, help="Time for everything, such as 90s, 20m or 2h.")
@click.option(
    "--methods",
    default="mixup,cutmix,adautomix",
    show_default=True,
    help="Methods to try, comma-separated; plain training is always tried.",
)
@click.option(
    "--metric",
    type=click.Choice(["top1", "nll", "ece"]),
    default="top1",
    show_default=True,
    help="What the held-out images judge by.",
)
@click.option(
    "--final-seeds",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Seeds that plain training and the winner are tested with.",
)
@click.option("--trials", type=click.IntRange(min=1), help="Largest number of trials; none: any.")
@click.option(
    "--out",
    "folder",
    type=FILE,
    default="runs/tune",
    show_default=True,
    help="Folder of the search.",
)
@engine_options
@source_options
@json_option
def tune(
    budget: str,
    methods: str,
    metric: Any,
    final_seeds: int,
    trials: int | None,
    folder: Path,
    engine: str,
    options: tuple[str, ...],
    jobs: int | None,
    recipe: str | None,
    config: Path | None,
    as_json: bool,
    flags: dict[str, Any],
) -> None:
    """Find the method and settings that suit your images, within a time budget.

    Trials are scored on a held-out part of the training images (--val-fraction; none: a fifth) and
    never see a test image. Then plain training and the winner are trained on all training images
    and tested. The same command continues a search that was stopped.
    """
    from adautomix.config import merge_sources
    from adautomix.training import tune as tuning
    from adautomix.training.jobs import raise_failures

    search = tuning.Search(
        merge_sources(recipe=recipe, file=config, flags=flags),
        names_in(methods),
        folder,
        seconds_of(budget),
        metric,
        final_seeds,
        trials,
        engine_choice(engine, options, jobs),
    )
    result = tuning.tune(search, quiet=as_json, command=command_line())
    comparison = compare_done(result.final, result.failures, "plain")
    if comparison is not None:
        chosen = command_of(result.winner, recipe, config, flags)
        print_search(result, comparison, metric, as_json, chosen)
    trials = sum(one.trials for one in result.candidates)
    raise_failures(result.failures, trials + len(result.final))


def print_search(
    result: "TuneResult", comparison: "Comparison", metric: str, as_json: bool, command: str
) -> None:
    """Print what was tried, how the final runs compare, and the command that was chosen."""
    from adautomix.reporting.tables import comparison_table, significance_lines
    from adautomix.runs.records import summary_fields

    if as_json:
        tried = [
            {"score": one.score, "trials": one.trials, **one.settings} for one in result.candidates
        ]
        final = [summary_fields(run) for run in comparison.runs]
        print_json({"candidates": tried, "command": command, "final": final})
        return
    titles = ("settings", "trials", f"held-out {metric}", "seconds")
    print_listing([cells_of(one) for one in result.candidates[:SHOWN]], titles, as_json=False)
    console().print(comparison_table(comparison))
    for line in significance_lines(comparison):
        console().print(line)
    if result.winner["method"] == "vanilla":
        print_line("Plain training was best on the held-out images; nothing that mixes beat it.")
    print_line(f"Chosen: {command}")


def seconds_of(text: str) -> float:
    """Return a time such as 90s, 20m or 2h in seconds.

    Raises:
        UsageError: the text is no time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--budget: {text!r} is no time; write 90s, 20m or 2h")
    return float(match[1]) * UNITS[match[2]]


def command_of(
    winner: dict[str, Any], recipe: str | None, config: Path | None, flags: dict[str, Any]
) -> str:
    """Return the command line that trains with the chosen settings."""
    words = ["adautomix", "train"]
    words += ["--recipe", recipe] if recipe else []
    words += ["--config", str(config)] if config else []
    for name, value in {**flags, **winner}.items():
        words += [
            f"--{name.replace('_', '-')}",
            str(value).lower() if isinstance(value, bool) else str(value),
        ]
    return shlex.join(words)


def cells_of(one: "Candidate") -> tuple[str, ...]:
    """Return the cells of one candidate."""
    own = {name: value for name, value in one.settings.items() if name != "method"}
    settings = ", ".join(f"{name} {value}" for name, value in own.items())
    score = "stopped early" if one.score is None else f"{one.score:.4f}"
    label = f"{one.settings['method']}{': ' if own else ''}{settings}"
    return label, str(one.trials), score, f"{one.seconds:.0f}" if one.scores else "–"
