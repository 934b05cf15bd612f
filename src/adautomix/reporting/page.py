"""The report: one HTML page that holds everything and asks for nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from adautomix.errors import UsageError
from adautomix.evaluation.target import EvalTarget
from adautomix.reporting.drawing import Chart
from adautomix.reporting.evaluations import run_sections, write_evaluations
from adautomix.reporting.figures import (
    MEMORY,
    METRICS,
    MISSING,
    NETWORKS,
    EqualTime,
    Group,
    Interval,
    at_best,
    differing,
    duration,
    equal_time,
    final,
    flatten,
    groups,
    mebibytes,
    peak_memory,
    percent,
    plus_minus,
    significant,
    t_interval,
)
from adautomix.reporting.html import render, write_html
from adautomix.reporting.plots import curves, efficiency_chart, time_chart
from adautomix.reporting.section import embedded
from adautomix.reporting.significance import Verdict, difference, how_to_read, significance, span
from adautomix.runs.records import Run, number_at, read_runs
from adautomix.runs.schema import BestEpoch
from adautomix.subsample import subsample

_MAX_SAMPLES = 4  # pictures of one run
_MAX_PICTURES = 8  # of all runs, as long as each method has one: a page is to be sent by mail


@dataclass(frozen=True)
class Sample:
    """An embedded picture of mixes with the words that stand for it."""

    run: str
    name: str
    source: str


def write_page(runs: Sequence[Path], out: Path, *, baseline: str | None = None) -> Path:
    """Write the report of the run folders `runs` to the file `out`, and return its path.

    The page is self-contained: styles, curves and pictures are inside it, scripts there are none.
    Methods are held against `baseline`; none: vanilla, or the first.
    Raises UsageError where `runs` is empty, one is no run folder, none is of the baseline, or
    `out` is a folder.
    """
    out = Path(out)
    if out.is_dir():
        raise UsageError(f"{out} is a folder: name the HTML file to write")
    read = read_runs(runs)
    found = significance(read, baseline)
    html = render(
        "report.html.j2",
        title=_title(read),
        sentence=summary_sentence(read),
        runs=read,
        networks=NETWORKS,
        metrics=METRICS,
        memory=MEMORY,
        results=[_result(run) for run in read],
        unfinished=[run for run in read if not run.finished],
        splits=sorted({best.split for run in read if (best := _best(run))}),
        means=_means(read),
        significance=[(verdict, _verdict(verdict)) for verdict in found],
        how_to_read=how_to_read(found),
        moments=_moments(read),
        time_chart=_drawn([*time_chart(read), *efficiency_chart(read)]),
        charts=_drawn(curves(read)),
        pictures=_pictures(read),
        evaluations=run_sections(read),
        settings=_settings(read),
        making=[(run, run.fact("command"), _making(run)) for run in read],
    )
    return write_html(html, out)


def write_evaluation_page(target: EvalTarget) -> Path:
    """Rewrite the report of a run, or write a page for a target that is not a run."""
    if target.run is not None and target.folder == target.run:
        return write_page([target.run], target.run / "report.html")
    return write_evaluations([target.folder], target.folder / "report.html")


def _drawn(charts: Sequence[Chart]) -> list[tuple[Chart, Any]]:
    from markupsafe import Markup

    return [(chart, Markup(chart.svg)) for chart in charts]


def _title(runs: Sequence[Run]) -> str:
    return f"{listing(_facts(runs, 'method'), 3)} on {listing(_facts(runs, 'data'), 3)}"


def summary_sentence(runs: Sequence[Run]) -> str:
    """What was compared, in one sentence."""
    methods, seeds = _facts(runs, "method"), _facts(runs, "seed")
    verb = "trains" if len(runs) == 1 else "compare" if len(methods) > 1 else "train"
    parts = [
        f"{_count(len(runs), 'run')} {verb} {listing(methods)} on {listing(_facts(runs, 'data'))}"
        f" with {listing(_facts(runs, 'model'))}",
        f"{listing(_facts(runs, 'epochs'))} epochs",
        f"{'seeds' if len(seeds) > 1 else 'seed'} {listing(seeds)}",
    ]
    unfinished = sum(not run.finished for run in runs)
    rest = f"; {unfinished} of them unfinished" if unfinished else ""
    return f"{', '.join(parts)}{rest}."


def listing(items: Iterable[str], limit: int = 8) -> str:
    """Words in a row: "a", "a and b", "a, b and c"; "a, b and 7 more" beyond `limit`."""
    words = list(items) or [MISSING]
    if len(words) > limit:
        words = [*words[: limit - 1], f"{len(words) - limit + 1} more"]
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last


def _facts(runs: Sequence[Run], name: str) -> list[str]:
    """The different values of one fact over the runs, in the order they turn up."""
    values = (run.fact(name) for run in runs)
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _best(run: Run) -> BestEpoch | None:
    return None if run.summary is None else run.summary.best


def _result(run: Run) -> dict[str, Any]:
    """One row of the table of results, written out."""
    best = _best(run)
    return {
        "run": run.name,
        "method": run.method,
        "seed": MISSING if run.fact("seed") is None else run.fact("seed"),
        "state": "" if run.finished else _progress(run),
        "figures": [m.show(run.figure(network, m.key)) for network in NETWORKS for m in METRICS],
        "best": percent(number_at(best, "top1")),
        "best_note": f"{best.network}, epoch {best.epoch}" if best else "",
        "seconds": duration(run.seconds),
        "memory": mebibytes(peak_memory(run)),
    }


def _progress(run: Run) -> str:
    done = run.epoch_rows[-1].epoch if run.epoch_rows else 0
    return f"unfinished: epoch {done} of {run.fact('epochs') or '?'}"


def _means(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Rows of the table of means over seeds; none where no method was run with two seeds."""
    found = groups(runs)
    return [_mean(group) for group in found] if any(group.seeds > 1 for group in found) else []


