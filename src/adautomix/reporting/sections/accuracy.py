"""Report section of the accuracy suite: a table."""

from collections.abc import Sequence

from adautomix.evaluation.accuracy import AccuracyResult
from adautomix.reporting.formatting import METRICS
from adautomix.reporting.section import Evaluated, Section, Table

NOTE = (
    "Every network is scored on the same test images, in float32. In a run, the student is the "
    "trained network and the teacher is the moving average of its weights. NLL is the mean "
    "negative log-likelihood of the true class. ECE, the expected calibration error, is the mean "
    "distance between confidence and accuracy."
)


def section(results: Sequence[tuple[Evaluated, AccuracyResult]]) -> Section:
    """Return the section with one row per network."""
    titles = [
        f"{metric.title} ({metric.unit})" if metric.unit else metric.title for metric in METRICS
    ]
    rows = [
        (one.label, network, *(metric.show(scores.get(metric.key)) for metric in METRICS))
        for one, result in results
        for network, scores in result.networks.items()
    ]
    table = Table("Accuracy on the test images", ("run", "network", *titles), rows)
    return Section("accuracy", "Accuracy", NOTE, [table])
