"""How each suite is shown: `section(found)` of the subjects that have it, one file a suite."""

from collections.abc import Callable, Sequence
from typing import Any

from adautomix.reporting.section import Found, Section
from adautomix.reporting.sections import (
    accuracy,
    attack,
    calibration,
    corruption,
    diversity,
    maps,
    occlusion,
    transfer,
)

SECTIONS: dict[str, Callable[[Sequence[tuple[Found, Any]]], Section]] = {
    "accuracy": accuracy.section,
    "calibration": calibration.section,
    "corruption": corruption.section,
    "attack": attack.section,
    "occlusion": occlusion.section,
    "transfer": transfer.section,
    "maps": maps.section,
    "diversity": diversity.section,
}
"""By the name of the suite, in the order of the page."""
