"""Report section of the occlusion suite: accuracy over the fraction hidden, and example images."""

from collections.abc import Sequence

from adautomix.evaluation.occlusion import PICTURE, PICTURE_FRACTIONS, OcclusionResult
from adautomix.reporting.drawing import Chart, Series, line_chart
from adautomix.reporting.formatting import decimals, percent
from adautomix.reporting.section import (
    Evaluated,
    Picture,
    Section,
    Table,
    embedded,
    line_style,
)
from adautomix.subsample import subsample

NOTE = (
    "Random patches of every image are painted in the mean color of the training data; each image "
    "has its own random patches. When everything is hidden, all images are equal, and the accuracy "
    "that remains is the fraction of the one class that the network then predicts."
)
AREA = (
    "The area is that under the curve of accuracy, 0 to 1, over the fraction of hidden patches, "
    "0 to 1."
)
CAPTION = (
    "Top-1 accuracy as more patches are hidden. A network whose line stays high longer needs less "
    "of the image; where lines start at different heights, compare their shapes."
)
_TABLE_COLUMNS, _CHART_COLUMNS = 5, 11

Results = Sequence[tuple[Evaluated, OcclusionResult]]


def section(results: Results) -> Section:
    """Return the section with the areas, the curves and a picture of the hidden patches."""
    return Section(
        "occlusion",
        "Occlusion",
        NOTE,
        [area_table(results)],
        [accuracy_chart(results)],
        pictures(results),
    )


def fractions_in(results: Results, limit: int) -> list[float]:
    """Return the fractions at which some network was scored, thinned out to at most `limit`."""
    return subsample(sorted({f for _, result in results for f in result.fractions}), limit)


def area_table(results: Results) -> Table:
    """Return the area under each network's curve, and its accuracy at a few fractions."""
    fractions = fractions_in(results, _TABLE_COLUMNS)
    rows = [
        (
            one.label,
            name,
            str(result.patch),
            decimals(4)(curve.area),
            *accuracy_cells(result, name, fractions),
        )
        for one, result in results
        for name, curve in result.networks.items()
    ]
    columns = ("run", "network", "patch (px)", "area under the curve", *map(column, fractions))
    return Table("Top-1 (%) by the percentage of patches hidden", columns, rows, AREA)


def accuracy_chart(results: Results) -> Chart:
    """Return the curves of all networks."""
    fractions = fractions_in(results, _CHART_COLUMNS)
    return line_chart(
        "occlusion-curve",
        "Accuracy over the percentage of patches hidden",
        CAPTION,
        lines(results),
        x_label="patches hidden (%)",
        y_label="top-1 on test images (%)",
        columns=("network", *map(column, fractions)),
        rows=[
            (f"{one.label}, {name}", *accuracy_cells(result, name, fractions))
            for one, result in results
            for name in result.networks
        ],
    )


def lines(results: Results) -> list[Series]:
    """Return one line per network."""
    return [
        Series(
            f"{one.label}, {name}",
            [100 * fraction for fraction in result.fractions],
            [100 * accuracy for accuracy in curve.accuracy],
            one.color,
            line_style(name),
        )
        for one, result in results
        for name, curve in result.networks.items()
    ]


def column(fraction: float) -> str:
    """Return a fraction as the title of a column."""
    return f"{100 * fraction:.4g} %"


def accuracy_cells(result: OcclusionResult, network: str, fractions: Sequence[float]) -> list[str]:
    """Return the accuracy of a network at some fractions; "–" where it was not scored."""
    scores = dict(zip(result.fractions, result.networks[network].accuracy, strict=True))
    return [percent(scores.get(fraction)) for fraction in fractions]


def pictures(results: Results) -> list[Picture]:
    """Return the pictures of hidden patches that exist; equal pictures are shown once."""
    percentages = ", ".join(f"{fraction:.0%}" for fraction in PICTURE_FRACTIONS)
    labels: dict[str, str] = {}
    for one, _ in results:
        if path := one.picture("occlusion", PICTURE):
            labels.setdefault(embedded(path), one.label)
    return [
        Picture(
            f"Hidden patches: {label}",
            f"Test images, one per row, with {percentages} of their patches hidden, from left to "
            "right.",
            f"Test images of {label}, covered by more and more patches of one color.",
            source,
        )
        for source, label in labels.items()
    ]
