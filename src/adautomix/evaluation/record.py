"""The record of an evaluation, `evaluation.json`: its layout, one reader and one writer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from adautomix.errors import UsageError
from adautomix.evaluation.registry import SUITES
from adautomix.evaluation.suite import SuiteResult
from adautomix.files import atomic_write

FILE = "evaluation.json"

# Names that version 2 of the record used, with their present names.
_OLD_SETTINGS = {"attack": {"pictured": "examples"}}
_OLD_RESULTS = {"attack": {"threat": "threat_model"}, "occlusion": {"shares": "fractions"}}


class Evaluation(BaseModel):
    """The results of all suites that were run on one target.

    Attributes:
        version: version of this layout.
        target: name of the target.
        source: where the weights come from.
        fingerprint: hash of the weights and the test images. Results are only kept together
            when their fingerprint is the same.
        test_images: number of test images used.
        seed: random seed.
        device: the device that computed the results.
        versions: versions of the libraries used.
        settings: settings of each suite, by suite name.
        suites: result of each suite, by suite name.
        not_applicable: the reason why a suite was skipped, by suite name.
    """

    model_config = ConfigDict(extra="forbid")

    version: Literal[4] = 4
    target: str
    source: dict[str, Any]
    fingerprint: str
    test_images: int
    seed: int
    device: str
    versions: dict[str, str]
    settings: dict[str, dict[str, Any]] = {}
    suites: dict[str, dict[str, Any]] = {}
    not_applicable: dict[str, str] = {}

    def result(self, name: str) -> SuiteResult | None:
        """Return the typed result of a suite, or None if the suite was not run."""
        values = self.suites.get(name)
        return None if values is None else SUITES[name].Result.model_validate(values)


def read_evaluation(folder: Path) -> Evaluation | None:
    """Return the record in a folder, or None if there is none that this version can read."""
    try:
        return _read(folder / FILE)
    except (OSError, ValueError, ValidationError):
        return None


def read_evaluation_file(path: Path) -> Evaluation:
    """Return the record in a file of any name.

    Raises:
        UsageError: the file is not a record that this version can read.
    """
    try:
        return _read(path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, ValidationError):
        raise UsageError(f"{path} is not the evaluation.json of `adautomix evaluate`") from None


def _read(path: Path) -> Evaluation:
    values = json.loads(path.read_text(encoding="utf-8"))
    return Evaluation.model_validate(upgrade(values))


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write the record into a folder; an interrupted write leaves the previous record intact."""
    text = json.dumps(evaluation.model_dump(mode="json"), indent=1) + "\n"
    with atomic_write(folder / FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Return a record of an older layout in the current one; other records are unchanged.

    Version 3 had no results per class. Version 2 called the target "subject" and had other names
    for a few settings and results.
    """
    if not isinstance(values, dict):
        return values
    if values.get("version", 2) == 3:
        return values | {"version": 4}
    if values.get("version", 2) != 2:
        return values
    groups = {
        part: {
            name: rename_keys(group, names.get(name, {}))
            for name, group in values.get(part, {}).items()
        }
        for part, names in (("settings", _OLD_SETTINGS), ("suites", _OLD_RESULTS))
    }
    return rename_keys(values, {"subject": "target"}) | groups | {"version": 4}


def rename_keys(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the mapping with some of its keys renamed."""
    return {names.get(key, key): value for key, value in values.items()}
