"""Diversity of mixes: a table, the masks' way over training as a chart and a picture."""

from collections.abc import Sequence
from statistics import fmean

from adautomix.evaluation.diversity import DiversityResult
from adautomix.reporting.drawing import Chart, Series, line_chart
from adautomix.reporting.figures import MISSING, percent
from adautomix.reporting.section import Found, Picture, Section, Table, embedded

MOST_PICTURES = 4
NOTE = (
    "How far mixes of the same images are apart, in %. Of masks: the share of the pixels that "
    "went to another image, on average; of mixes: the mean difference of their pixels. By draw: "
    "the same images, mixed several times. Over training: the same draw, mixed with what was "
    "learned at each kept checkpoint."
)
OVER_TRAINING = (
    "Distance of the masks at each kept checkpoint and at the one before, for the same images, "
    "sources and λ. A generator that has settled is at 0; an adversary keeps moving."
)
CAPTION = (
    "Each block: the originals, then the mix of them at the end of several epochs; below, the mask "
    "of the first original (dark 0, bright 1). Only what the method had learned differs."
)
COLUMNS = (
    "run",
    "method",
    "masks, by draw (%)",
    "mixes, by draw (%)",
    "masks, any two checkpoints (%)",
    "masks, next checkpoint (%)",
    "checkpoints",
)


def section(found: Sequence[tuple[Found, DiversityResult]]) -> Section:
    """A row a run, and for those with kept checkpoints a line and a picture."""
    rows = [row(one, result) for one, result in found]
    notes = [f"{one.label}: {result.note}." for one, result in found if result.note]
    table = Table("Distances of mixes of the same images", COLUMNS, rows, " ".join(notes))
    charts = [chart(found)] if any(result.training for _, result in found) else []
    return Section("diversity", "Diversity of mixes", NOTE, [table], charts, pictures(found))


def row(one: Found, result: DiversityResult) -> tuple[str, ...]:
    """The figures of one run."""
    over = result.training
    return (
        one.label,
        result.method,
        percent(result.spread.masks),
        percent(result.spread.images),
        percent(None if over is None else over.pairwise),
        percent(None if over is None else fmean(over.consecutive)),
        str(len(result.epochs)) if result.epochs else MISSING,
    )


def chart(found: Sequence[tuple[Found, DiversityResult]]) -> Chart:
    """The distance to the checkpoint before, over epochs."""
    moved = [
        (one, result.epochs[1:], result.training.consecutive)
        for one, result in found
        if result.training
    ]
    return line_chart(
        "mask-distance",
        "Masks over training",
        OVER_TRAINING,
        [Series(one.label, xs, [100 * y for y in ys], one.color) for one, xs, ys in moved],
        x_label="epoch",
        y_label="distance from the checkpoint before (%)",
        columns=("run", "epoch", "distance (%)"),
        rows=[
            (one.label, str(epoch), percent(distance))
            for one, xs, ys in moved
            for epoch, distance in zip(xs, ys, strict=True)
        ],
    )


def pictures(found: Sequence[tuple[Found, DiversityResult]]) -> list[Picture]:
    """Those of the first runs of each color whose mixes moved at all."""
    firsts = {one.color: (one, result) for one, result in reversed(found)}
    drawn = []
    for color in sorted(firsts):
        one, result = firsts[color]
        over = result.training
        if over is None or not over.pairwise:
            continue
        path = one.picture("diversity", over.picture)
        if path.is_file():
            text = ", ".join(map(str, result.epochs))
            alt = f"Mixes of {one.label} and their masks after epochs {text}, the same images."
            title = f"{one.label}: the same mixes over training"
            drawn.append(Picture(title, CAPTION, alt, embedded(path)))
    return drawn[:MOST_PICTURES]
