"""Readers of settings, run folders and exports raise nothing but our own errors.

These are a few inputs; `make fuzz` tries them until its time is up.
"""

from pathlib import Path

import pytest
from fuzzing import TRIED, bounded, targets


@pytest.mark.parametrize("name", ["settings", "flags", "files", "runs", "networks"])
def test_random_inputs(name: str, tmp_path: Path) -> None:
    before = TRIED[name]
    bounded(targets(tmp_path)[name], 40)()
    assert TRIED[name] - before >= 40
