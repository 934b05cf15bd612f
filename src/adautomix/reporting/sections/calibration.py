"""Report section of the calibration suite: metrics, reliability diagrams, confidence histogram."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from adautomix.evaluation.calibration import Calibration, CalibrationMetrics, CalibrationResult
from adautomix.reporting.drawing import (
    DOTTED,
    INK,
    Chart,
    LineStyle,
    drawing,
    inline_svg,
    legend,
    series_style,
    shorten,
)
from adautomix.reporting.formatting import MISSING, decimals, percent
from adautomix.reporting.section import Evaluated, Section, Table, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTE = (
    "The confidence of a prediction is the probability of the predicted class. In a calibrated "
    "network, 80 % of the predictions with confidence 80 % are right. ECE, the expected "
    "calibration error, is the mean distance between accuracy and confidence over bins of "
    "confidence of equal width; the adaptive ECE has bins of equally many images. NLL, the "
    "negative log-likelihood, and the Brier score evaluate all probabilities. Lower is better for "
    "each of them."
)
SCALING = (
    "Values are before → after temperature scaling, which divides the logits by one number between "
    "0.01 and 100. A temperature above 1 means that the network was overconfident, below 1 that it "
    "was underconfident. It is fitted on images that are not scored, and does not change the "
    "accuracy."
)
HALVED = (
    "Without validation images, the temperature is fitted on a random half of the test images, and "
    "only the other half is scored, before and after."
)
RELIABILITY = (
    "Accuracy over mean confidence of the images in each bin. Below the diagonal a network is "
    "overconfident, above it underconfident; bins with few images scatter."
)
RELIABILITY_SCALED = (
    "The same images, with the logits of each network divided by its temperature. What remains of "
    "the distance to the diagonal cannot be corrected by a temperature."
)
HISTOGRAM = (
    "The fraction of the images in each bin of confidence. A peak on the right does no harm as "
    "long as the accuracy of those bins, in the reliability diagram, is as high."
)
METRICS = ("ECE (%)", "adaptive ECE (%)", "NLL", "Brier score", "temperature")
COLUMNS = ("run", "network", *METRICS, "fitted on", "scored images")

one_decimal = decimals(1, scale=100.0)


class Line(NamedTuple):
    """The metrics of one network as a line in a chart."""

    label: str
    metrics: CalibrationMetrics
    color: int
    style: LineStyle


def section(results: Sequence[tuple[Evaluated, CalibrationResult]]) -> Section:
    """Return the section with a table, reliability diagrams and a confidence histogram."""
    rows = [
        (one.label, name, *metric_cells(network), *image_cells(result))
        for one, result in results
        for name, network in result.networks.items()
    ]
    halved = any(result.fitted_on == "half of test" for _, result in results)
    note = f"{SCALING} {HALVED}" if halved else SCALING
    table = Table("Calibration", COLUMNS, rows, note)
    before = list(lines(results, lambda network: network.before))
    after = list(lines(results, lambda network: network.after))
    charts = [reliability_chart("reliability", "Reliability", RELIABILITY, before)]
    if after:
        title = "Reliability after temperature scaling"
        charts.append(reliability_chart("reliability-scaled", title, RELIABILITY_SCALED, after))
    return Section("calibration", "Calibration", NOTE, [table], [*charts, histogram(before)])


def metric_cells(network: Calibration) -> tuple[str, ...]:
    """Return the metrics of one network, written before → after if it was scaled."""
    stages = [stage for stage in (network.before, network.after) if stage is not None]
    return (
        " → ".join(percent(stage.ece) for stage in stages),
        " → ".join(percent(stage.adaptive_ece) for stage in stages),
        " → ".join(decimals(3)(stage.nll) for stage in stages),
        " → ".join(decimals(4)(stage.brier) for stage in stages),
        decimals(3)(network.temperature),
    )


def image_cells(result: CalibrationResult) -> tuple[str, str]:
    """Return the images that the temperature was fitted on, and the number of scored images."""
    split = {"val": "validation", "half of test": "test"}
    fitted = f"{result.fitted_images} {split[result.fitted_on]}" if result.fitted_on else MISSING
    return fitted, str(result.scored_images)


def lines(
    results: Sequence[tuple[Evaluated, CalibrationResult]],
    pick: Callable[[Calibration], CalibrationMetrics | None],
) -> Iterator[Line]:
    """Yield a line for each network for which `pick` returns metrics."""
    for one, result in results:
        for name, network in result.networks.items():
            if (metrics := pick(network)) is not None:
                yield Line(f"{one.label}, {name}", metrics, one.color, line_style(name))


def reliability_chart(slug: str, title: str, caption: str, lines: Sequence[Line]) -> Chart:
    """Return accuracy over confidence, with the diagonal."""

    def draw(axes: "Axes") -> None:
        axes.plot([0, 100], [0, 100], color=INK, linestyle=DOTTED, label="calibrated")
        for line in lines:
            filled = [one for one in line.metrics.bins if one.images]
            axes.plot(
                [100 * (one.confidence or 0.0) for one in filled],
                [100 * (one.accuracy or 0.0) for one in filled],
                label=shorten(line.label),
                linestyle=line.style,
                **series_style(line.color),
            )
        axes.set_xlabel("confidence (%)")
        axes.set_ylabel("accuracy (%)")

    return draw_chart(slug, title, caption, draw, lines)


def histogram(lines: Sequence[Line]) -> Chart:
    """Return the fraction of images in each bin of confidence."""

    def draw(axes: "Axes") -> None:
        for line in lines:
            images = [one.images for one in line.metrics.bins]
            color = series_style(line.color)["color"]
            axes.stairs(
                [100 * n / sum(images) for n in images],
                [100 * b / len(images) for b in range(len(images) + 1)],
                label=shorten(line.label),
                linestyle=line.style,
                edgecolor=color,
                linewidth=1.2,
            )
        axes.set_xlabel("confidence (%)")
        axes.set_ylabel("fraction of images (%)")

    return draw_chart("confidence", "Confidence", HISTOGRAM, draw, lines)


def draw_chart(
    slug: str, title: str, caption: str, draw: Callable[["Axes"], None], lines: Sequence[Line]
) -> Chart:
    """Return a chart with one pair of axes, a legend, and the bins as its table of numbers."""
    from matplotlib.figure import Figure

    with drawing(slug):
        figure = Figure(figsize=(4.4, 3.2 + 0.08 * len(lines)), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        legend(figure, axes)
        svg = inline_svg(figure, slug, title)
    columns = ("network", "bin (%)", "confidence (%)", "accuracy (%)", "images", "fraction (%)")
    return Chart(slug, title, caption, svg, columns, bin_rows(lines))


def bin_rows(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Return a row for each bin that contains images."""
    return [
        (
            line.label,
            f"{one_decimal(b / len(bins))} – {one_decimal((b + 1) / len(bins))}",
            percent(one.confidence),
            percent(one.accuracy),
            str(one.images),
            percent(one.images / sum(each.images for each in bins)),
        )
        for line in lines
        for bins in [line.metrics.bins]
        for b, one in enumerate(bins)
        if one.images
    ]
