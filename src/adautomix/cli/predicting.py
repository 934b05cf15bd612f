"""The command predict: image files to class names and probabilities."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from adautomix.cli.base import Command
from adautomix.cli.options import FILE, device_option, json_option, network_option, which_option
from adautomix.cli.output import print_line
from adautomix.errors import RunError, UsageError
from adautomix.files import atomic_write
from adautomix.text import csv_cell, printable

if TYPE_CHECKING:
    from adautomix.runs.predictor import FilePrediction
    from adautomix.runs.trained import TrainedRun

_MAX_PADDING = 60  # characters that the names of images are padded to

Best = list[tuple[str, float]]
"""The most probable classes with their probabilities, the most probable first."""
Writer = Callable[["FilePrediction", Best], None]


@click.command(cls=Command)
@click.argument("run", type=FILE)
@click.argument("images", nargs=-1, type=FILE, metavar="[IMAGE...]")
@click.option("--list", "lists", type=FILE, multiple=True, help="File with one image per line.")
@click.option("--split", help="Predict the recorded images of a split: train, val or test.")
@network_option
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Number of classes per image.",
)
@click.option(
    "--tta",
    type=click.Choice(["none", "flip"]),
    default="none",
    show_default=True,
    help="Average over an image and its mirror image; takes twice the time.",
)
@click.option(
    "--uncalibrated",
    is_flag=True,
    help="Ignore the temperature that `adautomix evaluate --suites calibration` fitted.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Images per forward pass.",
)
@click.option("--csv", "table", type=FILE, help="Write a CSV file, with one row per image.")
@which_option
@device_option
@json_option
def predict(
    run: Path,
    images: tuple[Path, ...],
    lists: tuple[Path, ...],
    split: str | None,
    network: Literal["student", "teacher"],
    top: int,
    tta: Literal["none", "flip"],
    uncalibrated: bool,
    batch_size: int,
    table: Path | None,
    which: str,
    device: str,
    as_json: bool,
) -> None:
    """Print the most probable classes of images, or write them to a file.

    IMAGE is an image file, a folder, which is searched with its subfolders, or a quoted pattern
    such as "photos/**/*.jpg". A file that cannot be read is reported and does not stop the rest;
    the exit status is then 1.
    """
    from adautomix.runs.api import load

    if (bool(images) or bool(lists)) == (split is not None):
        raise click.UsageError("name image files, folders or a --list; or a split with --split")
    if table is not None and table.is_dir():
        raise UsageError(f"--csv {table} is a folder: name the CSV file to write")
    trained = load(run, checkpoint=which, device=device)
    paths = paths_of(trained, images, lists, split)
    top = min(top, len(trained.classes))
    if not as_json and not uncalibrated and (temperature := trained.temperature(network)):
        click.echo(f"Probabilities are calibrated with temperature {temperature:.3f}.", err=True)
    found = trained.predict_files(
        paths, network, batch_size=batch_size, tta=tta, calibrated=not uncalibrated
    )
    bad = 0
    with open_writers(paths, network, top, table, as_json) as writers:
        for one in found:
            if one.probabilities is None:
                if len(paths) == 1:
                    raise UsageError(one.problem)
                bad += 1
                click.echo(f"adautomix: {printable(one.problem, None)}", err=True)
            for write in writers:
                write(one, most_probable(one, trained.classes, top))
    if table is not None and not as_json:
        print_line(f"Wrote the predictions of {len(paths) - bad:,} images to {table}")
    if bad:
        raise RunError(f"{bad:,} of {len(paths):,} images could not be read")


def paths_of(
    trained: "TrainedRun", images: Sequence[Path], lists: Sequence[Path], split: str | None
) -> list[Path]:
    """Return the image files that the arguments stand for.

    Raises:
        UsageError: a list cannot be read, a folder holds no image, a pattern matches nothing, or
            the run recorded no such split.
    """
    from adautomix.data.picture_sources import find_pictures, read_picture_list

    if split is not None:
        return [Path(file) for file in trained.split_files(split)]
    listed = [path for name in lists for path in read_picture_list(name)]
    return find_pictures([*images, *listed])


def most_probable(one: "FilePrediction", classes: Sequence[str], top: int) -> Best:
    """Return the `top` most probable classes of an image; none if it cannot be read."""
    if one.probabilities is None:
        return []
    values, indices = one.probabilities.topk(top)
    return [(classes[k], p) for k, p in zip(indices.tolist(), values.tolist(), strict=True)]


@contextmanager
def open_writers(
    paths: Sequence[Path], network: str, top: int, table: Path | None, as_json: bool
) -> Iterator[list[Writer]]:
    """Yield what writes each prediction as it comes: JSON, a CSV file, or lines of text."""
    writers: list[Writer] = []
    if as_json:
        writers.append(json_writer())
    elif table is None:
        writers.append(text_writer(paths, network))
    if table is None:
        yield writers
    else:
        table.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(table) as part, part.open("w", encoding="utf-8", newline="") as file:
            yield [*writers, csv_writer(csv.writer(file), top)]
    if as_json:
        print("\n]")


def json_writer() -> Writer:
    """Return what prints one object per image, as the items of a list."""
    first = True

    def write(one: "FilePrediction", best: Best) -> None:
        nonlocal first
        entry: dict[str, Any] = {"image": str(one.file), "classes": dict(best)}
        if one.problem:
            entry = {"image": str(one.file), "problem": one.problem}
        print("[" if first else ",", json.dumps(entry), sep="\n", end="")
        first = False

    return write


def text_writer(paths: Sequence[Path], network: str) -> Writer:
    """Return what prints one line per image, with a title before the first."""
    width = min(_MAX_PADDING, max(len(printable(str(path))) for path in paths))
    first = True

    def write(one: "FilePrediction", best: Best) -> None:
        nonlocal first
        if not best:
            return
        if first:
            print_line(f"{'image':{width}}  {network} predicts", bold=True)
            first = False
        classes = ", ".join(f"{printable(name)} {p:.1%}" for name, p in best)
        print_line(f"{printable(str(one.file)):{width}}  {classes}")

    return write


def csv_writer(rows: Any, top: int) -> Writer:
    """Return what writes one row per image, after a row of titles; no cell is a formula."""
    ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    titles = [f"{kind}{rank}" for rank in ranks for kind in ("class", "probability")]
    rows.writerow(["image", *titles, "problem"])

    def write(one: "FilePrediction", best: Best) -> None:
        pairs = [cell for name, p in best for cell in (csv_cell(name), f"{p:.6f}")]
        empty = [""] * (2 * top - len(pairs))
        rows.writerow([csv_cell(str(one.file)), *pairs, *empty, csv_cell(one.problem)])

    return write
