"""Show stored evaluations: tables for the terminal, sections for report pages."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from adautomix.evaluation.accuracy import AccuracyResult
from adautomix.evaluation.record import Evaluation, read_evaluation
from adautomix.evaluation.registry import SUITES
from adautomix.reporting.comparison import Comparison
from adautomix.reporting.render import render, write_html
from adautomix.reporting.section import Evaluated, Section, Table
from adautomix.reporting.sections import section_builder
from adautomix.reporting.sections.accuracy import classified, sentences
from adautomix.reporting.verdict import cautions


def read_evaluated(folders: Sequence[Path]) -> list[Evaluated]:
    """Return the evaluations stored in some folders, each with a color of its own."""
    stored = [(folder, read_evaluation(folder)) for folder in dict.fromkeys(folders)]
    records = [(folder, record) for folder, record in stored if record is not None]
    return [
        Evaluated(record.target, record, folder, color)
        for color, (folder, record) in enumerate(records)
    ]


def evaluated_runs(comparison: Comparison) -> list[Evaluated]:
    """Return the evaluations in the folders of compared runs; seeds of a method share a color."""
    return [
        Evaluated(run.name, record, run.folder, color)
        for color, group in enumerate(comparison.groups)
        for run in group.runs
        if (record := read_evaluation(run.folder)) is not None
    ]


def evaluated_records(
    records: Sequence[Evaluation], comparison: Comparison | None = None
) -> list[Evaluated]:
    """Return evaluations that were read from single files, which have no pictures.

    A record with the name of a compared run gets the color of that run.
    """
    groups = comparison.groups if comparison else ()
    colors = {run.name: color for color, group in enumerate(groups) for run in group.runs}
    return [
        Evaluated(record.target, record, None, colors.get(record.target, len(groups) + i))
        for i, record in enumerate(records)
    ]


def write_evaluations(evaluated: Sequence[Evaluated], out: Path) -> Path:
    """Write one page with evaluations, and return its path."""
    html = render(
        "evaluation.html.j2",
        title=f"Evaluation of {', '.join(one.label for one in evaluated)}",
        leads=accuracy_sentences(evaluated),
        evaluated=evaluated,
        without_pictures=any(one.folder is None for one in evaluated),
        sections=evaluation_sections(evaluated),
    )
    return write_html(html, out)


def accuracy_sentences(evaluated: Sequence[Evaluated]) -> list[str]:
    """Return the plain sentence about each target that the accuracy suite was run on."""
    return sentences(accuracy_results(evaluated))


def accuracy_results(evaluated: Sequence[Evaluated]) -> list[tuple[Evaluated, AccuracyResult]]:
    """Return the results of the accuracy suite where it was run."""
    results = [(one, one.evaluation.result("accuracy")) for one in evaluated]
    return [(one, result) for one, result in results if isinstance(result, AccuracyResult)]


def evaluation_sections(evaluated: Sequence[Evaluated]) -> list[Section]:
    """Return one section per suite that was run on at least one of the targets."""
    sections = []
    for name in SUITES:
        results = [(one, result) for one in evaluated if (result := one.evaluation.result(name))]
        if results:
            sections.append(section_builder(name)(results))
    return sections + skipped_suites(evaluated)


def skipped_suites(evaluated: Sequence[Evaluated]) -> list[Section]:
    """Return a section with the reasons why suites were skipped; no section if none was."""
    rows: list[tuple[str, ...]] = [
        (f"{one.label}: {name}", reason)
        for one in evaluated
        for name, reason in one.evaluation.not_applicable.items()
    ]
    table = Table("Not applicable", ("suite", "reason"), rows)
    note = "These suites were requested but do not apply to the network or the data."
    return [Section("not-applicable", "Skipped suites", note, [table])] if rows else []


def evaluation_tables(evaluations: Mapping[str, Evaluation]) -> list[Table]:
    """Return the tables of all suites for the terminal, with all targets in each table."""
    evaluated = _without_folders(evaluations)
    return [table for section in evaluation_sections(evaluated) for table in section.tables]


def evaluation_verdicts(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Return the plain sentence about each target, and what its test images cannot tell."""
    results = accuracy_results(_without_folders(evaluations))
    notes = dict.fromkeys(line for one in classified(results) for line in cautions(one.best))
    return [*sentences(results), *(f"Note: {line}" for line in notes)]


def _without_folders(evaluations: Mapping[str, Evaluation]) -> list[Evaluated]:
    return [Evaluated(name, record, None, 0) for name, record in evaluations.items()]
