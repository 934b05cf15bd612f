"""Report section of the accuracy suite: scores, results per class, and wrong photos."""

from collections.abc import Sequence
from functools import partial

from adautomix.evaluation.accuracy import AccuracyResult
from adautomix.reporting.class_section import NOTE as CLASS_NOTE
from adautomix.reporting.class_section import Classified, class_section
from adautomix.reporting.formatting import METRIC_NOTE, shown_metrics
from adautomix.reporting.section import Evaluated, Section, Table
from adautomix.reporting.verdict import plain_sentence

NOTE = (
    "Every network is scored on the same test images, in float32. In a run, the student is the "
    f"trained network and the teacher is the moving average of its weights. {METRIC_NOTE}"
)


def section(results: Sequence[tuple[Evaluated, AccuracyResult]]) -> Section:
    """Return the section with one row per network, and the results per class where there are."""
    metrics = shown_metrics(scores for _, result in results for scores in result.networks.values())
    titles = [f"{one.title} ({one.unit})" if one.unit else one.title for one in metrics]
    rows = [
        (one.label, network, *(metric.show(scores.get(metric.key)) for metric in metrics))
        for one, result in results
        for network, scores in result.networks.items()
    ]
    table = Table("Accuracy on the test images", ("run", "network", *titles), rows)
    targets = classified(results)
    if not targets:
        return Section("accuracy", "Accuracy", NOTE, [table])
    parts = class_section("accuracy", "Accuracy", targets)
    return Section(
        "accuracy",
        "Accuracy",
        f"{NOTE} {CLASS_NOTE}",
        [table, *parts.tables],
        parts.charts,
        galleries=parts.galleries,
    )


def classified(results: Sequence[tuple[Evaluated, AccuracyResult]]) -> list[Classified]:
    """Return the results per class of each target that has some."""
    return [
        Classified(one.label, result.classes, partial(one.picture, "accuracy"))
        for one, result in results
        if result.classes
    ]


def sentences(results: Sequence[tuple[Evaluated, AccuracyResult]]) -> list[str]:
    """Return the plain sentence about each target."""
    several = len(results) > 1
    return [
        f"{one.label}: {plain_sentence(one.best)}" if several else plain_sentence(one.best)
        for one in classified(results)
    ]
