"""Options that several commands take."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adautomix.errors import UsageError

if TYPE_CHECKING:
    from adautomix.training.engines.base import EngineChoice

Function = TypeVar("Function", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
"""A path as a `pathlib.Path`; whether it exists is checked where it is read."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
run_argument = click.argument("run", type=FILE)
baseline_option = click.option(
    "--baseline",
    help="Method or variant to compare the others with; none: vanilla, or the first.",
)
network_option = click.option(
    "--network",
    type=click.Choice(["teacher", "student"]),
    default="teacher",
    show_default=True,
    help="Network: the teacher (moving average) or the student.",
)
which_option = click.option(
    "--which",
    default="last",
    show_default=True,
    help="Checkpoint: last, previous, best, or one that was kept, such as epoch-0005.",
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="Device: cpu, cuda, mps or auto."
)


def complete_packaged(
    kind: str,
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a callback that offers shell completion the packaged "recipes" or "sweeps"."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        from adautomix.config import list_packaged, list_recipes

        names = list_recipes() if kind == "recipes" else list_packaged(kind)
        return [name for name in names if name.startswith(incomplete)]

    return complete


def source_options(function: Function) -> Function:
    """Add --recipe and --config, which flags override."""
    function = click.option(
        "--config", type=FILE, help="YAML file with settings; it overrides the recipe."
    )(function)
    return click.option(
        "--recipe",
        shell_complete=complete_packaged("recipes"),
        help="Packaged recipe to start from; `adautomix recipes` lists them.",
    )(function)


def engine_options(function: Function) -> Function:
    """Add --engine, --engine-option and --jobs, see `engine_choice`."""
    function = click.option(
        "--jobs",
        type=click.IntRange(min=1),
        help="Runs at the same time; none: one per core, or one on a GPU; ray and slurm: any.",
    )(function)
    function = click.option(
        "--engine-option",
        "options",
        multiple=True,
        metavar="NAME=VALUE",
        help="Option of @ray.remote (num_gpus=1) or of submitit (slurm_partition=gpu); repeatable.",
    )(function)
    return click.option(
        "--engine",
        type=click.Choice(["local", "ray", "slurm"]),
        default="local",
        show_default=True,
        help="What computes the runs: this machine, the Ray cluster at RAY_ADDRESS, or Slurm.",
    )(function)


def engine_choice(engine: Any, options: Sequence[str], jobs: int | None) -> "EngineChoice":
    """Return the engine that the options of `engine_options` describe.

    Raises:
        UsageError: an option has no value, or the engine takes none.
    """
    import yaml

    from adautomix.training.engines.base import EngineChoice

    values = {}
    for option in options:
        name, separator, text = option.partition("=")
        if not separator:
            raise UsageError(f"--engine-option {option} has no value: write {option}=VALUE")
        values[name] = yaml.safe_load(text)
    return EngineChoice(engine, jobs, values)


def names_in(text: str) -> list[str]:
    """Return the items of a comma-separated list."""
    return [item.strip() for item in text.split(",") if item.strip()]
