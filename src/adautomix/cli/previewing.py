"""The command that draws mixed samples: preview."""

from pathlib import Path
from typing import Any

import click

from adautomix.cli.options import FILE, source_options
from adautomix.cli.output import print_line
from adautomix.cli.settings import SettingsCommand


@click.command(cls=SettingsCommand)
@click.argument("files", nargs=-1, type=FILE, metavar="[IMAGE]...")
@click.option(
    "--method",
    default="all",
    show_default=True,
    help="Methods, comma-separated, or all.",
)
@click.option(
    "--images",
    multiple=True,
    type=FILE,
    help="Image files to mix; further files may follow without the option.",
)
@click.option("--run", type=FILE, help="Mix with the generator that this run has learned.")
@click.option(
    "--out",
    "picture",
    type=FILE,
    default="preview.png",
    show_default=True,
    help="PNG file to write.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    help="Mixes per method; none: 3 of one method, 1 of each of several.",
)
@source_options
def preview(
    files: tuple[Path, ...],
    method: str,
    images: tuple[Path, ...],
    run: Path | None,
    picture: Path,
    rows: int | None,
    recipe: str | None,
    config: Path | None,
    flags: dict[str, Any],
) -> None:
    """Draw mixed samples: originals, masks, mixes, λ and labels.

    Mixes image files, or a data set (--data and the other settings of train). Learned methods
    show an untrained generator unless --run is given.
    """
    from adautomix.config import merge_sources
    from adautomix.pictures.mix_rows import mix_grid
    from adautomix.pictures.preview import preview_rows

    drawn = preview_rows(
        merge_sources(recipe=recipe, file=config, flags=flags),
        methods=method,
        files=[*images, *files],
        run=run,
        count=rows,
    )
    print_line(f"Wrote {mix_grid(drawn, picture)}")
