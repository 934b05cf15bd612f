"""Report section of the corruption suite: tables, heat maps over severities and a picture."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from adautomix.data.corruptions.corrupted import CATEGORIES
from adautomix.evaluation.corruption import (
    PICTURE,
    CorruptionResult,
    Robustness,
    mce_against,
    picture_severity,
)
from adautomix.reporting.drawing import Chart, drawing, inline_svg, shorten
from adautomix.reporting.formatting import MISSING, decimals, percent
from adautomix.reporting.section import Evaluated, Picture, Section, Table, embedded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTE = (
    "Top-1 accuracy under common corruptions of the test images (Hendrycks and Dietterich, ICLR "
    "2019). “Generated” corruptions have the strengths of ImageNet-C at every image size: on "
    "32 × 32 images they are harder than CIFAR-10-C and CIFAR-100-C, so do not compare them with "
    "results on those sets."
)
MCE = (
    "Mean accuracy and mean corruption error (mCE) are means over all corruptions and severities; "
    "the mCE is not normalized by AlexNet."
)
AGAINST = (
    "The last column is normalized by the same network of {}: errors summed over severities, "
    "divided by those of the baseline, averaged over corruptions. Below 100 % a network is more "
    "robust than the baseline; a higher clean accuracy alone also lowers this value."
)
BY_CORRUPTION = "Means over severities. The first row, the original test images, is the control."
CAPTION = (
    "One row per corruption, from mild on the left to severe on the right; the number in a cell is "
    "the accuracy. Rows that turn dark early are corruptions that the network does not handle."
)
COLUMNS = ("run", "network", "images", "clean (%)", "mean accuracy (%)", "mCE (%)")
_BRIGHT = 0.55  # accuracy above which a cell is bright, so that its number is written in black

points = decimals(2, scale=100.0)

Results = Sequence[tuple[Evaluated, CorruptionResult]]


def section(results: Results) -> Section:
    """Return the section with means, accuracies by corruption, heat maps and pictures."""
    return Section(
        "corruption",
        "Corruptions",
        NOTE,
        [summary_table(results), table_by_corruption(results)],
        [heat_map(one, result, number) for number, (one, result) in enumerate(results)],
        pictures(results),
    )


def summary_table(results: Results) -> Table:
    """Return one row per network; several runs are also compared with one of them."""
    baseline, baseline_result = find_baseline(results)
    several = len(results) > 1
    rows = [
        (
            one.label,
            name,
            result.source,
            percent(network.clean),
            percent(network.mean_accuracy),
            percent(network.mce),
            *([normalized_mce(network, result, baseline_result, name)] if several else []),
        )
        for one, result in results
        for name, network in result.networks.items()
    ]
    columns = (*COLUMNS, *([f"mCE (% of {baseline.label})"] if several else []))
    note = f"{MCE} {AGAINST.format(baseline.label)}" if several else MCE
    return Table("Accuracy under corruptions", columns, rows, note)


def find_baseline(results: Results) -> tuple[Evaluated, CorruptionResult]:
    """Return what the others are compared with: the first run of vanilla, or the first run."""
    vanilla = [pair for pair in results if pair[0].evaluation.source.get("method") == "vanilla"]
    return (vanilla or list(results))[0]


def normalized_mce(
    network: Robustness, result: CorruptionResult, baseline: CorruptionResult, name: str
) -> str:
    """Return the mCE as a percentage of that of the baseline's network of the same name.

    It is "–" if the two were not scored on the same images.
    """
    base = baseline.networks.get(name)
    same = (result.severities, result.source) == (baseline.severities, baseline.source)
    return percent(mce_against(network, base)) if base and same else MISSING


def table_by_corruption(results: Results) -> Table:
    """Return one row per corruption, with the networks and teacher − student as columns."""
    columns: dict[str, dict[str, str]] = {}
    for one, result in results:
        prefix = f"{one.label}, " if len(results) > 1 else ""
        accuracies = {name: means(network) for name, network in result.networks.items()}
        for name, values in accuracies.items():
            columns[f"{prefix}{name} (%)"] = {row: percent(v) for row, v in values.items()}
        if accuracies.keys() >= {"student", "teacher"}:
            gains = {n: v - accuracies["student"][n] for n, v in accuracies["teacher"].items()}
            title = f"{prefix}teacher − student (points)"
            columns[title] = {row: points(v) for row, v in gains.items()}
    kinds = {"clean": MISSING} | {
        name: kind for kind, names in CATEGORIES.items() for name in names
    }
    rows = [
        (name.replace("_", " "), kind, *(column.get(name, MISSING) for column in columns.values()))
        for name, kind in kinds.items()
        if any(name in column for column in columns.values())
    ]
    titles = ("corruption", "kind", *columns)
    return Table("Top-1 accuracy by corruption", titles, rows, BY_CORRUPTION)


def means(network: Robustness) -> dict[str, float]:
    """Return the clean accuracy, and the mean over severities of each corruption, 0 to 1."""
    return {"clean": network.clean} | {name: fmean(v) for name, v in network.accuracy.items()}


def heat_map(one: Evaluated, result: CorruptionResult, number: int) -> Chart:
    """Return accuracy by corruption and severity, with one panel per network of a run."""
    from matplotlib.figure import Figure

    slug, title = f"corruption-{number}", f"Accuracy by corruption and severity: {one.label}"
    names = next(iter(result.networks.values())).accuracy
    with drawing(slug):
        size = (1.6 + 1.5 * len(result.networks), 1 + 0.19 * len(names))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(result.networks), sharey=True, squeeze=False)[0]
        for axes, (name, network) in zip(panels, result.networks.items(), strict=True):
            draw_panel(axes, f"{name}: top-1 (%)", network, result.severities)
        panels[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        panels[0].invert_yaxis()
        svg = inline_svg(figure, slug, shorten(title, 80))
    columns = ("corruption", "network", *(f"severity {s} (%)" for s in result.severities))
    return Chart(slug, title, CAPTION, svg, columns, number_rows(result))


def draw_panel(axes: "Axes", title: str, network: Robustness, severities: Sequence[int]) -> None:
    """Draw the accuracies of one network as colored cells; colors range from 0 to 100 %."""
    import numpy as np

    cells = 100 * np.array(list(network.accuracy.values()))
    columns, rows = range(cells.shape[1]), range(cells.shape[0])
    axes.pcolormesh(columns, rows, cells, shading="nearest", cmap="cividis", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(cells):
        color = "#000000" if value > 100 * _BRIGHT else "#ffffff"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("severity")
    axes.set_xticks(range(len(severities)), map(str, severities))


def number_rows(result: CorruptionResult) -> list[tuple[str, ...]]:
    """Return one row per corruption and network."""
    return [
        (corruption.replace("_", " "), name, *map(percent, network.accuracy[corruption]))
        for corruption in next(iter(result.networks.values())).accuracy
        for name, network in result.networks.items()
    ]


def pictures(results: Results) -> list[Picture]:
    """Return the pictures of the first test image that exist; equal pictures are shown once."""
    shown: dict[str, tuple[str, int]] = {}
    for one, result in results:
        if path := one.picture("corruption", PICTURE):
            shown.setdefault(embedded(path), (one.label, picture_severity(result.severities)))
    return [
        Picture(
            f"Corrupted images: {label}",
            f"One test image in its original form and under each corruption at severity {severity} "
            "of 5. Where a person cannot recognize the image, a network can hardly do so.",
            f"A test image of {label} under each corruption at severity {severity}.",
            source,
        )
        for source, (label, severity) in shown.items()
    ]
