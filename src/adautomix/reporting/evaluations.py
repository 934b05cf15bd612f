"""Evaluations read back and shown: tables for the terminal, sections for the page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from adautomix.evaluation.record import Evaluation, read_evaluation
from adautomix.evaluation.registry import SUITES
from adautomix.reporting.figures import groups
from adautomix.reporting.html import render, write_html
from adautomix.reporting.section import Found, Section, Table
from adautomix.reporting.sections import section_of
from adautomix.runs.records import Run


def write_evaluations(folders: Sequence[Path], out: Path) -> Path:
    """One page of the evaluations in some folders, whatever was evaluated there."""
    records = {
        folder: record for folder in folders if (record := read_evaluation(folder)) is not None
    }
    found = [
        Found(record.target, record, folder, color)
        for color, (folder, record) in enumerate(records.items())
    ]
    html = render(
        "evaluation.html.j2",
        title=f"Evaluation of {', '.join(one.label for one in found)}",
        found=found,
        sections=sections_of(found),
    )
    return write_html(html, out)


def of_runs(runs: Sequence[Run]) -> list[Section]:
    """The sections of the runs that were evaluated; seeds of one method share a color."""
    found = []
    for color, group in enumerate(groups(runs)):
        for run in group.runs:
            if (record := read_evaluation(run.folder)) is not None:
                found.append(Found(run.name, record, run.folder, color))
    return sections_of(found)


def sections_of(found: Sequence[Found]) -> list[Section]:
    """A section for every suite that at least one of them has."""
    sections = []
    for name in SUITES:
        having = [(one, result) for one in found if (result := one.evaluation.result(name))]
        if having:
            sections.append(section_of(name)(having))
    return sections + not_applicable(found)


def not_applicable(found: Sequence[Found]) -> list[Section]:
    """Why suites were left out where all were asked for; nothing where none was."""
    rows: list[tuple[str, ...]] = [
        (f"{one.label}: {name}", reason)
        for one in found
        for name, reason in one.evaluation.not_applicable.items()
    ]
    table = Table("Not applicable", ("suite", "reason"), rows)
    note = "All suites were asked for; these had nothing to say of what was evaluated."
    return [Section("not-applicable", "Suites left out", note, [table])] if rows else []


def evaluation_tables(found: Mapping[str, Evaluation]) -> list[Table]:
    """The tables of all suites, subjects side by side, for the terminal."""
    shown = [Found(name, record, Path(), 0) for name, record in found.items()]
    return [table for section in sections_of(shown) for table in section.tables]
