"""Report section of the diversity suite: a table, a chart of masks over training, pictures."""

from collections.abc import Sequence
from statistics import fmean

from adautomix.evaluation.diversity import DiversityResult
from adautomix.reporting.drawing import Chart, Series, line_chart
from adautomix.reporting.formatting import MISSING, percent
from adautomix.reporting.section import Evaluated, Picture, Section, Table, embedded

MAX_PICTURES = 4
NOTE = (
    "Mean distances between mixes of the same images, in %. The distance of two masks is the "
    "fraction of the pixels that moved to another source; the distance of two mixes is the mean "
    "difference of their pixels. By draw: the same images, mixed several times with different "
    "random parameters. Over training: the same images and parameters, mixed with the weights of "
    "the method at each kept checkpoint."
)
OVER_TRAINING = (
    "Distance between the masks at each kept checkpoint and at the one before, for the same "
    "images, sources and λ. It is 0 if the generator no longer changes; an adversarial generator "
    "keeps changing."
)
CAPTION = (
    "Each block shows the originals, then their mix after several epochs and, below it, the mask "
    "of the first original (dark 0, bright 1). Only the weights of the method differ."
)
COLUMNS = (
    "run",
    "method",
    "masks, by draw (%)",
    "mixes, by draw (%)",
    "masks, any two checkpoints (%)",
    "masks, consecutive checkpoints (%)",
    "checkpoints",
)

Results = Sequence[tuple[Evaluated, DiversityResult]]


def section(results: Results) -> Section:
    """Return the section with one row per run, and a chart and pictures over training."""
    rows = [table_row(one, result) for one, result in results]
    notes = [f"{one.label}: {result.note}." for one, result in results if result.note]
    table = Table("Distances between mixes of the same images", COLUMNS, rows, " ".join(notes))
    charts = [chart(results)] if any(result.training for _, result in results) else []
    return Section("diversity", "Diversity of mixes", NOTE, [table], charts, pictures(results))


def table_row(one: Evaluated, result: DiversityResult) -> tuple[str, ...]:
    """Return the distances of one run."""
    training = result.training
    return (
        one.label,
        result.method,
        percent(result.spread.masks),
        percent(result.spread.images),
        percent(None if training is None else training.pairwise),
        percent(None if training is None else fmean(training.consecutive)),
        str(len(result.epochs)) if result.epochs else MISSING,
    )


def chart(results: Results) -> Chart:
    """Return the distance from the previous checkpoint over epochs."""
    distances = [
        (one, result.epochs[1:], result.training.consecutive)
        for one, result in results
        if result.training
    ]
    return line_chart(
        "mask-distance",
        "Masks over training",
        OVER_TRAINING,
        [Series(one.label, xs, [100 * y for y in ys], one.color) for one, xs, ys in distances],
        x_label="epoch",
        y_label="distance from the previous checkpoint (%)",
        columns=("run", "epoch", "distance (%)"),
        rows=[
            (one.label, str(epoch), percent(distance))
            for one, xs, ys in distances
            for epoch, distance in zip(xs, ys, strict=True)
        ],
    )


def pictures(results: Results) -> list[Picture]:
    """Return the picture of the first run of each color whose masks changed over training."""
    first_of_color = {one.color: (one, result) for one, result in reversed(results)}
    shown = []
    for color in sorted(first_of_color):
        one, result = first_of_color[color]
        training = result.training
        if training is None or not training.pairwise:
            continue
        path = one.picture("diversity", training.picture)
        if path is not None:
            epochs = ", ".join(map(str, result.epochs))
            alt = f"Mixes of {one.label} and their masks after epochs {epochs}, the same images."
            title = f"{one.label}: the same mixes over training"
            shown.append(Picture(title, CAPTION, alt, embedded(path)))
    return shown[:MAX_PICTURES]
