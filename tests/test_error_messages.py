"""The error classes, and the suggestion of the nearest name."""

import doctest

import pytest

from adautomix import errors
from adautomix.errors import AdAutoMixError, RunError, UsageError, nearest_name, unknown_name


def test_every_error_has_one_base_and_an_exit_status() -> None:
    assert issubclass(UsageError, AdAutoMixError)
    assert issubclass(RunError, AdAutoMixError)
    assert (UsageError.exit_status, RunError.exit_status) == (2, 1)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("cutmx", "cutmix"), ("CUTMIX", "cutmix"), ("fmix", "FMix"), ("qqqqqq", None), ("", None)],
)
def test_the_nearest_name_ignores_case(name: str, nearest: str | None) -> None:
    assert nearest_name(name, ["mixup", "cutmix", "FMix"]) == nearest


def test_an_unknown_name_without_a_similar_one_gets_the_listing() -> None:
    message = unknown_name("recipe", "qqqqqq", ["digits"], "`adautomix recipes` lists them all")
    assert message == "unknown recipe 'qqqqqq': `adautomix recipes` lists them all"


def test_names_of_settings_are_not_quoted() -> None:
    message = unknown_name("setting", "epoch", ["epochs"], "", quote=False)
    assert message == "unknown setting epoch: did you mean epochs?"


def test_examples_in_docstrings() -> None:
    outcome = doctest.testmod(errors)
    assert outcome.attempted > 0
    assert outcome.failed == 0
