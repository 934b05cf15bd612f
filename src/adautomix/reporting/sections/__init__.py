"""Sections of the report, one file per suite, found by the name of the suite."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from adautomix.reporting.section import Found, Section

SectionBuilder = Callable[[Sequence[tuple[Found, Any]]], Section]


def section_of(suite: str) -> SectionBuilder:
    """Return the `section` function of the module named as the suite."""
    builder: SectionBuilder = import_module(f"adautomix.reporting.sections.{suite}").section
    return builder
