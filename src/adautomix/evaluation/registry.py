"""The table of evaluation suites: a new suite is one file in this package and one line here."""

from importlib import import_module

from adautomix.errors import UsageError
from adautomix.evaluation.suite import Suite

NAMES = (
    "accuracy",
    "calibration",
    "corruption",
    "attack",
    "occlusion",
    "transfer",
    "maps",
    "diversity",
)
"""Module names in this package, in the order in which suites run and are reported."""


def load_suite(name: str) -> Suite:
    """Return the `SUITE` defined by the module of that name in this package."""
    suite: Suite = import_module(f"adautomix.evaluation.{name}").SUITE
    return suite


SUITES: dict[str, Suite] = {name: load_suite(name) for name in NAMES}


def find_suite(name: str) -> Suite:
    """Return a suite by its name.

    Raises:
        UsageError: there is no suite of that name.
    """
    if name not in SUITES:
        raise UsageError(f"unknown suite {name!r}: use all, or some of {', '.join(SUITES)}")
    return SUITES[name]
