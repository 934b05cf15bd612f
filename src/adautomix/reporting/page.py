"""The report of runs: one self-contained HTML page without scripts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adautomix.errors import UsageError
from adautomix.evaluation.record import Evaluation
from adautomix.evaluation.target import EvalTarget
from adautomix.reporting import glance, overview
from adautomix.reporting.class_section import class_section
from adautomix.reporting.comparison import Comparison, compare_runs
from adautomix.reporting.drawing import Chart
from adautomix.reporting.evaluations import (
    evaluated_records,
    evaluated_runs,
    evaluation_sections,
    read_evaluated,
    write_evaluations,
)
from adautomix.reporting.formatting import (
    MEMORY_NOTE,
    METRIC_NOTE,
    MIXTURE_NOTE,
    NETWORKS,
    shorten_list,
    shown_metrics,
)
from adautomix.reporting.plots import curves, efficiency_chart, time_chart
from adautomix.reporting.render import render, write_html
from adautomix.reporting.significance import explain_tests, summarize_tests
from adautomix.reporting.sources import Sources
from adautomix.runs.lock import run_lock
from adautomix.runs.records import Run, read_runs

_FROM_ROWS = (
    "This page was written from a file of rows. Pictures of mixed samples and the curves of loss "
    "and learning rate are only in the run folders."
)
_NO_EPOCHS = (
    "The rows do not hold the scores of every evaluated epoch, so there are no accuracy curves."
)


def write_report(sources: Sources, out: Path) -> Path:
    """Write the report of runs, or of evaluation records if there are no runs.

    Returns:
        The path of the page.

    Raises:
        UsageError: `out` is a folder.
    """
    if sources.comparison is not None:
        return write_page(sources.comparison, out, sources.evaluations)
    refuse_folder(out)
    return write_evaluations(evaluated_records(sources.evaluations), out)


def write_page(comparison: Comparison, out: Path, evaluations: Sequence[Evaluation] = ()) -> Path:
    """Write the report of a comparison, and return its path.

    The page is self-contained: styles, charts and pictures are embedded, and it has no scripts.

    Args:
        comparison: what the page shows.
        out: the HTML file to write.
        evaluations: evaluation records to show besides those in the run folders.

    Raises:
        UsageError: `out` is a folder.
    """
    refuse_folder(out)
    runs = comparison.runs
    evaluated = evaluated_runs(comparison) + evaluated_records(evaluations, comparison)
    metrics = shown_metrics(
        run.summary.final[name] for run in runs if run.summary for name in run.summary.final
    )
    targets = glance.classified_runs(comparison)
    charts = [*curves(comparison)]
    pictures = overview.sample_pictures(comparison)
    newest = list({picture.run: picture for picture in pictures}.values())
    first_chart = glance.first_chart(targets, charts, single=len(runs) == 1)
    html = render(
        "report.html.j2",
        title=" on ".join(shorten_list(_facts(runs, name), 3) for name in ("method", "data")),
        leads=glance.leads(comparison, targets) or [summary_sentence(runs)],
        remarks=glance.remarks(comparison, targets),
        warnings=glance.page_warnings(comparison, targets),
        sentence=summary_sentence(runs),
        first_chart=_safe(first_chart),
        wrong=list(glance.wrong_photos(targets)) if len(runs) == 1 else [],
        classes=class_section("classes", "Classes", targets) if targets else None,
        source_note=source_note(comparison),
        runs=runs,
        networks=NETWORKS,
        metrics=metrics,
        metric_note=METRIC_NOTE,
        mixture_note=MIXTURE_NOTE,
        memory_note=MEMORY_NOTE,
        results=[overview.result_row(run, metrics) for run in runs],
        unfinished=[run for run in runs if not run.finished],
        best_splits=overview.best_splits(runs),
        means=overview.mean_rows(comparison, metrics),
        significance=[(test, overview.cells_of_test(test)) for test in comparison.tests],
        test_summary=summarize_tests(comparison.tests),
        test_notes=explain_tests(comparison.tests),
        equal_time=overview.equal_time_table(comparison),
        time_charts=_safe([*time_chart(comparison), *efficiency_chart(comparison)]),
        charts=_safe([chart for chart in charts if chart not in first_chart]),
        pictures=newest,
        earlier_pictures=[picture for picture in pictures if picture not in newest],
        evaluations=evaluation_sections(evaluated),
        settings=overview.settings_rows(runs),
        provenance=[(run, run.fact("command"), overview.provenance(run)) for run in runs],
    )
    return write_html(html, out)


def update_page(target: EvalTarget) -> Path:
    """Write the report of a run again after its evaluation, or a page for another target.

    Raises:
        UsageError: another process writes the folder.
    """
    out = target.folder / "report.html"
    with run_lock(target.folder):
        if target.run is not None and target.folder == target.run:
            return write_page(compare_runs(read_runs([target.run])), out)
        return write_evaluations(read_evaluated([target.folder]), out)


def refuse_folder(out: Path) -> None:
    """Check that a page can be written to a path.

    Raises:
        UsageError: the path is a folder.
    """
    if out.is_dir():
        raise UsageError(f"{out} is a folder: name the HTML file to write")


def source_note(comparison: Comparison) -> str:
    """Return what a page from a file of rows cannot show; "" for run folders."""
    if comparison.source is None:
        return ""
    has_epochs = any(run.evaluated for run in comparison.runs)
    return _FROM_ROWS if has_epochs else f"{_FROM_ROWS} {_NO_EPOCHS}"


def summary_sentence(runs: Sequence[Run]) -> str:
    """Return what was trained, in one sentence."""
    methods, seeds = _facts(runs, "method"), _facts(runs, "seed")
    verb = "trains" if len(runs) == 1 else "compare" if len(methods) > 1 else "train"
    parts = [
        f"{len(runs)} run{'' if len(runs) == 1 else 's'} {verb} {shorten_list(methods)}"
        f" on {shorten_list(_facts(runs, 'data'))} with {shorten_list(_facts(runs, 'model'))}",
        f"{shorten_list(_facts(runs, 'epochs'))} epochs",
        f"{'seeds' if len(seeds) > 1 else 'seed'} {shorten_list(seeds)}",
    ]
    unfinished = sum(not run.finished for run in runs)
    verb = "is" if unfinished == 1 else "are"
    rest = f"; {unfinished} of them {verb} unfinished" if unfinished else ""
    return f"{', '.join(parts)}{rest}."


def _facts(runs: Sequence[Run], name: str) -> list[str]:
    """Return the distinct values of a fact over the runs, in order of appearance."""
    values = (run.fact(name) for run in runs)
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def _safe(charts: Sequence[Chart]) -> list[tuple[Chart, Any]]:
    """Return each chart with its SVG marked as safe HTML; text in the SVG is already escaped."""
    from markupsafe import Markup

    return [(chart, Markup(chart.svg)) for chart in charts]
