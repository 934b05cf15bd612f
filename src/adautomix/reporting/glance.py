"""The top of a report: the plain sentence, what to be careful about, one chart and wrong photos."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from adautomix.class_results import ClassResults
from adautomix.reporting.class_charts import class_bars
from adautomix.reporting.class_section import Classified, wrong_gallery
from adautomix.reporting.comparison import Comparison
from adautomix.reporting.drawing import Chart
from adautomix.reporting.early_stops import early_stop_lines
from adautomix.reporting.flat_masks import flat_mask_lines
from adautomix.reporting.formatting import MAP, METRICS, NETWORKS, plus_minus
from adautomix.reporting.section import Gallery
from adautomix.reporting.snapshots import GroupSummary
from adautomix.reporting.verdict import (
    best_network,
    cautions,
    network_sentence,
    plain_sentence,
    worse_than_plain,
)
from adautomix.runs.folder import WRONG_PHOTOS
from adautomix.runs.records import Run

_MAX_TARGETS = 6  # runs whose classes one page shows
_MAX_LINES = 8  # methods that the top of a page names


def classified_runs(comparison: Comparison) -> list[Classified]:
    """Return the results per class of the first finished run of each method."""
    found = []
    for group in comparison.groups:
        runs = [run for run in group.runs if run.summary and run.summary.results]
        found += [classified_run(run) for run in runs[:1]]
    return found[:_MAX_TARGETS]


def classified_run(run: Run) -> Classified:
    """Return the results per class of a finished run that recorded them."""
    assert run.summary is not None
    assert run.summary.results is not None
    results: dict[str, ClassResults] = dict(run.summary.results.items())

    def picture(name: str) -> Path | None:
        path = run.folder / WRONG_PHOTOS / name
        return path if path.is_file() else None

    return Classified(run.name, results, picture)


def leads(comparison: Comparison, targets: Sequence[Classified]) -> list[str]:
    """Return the verdict: about one run its plain sentence, about several the methods in order.

    Empty if no run has finished, or the only one was written before results per class.
    """
    if len(comparison.runs) == 1:
        return [plain_sentence(one.best) for one in targets]
    scored = [line for one in comparison.summaries if (line := _best_mean(one))]
    return [text for _, text in sorted(scored, key=lambda line: -line[0])][:_MAX_LINES]


def _best_mean(summary: GroupSummary) -> tuple[float, str] | None:
    """Return the better network's mean score of a method, and that in words."""
    for metric in (MAP, METRICS[0]):
        means = {
            network: mean
            for network in NETWORKS
            if (mean := summary.final.score(network, metric.key)) is not None
        }
        if means:
            best = max(means, key=lambda name: (means[name].mean, name == "teacher"))
            seeds = "one seed" if summary.seeds == 1 else f"mean of {summary.seeds} seeds"
            score = plus_minus(means[best], metric.show)
            what = "right on the test photos" if metric is not MAP else "mean average precision"
            return means[best].mean, f"{summary.label}: {score} % {what} ({best}, {seeds})."
    return None


def remarks(comparison: Comparison, targets: Sequence[Classified]) -> list[str]:
    """Return which network a single run's verdict is about, and which runs were stopped early."""
    stops = early_stop_lines(comparison.runs)[:_MAX_LINES]
    if len(comparison.runs) != 1:
        return stops
    return [line for one in targets if (line := network_sentence(one.networks))] + stops


def page_warnings(comparison: Comparison, targets: Sequence[Classified]) -> list[str]:
    """Return what to be careful about or to try: small test sets, flat masks, worse methods."""
    small = dict.fromkeys(line for one in targets for line in cautions(one.best))
    return [*worse_than_plain(comparison), *flat_mask_lines(comparison.runs), *small]


def first_chart(
    targets: Sequence[Classified], charts: Sequence[Chart], *, single: bool
) -> list[Chart]:
    """Return the chart at the top: the classes of a single run, else the accuracy over epochs."""
    if single and targets:
        results = targets[0].best
        title = f"Right per class, {best_network(targets[0].networks)}"
        return [class_bars("glance-bars", title, results)]
    return list(charts[:1])


def wrong_photos(targets: Sequence[Classified]) -> Iterator[Gallery]:
    """Yield the most confident wrong photos of the better network of each run."""
    for one in targets:
        name = best_network(one.networks)
        if gallery := wrong_gallery(f"Most confident wrong photos, {name}", one.best, one):
            yield gallery
