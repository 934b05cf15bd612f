"""Accuracy under corruptions: means, a row a corruption, heat maps over severities, a picture."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from adautomix.data.corruptions.corrupted import KINDS
from adautomix.evaluation.corruption import (
    PICTURE,
    CorruptionResult,
    Robustness,
    mce_against,
    pictured,
)
from adautomix.reporting.drawing import Chart, drawing, inline_svg, shorten
from adautomix.reporting.figures import MISSING, decimals, percent
from adautomix.reporting.section import Found, Picture, Section, Table, embedded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTE = (
    "Top-1 under common corruptions of the test images (Hendrycks and Dietterich, ICLR 2019). "
    "“Generated” ones have the strengths of ImageNet-C at every image size: on 32 × 32 images they "
    "are harder than CIFAR-10-C and CIFAR-100-C, and not to be compared with figures on those."
)
MCE = (
    "Mean accuracy and mCE, the mean corruption error, are over all corruptions and severities; "
    "the mCE is not normalized by AlexNet."
)
AGAINST = (
    "The last column is normalized by the same network of {}: errors summed over severities, "
    "divided by its own, averaged over corruptions. Below 100 % a network is the sturdier of the "
    "two; a gain of the clean accuracy alone brings it below, too."
)
BY_CORRUPTION = "Mean over severities. The first row, the test images as they are, is the control."
CAPTION = (
    "A row a corruption, mild on the left and severe on the right; the number in a cell is the "
    "accuracy. Rows that darken early are what the network has not learned to see through."
)
COLUMNS = ("run", "network", "images", "clean (%)", "mean accuracy (%)", "mCE (%)")
_TOP_COLOUR = 0.55  # of the accuracy from which a cell is bright and its number is dark
points = decimals(2, scale=100.0)

All = Sequence[tuple[Found, CorruptionResult]]


def section(found: All) -> Section:
    """The means of each network, each corruption, and a heat map a run."""
    return Section(
        "corruption",
        "Corruptions",
        NOTE,
        [summary(found), by_corruption(found)],
        [heat_map(one, result, number) for number, (one, result) in enumerate(found)],
        pictures(found),
    )


def summary(found: All) -> Table:
    """A row a network; where there are several runs, also held against one of them."""
    base, bases = baseline(found)
    several = len(found) > 1
    rows = [
        (
            one.label,
            name,
            result.source,
            percent(network.clean),
            percent(network.mean_accuracy),
            percent(network.mce),
            *([against(network, result, bases, name)] if several else []),
        )
        for one, result in found
        for name, network in result.networks.items()
    ]
    columns = (*COLUMNS, *([f"mCE (% of {base.label})"] if several else []))
    note = f"{MCE} {AGAINST.format(base.label)}" if several else MCE
    return Table("Under corruptions", columns, rows, note)


def baseline(found: All) -> tuple[Found, CorruptionResult]:
    """What the others are held against: the first run of vanilla, or the first."""
    plain = [pair for pair in found if pair[0].evaluation.source.get("method") == "vanilla"]
    return (plain or list(found))[0]


def against(
    network: Robustness, result: CorruptionResult, bases: CorruptionResult, name: str
) -> str:
    """The mCE of a network normalized by its like, where both were tried on the same images."""
    base = bases.networks.get(name)
    alike = (result.severities, result.source) == (bases.severities, bases.source)
    return percent(mce_against(network, base)) if base and alike else MISSING


def by_corruption(found: All) -> Table:
    """A row a corruption, a column a network, and how much further the teacher is."""
    columns: dict[str, dict[str, str]] = {}
    for one, result in found:
        before = f"{one.label}, " if len(found) > 1 else ""
        accuracies = {name: means(network) for name, network in result.networks.items()}
        for name, values in accuracies.items():
            columns[f"{before}{name} (%)"] = {row: percent(v) for row, v in values.items()}
        if accuracies.keys() >= {"student", "teacher"}:
            ahead = {n: v - accuracies["student"][n] for n, v in accuracies["teacher"].items()}
            title = f"{before}teacher − student (points)"
            columns[title] = {row: points(v) for row, v in ahead.items()}
    kinds = {"clean": MISSING} | {name: kind for kind, names in KINDS.items() for name in names}
    rows = [
        (name.replace("_", " "), kind, *(column.get(name, MISSING) for column in columns.values()))
        for name, kind in kinds.items()
        if any(name in column for column in columns.values())
    ]
    titles = ("corruption", "kind", *columns)
    return Table("Top-1 by corruption", titles, rows, BY_CORRUPTION)


def means(network: Robustness) -> dict[str, float]:
    """Accuracy on clean images and the mean over severities of each corruption, 0 to 1."""
    return {"clean": network.clean} | {name: fmean(v) for name, v in network.accuracy.items()}


def heat_map(one: Found, result: CorruptionResult, number: int) -> Chart:
    """Accuracy by corruption and severity, the networks of one run side by side."""
    from matplotlib.figure import Figure

    slug, title = f"corruption-{number}", f"Accuracy by corruption and severity: {one.label}"
    names = next(iter(result.networks.values())).accuracy
    with drawing(slug):
        size = (1.6 + 1.5 * len(result.networks), 1 + 0.19 * len(names))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(result.networks), sharey=True, squeeze=False)[0]
        for axes, (name, network) in zip(panels, result.networks.items(), strict=True):
            draw_cells(
                axes,
                [100 * a for values in network.accuracy.values() for a in values],
                len(result.severities),
            )
            axes.set_title(f"{name}: top-1 (%)", fontsize=9)
            axes.set_xlabel("severity")
            axes.set_xticks(range(len(result.severities)), map(str, result.severities))
        panels[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        panels[0].invert_yaxis()
        svg = inline_svg(figure, slug, shorten(title, 80))
    columns = ("corruption", "network", *(f"severity {s} (%)" for s in result.severities))
    return Chart(slug, title, CAPTION, svg, columns, numbers(result))


def draw_cells(axes: "Axes", values: Sequence[float], columns: int) -> None:
    """Percentages row by row as colored cells with their numbers; all colors span 0 to 100."""
    import numpy as np

    cells = np.reshape(values, (-1, columns))
    rows = range(len(cells))
    axes.pcolormesh(
        range(columns), rows, cells, shading="nearest", cmap="cividis", vmin=0, vmax=100
    )
    for (row, column), value in np.ndenumerate(cells):
        color = "#000000" if value > 100 * _TOP_COLOUR else "#ffffff"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
    axes.grid(False)
    axes.tick_params(length=0)


def numbers(result: CorruptionResult) -> list[tuple[str, ...]]:
    """A row a corruption and network."""
    return [
        (corruption.replace("_", " "), name, *map(percent, network.accuracy[corruption]))
        for corruption in next(iter(result.networks.values())).accuracy
        for name, network in result.networks.items()
    ]


def pictures(found: All) -> list[Picture]:
    """What the first test image looked like, once where runs saw the same."""
    shown: dict[str, tuple[str, int]] = {}
    for one, result in found:
        if (path := one.picture("corruption", PICTURE)).is_file():
            shown.setdefault(embedded(path), (one.label, pictured(result.severities)))
    return [
        Picture(
            f"What the corruptions do: {label}",
            f"One test image as it is and under each corruption at severity {severity} of 5. "
            "Where you cannot tell what it was, a network can hardly be blamed.",
            f"A test image of {label} under each corruption at severity {severity}.",
            source,
        )
        for source, (label, severity) in shown.items()
    ]
