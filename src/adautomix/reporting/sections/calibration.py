"""Calibration: figures before and after a temperature, reliability diagrams, the confidences."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from adautomix.evaluation.calibration import Calibration, CalibrationResult, Figures
from adautomix.reporting.drawing import (
    DOTTED,
    INK,
    Chart,
    LineStyle,
    drawing,
    inline_svg,
    legend,
    look,
    shorten,
)
from adautomix.reporting.figures import MISSING, decimals, percent
from adautomix.reporting.section import Found, Section, Table, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTE = (
    "A calibrated network is right as often as it is sure. ECE: the mean distance of the two over "
    "bins of confidence that are equally wide; adaptive ECE: over bins of equally many images. "
    "NLL and the Brier score judge all probabilities: lower is better everywhere."
)
SCALING = (
    "Before → after dividing the logits by one temperature, between 0.01 and 100: above 1 the "
    "network was too sure, below 1 not sure enough. It is fitted on images that are not scored, "
    "and the accuracy stays."
)
HALVED = (
    "Where there are no validation images, it is fitted on a random half of the test images and "
    "only the other half is scored, before and after."
)
RELIABILITY = (
    "Accuracy of the images of each bin against their mean confidence. Below the diagonal a "
    "network is over-confident, above it under-confident; bins of a few images scatter."
)
AFTER = (
    "The same images with each network's logits divided by its temperature: what is left of the "
    "distance to the diagonal is what one number cannot mend."
)
HISTOGRAM = (
    "How sure the networks are: the share of the images in each bin of confidence. A peak at the "
    "right is harmless as long as the accuracy there, in the reliability diagram, is as high."
)
tenth = decimals(1, scale=100.0)
FIGURES = ("ECE (%)", "adaptive ECE (%)", "NLL", "Brier score", "temperature")
COLUMNS = ("run", "network", *FIGURES, "fitted on", "scored images")


class Line(NamedTuple):
    """The figures of one network as a line in a chart."""

    label: str
    figures: Figures
    color: int
    style: LineStyle


def section(found: Sequence[tuple[Found, CalibrationResult]]) -> Section:
    """A row a network; a reliability diagram before and, where it was asked for, after scaling."""
    rows = [
        (one.label, name, *cells(network), *provenance(result))
        for one, result in found
        for name, network in result.networks.items()
    ]
    halved = any(result.fitted_on == "half of test" for _, result in found)
    note = f"{SCALING} {HALVED}" if halved else SCALING
    table = Table("Calibration", COLUMNS, rows, note)
    before = list(lines(found, lambda network: network.before))
    after = list(lines(found, lambda network: network.after))
    charts = [reliability("reliability", "Reliability", RELIABILITY, before)]
    if after:
        title = "Reliability after temperature scaling"
        charts.append(reliability("reliability-scaled", title, AFTER, after))
    return Section("calibration", "Calibration", NOTE, [table], [*charts, histogram(before)])


def cells(network: Calibration) -> tuple[str, ...]:
    """The figures of one network, before → after where there is an after."""
    stages = [stage for stage in (network.before, network.after) if stage is not None]
    return (
        " → ".join(percent(stage.ece) for stage in stages),
        " → ".join(percent(stage.adaptive_ece) for stage in stages),
        " → ".join(decimals(3)(stage.nll) for stage in stages),
        " → ".join(decimals(4)(stage.brier) for stage in stages),
        decimals(3)(network.temperature),
    )


def provenance(result: CalibrationResult) -> tuple[str, str]:
    """What the temperature was fitted on, and how many test images are scored."""
    split = {"val": "validation", "half of test": "test"}
    fitted = f"{result.fitted_images} {split[result.fitted_on]}" if result.fitted_on else MISSING
    return fitted, str(result.scored_images)


def lines(
    found: Sequence[tuple[Found, CalibrationResult]],
    pick: Callable[[Calibration], Figures | None],
) -> Iterator[Line]:
    """A line for each network that has the figures."""
    for one, result in found:
        for name, network in result.networks.items():
            if (figures := pick(network)) is not None:
                yield Line(f"{one.label}, {name}", figures, one.color, line_style(name))


def reliability(slug: str, title: str, caption: str, drawn: Sequence[Line]) -> Chart:
    """Accuracy over confidence, with the diagonal."""

    def draw(axes: "Axes") -> None:
        axes.plot([0, 100], [0, 100], color=INK, linestyle=DOTTED, label="calibrated")
        for line in drawn:
            filled = [one for one in line.figures.bins if one.images]
            axes.plot(
                [100 * (one.confidence or 0.0) for one in filled],
                [100 * (one.accuracy or 0.0) for one in filled],
                label=shorten(line.label),
                linestyle=line.style,
                **look(line.color),
            )
        axes.set_xlabel("confidence (%)")
        axes.set_ylabel("accuracy (%)")

    return chart(slug, title, caption, draw, drawn)


def histogram(drawn: Sequence[Line]) -> Chart:
    """The share of images in each bin of confidence."""

    def draw(axes: "Axes") -> None:
        for line in drawn:
            images = [one.images for one in line.figures.bins]
            color = look(line.color)["color"]
            axes.stairs(
                [100 * n / sum(images) for n in images],
                [100 * b / len(images) for b in range(len(images) + 1)],
                label=shorten(line.label),
                linestyle=line.style,
                edgecolor=color,
                linewidth=1.2,
            )
        axes.set_xlabel("confidence (%)")
        axes.set_ylabel("share of images (%)")

    return chart("confidence", "Confidence", HISTOGRAM, draw, drawn)


def chart(
    slug: str, title: str, caption: str, draw: Callable[["Axes"], None], drawn: Sequence[Line]
) -> Chart:
    """One pair of axes with its legend, and the bins behind it."""
    from matplotlib.figure import Figure

    with drawing(slug):
        figure = Figure(figsize=(4.4, 3.2 + 0.08 * len(drawn)), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        legend(figure, axes)
        svg = inline_svg(figure, slug, title)
    columns = ("network", "bin (%)", "confidence (%)", "accuracy (%)", "images", "share (%)")
    return Chart(slug, title, caption, svg, columns, numbers(drawn))


def numbers(drawn: Sequence[Line]) -> list[tuple[str, ...]]:
    """A row for each bin that has images."""
    return [
        (
            line.label,
            f"{tenth(b / len(bins))} – {tenth((b + 1) / len(bins))}",
            percent(one.confidence),
            percent(one.accuracy),
            str(one.images),
            percent(one.images / sum(each.images for each in bins)),
        )
        for line in drawn
        for bins in [line.figures.bins]
        for b, one in enumerate(bins)
        if one.images
    ]
