"""Show stored evaluations: tables for the terminal, sections for report pages."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from adautomix.evaluation.record import Evaluation, read_evaluation
from adautomix.evaluation.registry import SUITES
from adautomix.reporting.figures import groups
from adautomix.reporting.html import render, write_html
from adautomix.reporting.section import Evaluated, Section, Table
from adautomix.reporting.sections import section_builder
from adautomix.runs.records import Run


def write_evaluations(folders: Sequence[Path], out: Path) -> Path:
    """Write one page with the evaluations stored in some folders, and return its path."""
    stored = [(folder, read_evaluation(folder)) for folder in dict.fromkeys(folders)]
    records = [(folder, record) for folder, record in stored if record is not None]
    evaluated = [
        Evaluated(record.target, record, folder, color)
        for color, (folder, record) in enumerate(records)
    ]
    html = render(
        "evaluation.html.j2",
        title=f"Evaluation of {', '.join(one.label for one in evaluated)}",
        evaluated=evaluated,
        sections=evaluation_sections(evaluated),
    )
    return write_html(html, out)


def run_sections(runs: Sequence[Run]) -> list[Section]:
    """Return the sections of those runs that were evaluated; seeds of a method share a color."""
    evaluated = []
    for color, group in enumerate(groups(runs)):
        for run in group.runs:
            if (record := read_evaluation(run.folder)) is not None:
                evaluated.append(Evaluated(run.name, record, run.folder, color))
    return evaluation_sections(evaluated)


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
    note = "All suites were requested; these could not be applied."
    return [Section("not-applicable", "Skipped suites", note, [table])] if rows else []


def evaluation_tables(evaluations: Mapping[str, Evaluation]) -> list[Table]:
    """Return the tables of all suites for the terminal, with all targets in each table."""
    evaluated = [Evaluated(name, record, Path(), 0) for name, record in evaluations.items()]
    return [table for section in evaluation_sections(evaluated) for table in section.tables]
