"""Sections of the report about evaluations: one file per suite, found by the suite's name."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from adautomix.reporting.section import Evaluated, Section

SectionBuilder = Callable[[Sequence[tuple[Evaluated, Any]]], Section]


def section_builder(suite: str) -> SectionBuilder:
    """Return the function `section(results)` of the module in this package named as the suite.

    `results` pairs each evaluated target with its result of that suite.
    """
    builder: SectionBuilder = import_module(f"adautomix.reporting.sections.{suite}").section
    return builder
