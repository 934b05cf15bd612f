"""Readers of settings, run folders and exports raise nothing but our own errors.

These are a few inputs; `make fuzz` tries them until its time is up.
"""

from pathlib import Path

import pytest
from fuzzing import targets
from reading_checks import TRIED

QUICK = ("quick settings", "quick flags", "quick files")
"""The same readers, more inputs per second, fewer kinds of them."""


@pytest.mark.parametrize(
    "name",
    [
        *("settings", "flags", "files", "runs", "networks", "lists", "archives", "images"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in QUICK),
    ],
)
def test_random_inputs(name: str, tmp_path: Path) -> None:
    before = TRIED[name]
    targets(tmp_path)[name].tried(40)()
    assert TRIED[name] - before >= 40
