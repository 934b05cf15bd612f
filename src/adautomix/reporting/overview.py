"""Cells of the report that are about whole runs: results, means, tests, settings, provenance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adautomix.reporting.comparison import Comparison
from adautomix.reporting.formatting import (
    METRICS,
    MISSING,
    NETWORKS,
    Metric,
    difference_plus_minus,
    mebibytes,
    percent,
    plus_minus,
    points_range,
    seconds,
    six_digits,
)
from adautomix.reporting.groups import differing_settings, flatten
from adautomix.reporting.section import embedded
from adautomix.reporting.significance import TITLES, PairedTest
from adautomix.reporting.snapshots import GroupSnapshot, GroupSummary, peak_memory
from adautomix.reporting.statistics import Interval
from adautomix.runs.records import Run, number_at
from adautomix.subsample import subsample

_MAX_PICTURES_PER_RUN = 4
_MAX_PICTURES = 8  # Unless there are more methods: the page should be small enough to mail.


@dataclass(frozen=True)
class SamplePicture:
    """An embedded picture of mixed samples.

    Attributes:
        run: name of the run.
        name: name of the picture, such as "epoch_010".
        source: data URI.
    """

    run: str
    name: str
    source: str


# ---------------------------------------------------------------------- results


def result_row(run: Run, metrics: Sequence[Metric] = METRICS) -> dict[str, Any]:
    """Return one row of the table of results."""
    best = None if run.summary is None else run.summary.best
    return {
        "run": run.name,
        "method": run.method,
        "seed": MISSING if run.fact("seed") is None else run.fact("seed"),
        "state": "" if run.finished else _progress(run),
        "scores": [m.show(run.figure(network, m.key)) for network in NETWORKS for m in metrics],
        "best": percent(number_at(best, "top1")),
        "best_note": f"{best.network}, epoch {best.epoch}" if best else "",
        "seconds": seconds(run.seconds),
        "memory": mebibytes(peak_memory(run)),
    }


def _progress(run: Run) -> str:
    done = run.epoch_rows[-1].epoch if run.epoch_rows else 0
    return f"unfinished: epoch {done} of {run.fact('epochs') or '?'}"


def best_splits(runs: Sequence[Run]) -> list[str]:
    """Return the splits on which the best epochs in summaries were chosen."""
    best = [run.summary.best for run in runs if run.summary is not None]
    return sorted({one.split for one in best if one is not None})


def mean_rows(comparison: Comparison, metrics: Sequence[Metric] = METRICS) -> list[dict[str, Any]]:
    """Return the table of means over seeds; empty if no method has two seeds."""
    summaries = comparison.summaries
    several = any(summary.seeds > 1 for summary in summaries)
    return [_mean_row(summary, metrics) for summary in summaries] if several else []


def _mean_row(summary: GroupSummary, metrics: Sequence[Metric]) -> dict[str, Any]:
    return {
        "label": summary.label,
        "n": summary.seeds,
        "scores": [
            plus_minus(summary.final.score(network, metric.key), metric.show)
            for network in NETWORKS
            for metric in metrics
        ],
        "seconds": plus_minus(summary.final.seconds, seconds),
        "memory": plus_minus(summary.memory, mebibytes),
    }


# ---------------------------------------------------------------------- comparisons


def cells_of_test(test: PairedTest) -> list[str]:
    """Return the numbers of a significance test."""
    return [
        TITLES[test.metric],
        str(len(test.differences)),
        difference_plus_minus(test.interval, test.metric),
        points_range(test.bootstrap),
        difference_plus_minus(test.equal_time_interval, test.metric),
    ]


def equal_time_table(comparison: Comparison) -> dict[str, Any]:
    """Return accuracy at equal epochs, equal time and best epoch; empty for a single method."""
    clock = comparison.equal_time
    if clock is None:
        return {}
    devices = {run.fact("device") for run in comparison.runs if run.finished}
    summaries = [summary for summary in comparison.summaries if summary.seeds]
    return {
        "fastest": clock.fastest,
        "seconds": seconds(clock.seconds),
        "machines": len(devices),
        "best_splits": sorted({split for one in summaries for split in one.best_splits}),
        "rows": [_equal_time_row(summary) for summary in summaries],
    }


def _equal_time_row(summary: GroupSummary) -> dict[str, Any]:
    """Return the top-1 accuracies of both networks, then the epochs they were reached at."""
    equal_time = summary.equal_time or GroupSnapshot()
    best = summary.best or GroupSnapshot()
    epochs = [equal_time.epochs.get("student"), *(best.epochs.get(n) for n in NETWORKS)]
    return {
        "label": summary.label,
        "scores": [
            plus_minus(snapshot.score(network, "top1"), percent)
            for network in NETWORKS
            for snapshot in (summary.final, equal_time, best)
        ],
        "epochs": [_mean_epoch(epoch) for epoch in epochs],
    }


def _mean_epoch(interval: Interval | None) -> str:
    return MISSING if interval is None else six_digits(round(interval.mean, 1))


# ---------------------------------------------------------------------- samples and settings


def sample_pictures(comparison: Comparison) -> list[SamplePicture]:
    """Return pictures of the first run of each method, fewer per method if there are many."""
    runs = [group.runs[0] for group in comparison.groups]
    per_run = min(_MAX_PICTURES_PER_RUN, max(1, _MAX_PICTURES // len(runs)))
    return [
        SamplePicture(run.name, path.stem, embedded(path))
        for run in runs
        for path in subsample(run.samples, per_run)
    ]


def settings_rows(runs: Sequence[Run]) -> dict[str, list[tuple[str, list[str]]]]:
    """Return settings by dotted name with one value per run: those that differ, and all."""
    tables = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = {name: [_text(table.get(name)) for table in tables] for name in names}
    differing = [(name, rows[name]) for name in differing_settings(runs)]
    return {"differing": differing, "all": list(rows.items())}


def provenance(run: Run) -> list[tuple[str, str]]:
    """Return how a run was made as (term, text); the page shows the command separately."""
    classes = run.summary.classes if run.summary else []
    versions = run.summary.versions.items() if run.summary else ()
    facts = {
        "Machine": run.fact("device"),
        "Precision": run.fact("precision"),
        "Seed": run.fact("seed"),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions),
        "Epochs": run.fact("epochs"),
        "Steps": _count(run.fact("steps")),
        "Training images": _count(run.fact("train_images")),
        "Test images": _count(run.fact("test_images")),
        "Parameters": _count(run.fact("parameters")),
        f"Classes ({len(classes)})" if classes else "Classes": ", ".join(classes),
    }
    return [(term, _text(value)) for term, value in facts.items()]


def _text(value: Any) -> str:
    return MISSING if value is None or value == "" else str(value)


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"
