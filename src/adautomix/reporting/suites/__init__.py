"""How each suite is shown: `section(found)` of the subjects that have it, one file a suite."""

from collections.abc import Callable, Sequence
from typing import Any

from adautomix.reporting.sections import Found, Section
from adautomix.reporting.suites import accuracy

SECTIONS: dict[str, Callable[[Sequence[tuple[Found, Any]]], Section]] = {
    "accuracy": accuracy.section,
}
"""By the name of the suite, in the order of the page."""
