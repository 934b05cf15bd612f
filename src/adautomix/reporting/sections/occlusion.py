"""Occlusion: accuracy over the share hidden, and what the networks were shown."""

from collections.abc import Sequence

from adautomix.evaluation.occlusion import PICTURE, PICTURED_SHARES, OcclusionResult
from adautomix.pictures.thin import thin
from adautomix.reporting.drawing import Series, line_chart
from adautomix.reporting.figures import decimals, percent
from adautomix.reporting.section import Found, Picture, Section, Table, embedded, line_style

NOTE = (
    "Random patches of every image are painted in the mean color of the training data, "
    "others in each image. With everything hidden all images are alike: what is left is the share "
    "of the one class that the network then names."
)
AREA = "The area is that under the accuracy, 0 to 1, over the share hidden, 0 to 1."
CAPTION = (
    "Top-1 accuracy as more patches are hidden. A line that stays up longer needs less of the "
    "image; compare the shapes where lines start at different heights."
)
_TABLE_SHARES, _CHART_SHARES = 5, 11


def section(found: Sequence[tuple[Found, OcclusionResult]]) -> Section:
    """The area under each network's curve, the curves, and a picture of each run."""
    shares = sorted({share for _, result in found for share in result.fractions})
    few, many = thin(shares, _TABLE_SHARES), thin(shares, _CHART_SHARES)
    rows = [
        (
            one.label,
            name,
            str(result.patch),
            decimals(4)(curve.area),
            *accuracies(result, name, few),
        )
        for one, result in found
        for name, curve in result.networks.items()
    ]
    columns = ("run", "network", "patch (px)", "area under the curve", *map(hidden, few))
    table = Table("Top-1 (%) with a share of the patches hidden", columns, rows, AREA)
    chart = line_chart(
        "occlusion-curve",
        "Accuracy over the share hidden",
        CAPTION,
        lines(found),
        x_label="patches hidden (%)",
        y_label="top-1 on test (%)",
        columns=("network", *map(hidden, many)),
        rows=[
            (f"{one.label}, {name}", *accuracies(result, name, many))
            for one, result in found
            for name in result.networks
        ],
    )
    return Section("occlusion", "Occlusion", NOTE, [table], [chart], pictures(found))


def lines(found: Sequence[tuple[Found, OcclusionResult]]) -> list[Series]:
    """A line a network."""
    return [
        Series(
            f"{one.label}, {name}",
            [100 * share for share in result.fractions],
            [100 * accuracy for accuracy in curve.accuracy],
            one.color,
            line_style(name),
        )
        for one, result in found
        for name, curve in result.networks.items()
    ]


def hidden(share: float) -> str:
    """A share as the title of a column."""
    return f"{100 * share:.4g} %"


def accuracies(result: OcclusionResult, network: str, shares: Sequence[float]) -> list[str]:
    """Accuracy of a network at some shares, where they were asked for."""
    known = dict(zip(result.fractions, result.networks[network].accuracy, strict=True))
    return [percent(known.get(share)) for share in shares]


def pictures(found: Sequence[tuple[Found, OcclusionResult]]) -> list[Picture]:
    """What the images looked like, where the picture is there; once where runs saw the same."""
    text = ", ".join(f"{share:.0%}" for share in PICTURED_SHARES)
    shown: dict[str, str] = {}
    for one, _ in found:
        if (path := one.picture("occlusion", PICTURE)).is_file():
            shown.setdefault(embedded(path), one.label)
    return [
        Picture(
            f"What was hidden: {label}",
            f"Test images, one a row, with {text} of their patches hidden, from left to right.",
            f"Test images of {label}, covered by more and more patches of one color.",
            source,
        )
        for source, label in shown.items()
    ]