def _mean(group: Group) -> dict[str, Any]:
    return {
        "label": group.label,
        "n": group.seeds,
        "figures": [
            plus_minus(group.interval(final(network, metric.key)), metric.show)
            for network in NETWORKS
            for metric in METRICS
        ],
        "seconds": plus_minus(group.interval(lambda run: run.seconds), duration),
        "memory": plus_minus(group.interval(peak_memory), mebibytes),
    }


def _verdict(verdict: Verdict) -> list[str]:
    """The numbers of a verdict, written out."""
    at_equal_time = verdict.at_equal_time
    return [
        str(len(verdict.differences)),
        difference(verdict.interval),
        span(verdict.on_images),
        difference(t_interval(at_equal_time)) if at_equal_time else MISSING,
    ]


def _moments(runs: Sequence[Run]) -> dict[str, Any]:
    """What each method had reached at equal epochs, at equal time, and at its best."""
    found = [group for group in groups(runs) if group.seeds]
    clock = equal_time(found)
    if clock is None:
        return {}
    machines = {run.fact("device") for group in found for run in group.runs if run.finished}
    return {
        "fastest": clock.fastest,
        "seconds": duration(fmean(clock.ends.values())),
        "machines": len(machines),
        "picked_on": sorted({run.picked_on for run in runs if run.evaluated}),
        "rows": [_moment(group, clock) for group in found],
    }


def _moment(group: Group, clock: EqualTime) -> dict[str, Any]:
    """One row of the table of moments: of each network the top-1 at each of them, and epochs."""
    readers = {
        network: (
            final(network, "top1"),
            clock.figure(network, "top1"),
            at_best(network, network, "top1"),
        )
        for network in NETWORKS
    }
    epochs = [clock.figure("epoch"), *(at_best(network, "epoch") for network in NETWORKS)]
    return {
        "label": group.label,
        "n": group.seeds,
        "figures": [
            plus_minus(group.interval(reader), percent)
            for network in NETWORKS
            for reader in readers[network]
        ],
        "epochs": [_mean_of(group.interval(reader)) for reader in epochs],
    }


def _mean_of(interval: Interval | None) -> str:
    return MISSING if interval is None else significant(round(interval.mean, 1))


def _pictures(runs: Sequence[Run]) -> list[Sample]:
    """Samples of the first seed of every method, fewer of each where there are many."""
    shown = [group.runs[0] for group in groups(runs)]
    each = min(_MAX_SAMPLES, max(1, _MAX_PICTURES // len(shown)))
    return [
        Sample(run.name, path.stem, embedded(path))
        for run in shown
        for path in subsample(run.samples, each)
    ]


def _settings(runs: Sequence[Run]) -> dict[str, list[tuple[str, list[str]]]]:
    """Settings by dotted name with a value a run: those that differ, and all."""
    tables = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = {name: [_written(table.get(name)) for table in tables] for name in names}
    apart = differing(runs)
    return {"differing": [(name, rows[name]) for name in apart], "all": list(rows.items())}


def _written(value: Any) -> str:
    return MISSING if value is None or value == "" else str(value)


def _making(run: Run) -> list[tuple[str, str]]:
    """How a run was made, as (term, text); the command apart, since it is set as code."""
    classes = run.summary.classes if run.summary else []
    versions = run.summary.versions.items() if run.summary else ()
    facts = {
        "Machine": run.fact("device"),
        "Precision": run.fact("precision"),
        "Seed": run.fact("seed"),
        "Commit": run.fact("commit"),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions),
        "Epochs": run.fact("epochs"),
        "Steps": _grouped(run.fact("steps")),
        "Training images": _grouped(run.fact("train_images")),
        "Test images": _grouped(run.fact("test_images")),
        "Parameters": _grouped(run.fact("parameters")),
        f"Classes ({len(classes)})" if classes else "Classes": ", ".join(classes),
    }
    return [(term, _written(value)) for term, value in facts.items()]


def _grouped(count: int | None) -> str | None:
    return None if count is None else f"{count:,}"
