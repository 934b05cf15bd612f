"""After a fault at any write, the same command or a resume ends as if nothing had happened.

These are a few of the points; `make faults` walks them all.
"""

from pathlib import Path

import pytest
from fault_walk import walk

POINTS = {
    "train": 6,
    "resume": 3,
    "compare": 2,
    "evaluate": 2,
    "export": 3,
    "report": 1,
    "predict": 2,
    "tune": 2,
}
QUICK = ("predict",)


@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in POINTS],
)
def test_a_command_survives_faults(command: str, photos: Path, tmp_path: Path) -> None:
    results = list(walk(photos, tmp_path, [command], POINTS[command], seed=7))
    assert len(results) == POINTS[command]
    assert [(point, problem) for point, problem in results if problem] == []
