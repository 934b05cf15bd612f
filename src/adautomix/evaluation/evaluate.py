"""Run suites on a subject and keep what they find in `evaluation.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from adautomix.errors import UsageError
from adautomix.evaluation.accuracy import ACCURACY
from adautomix.evaluation.attack import ATTACK
from adautomix.evaluation.calibration import CALIBRATION
from adautomix.evaluation.corruption import CORRUPTION
from adautomix.evaluation.diversity import DIVERSITY
from adautomix.evaluation.maps import MAPS
from adautomix.evaluation.occlusion import OCCLUSION
from adautomix.evaluation.suite import (
    NotApplicableError,
    Progress,
    ResultCache,
    Suite,
    SuiteResult,
    name_of,
    silent,
)
from adautomix.evaluation.target import EvalTarget
from adautomix.evaluation.transfer import TRANSFER
from adautomix.validation import one_line_errors

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (ACCURACY, CALIBRATION, CORRUPTION, ATTACK, OCCLUSION, TRANSFER, MAPS, DIVERSITY)
}
FILE = "evaluation.json"


class Evaluation(BaseModel):
    """What is known of a subject: `evaluation.json`.

    Attributes:
        version: of this layout.
        subject: its name.
        source: where its weights come from.
        fingerprint: of weights and test images; results of others are not kept beside these.
        test_images: how many were used.
        seed: of every random number.
        device: what computed it.
        versions: of the libraries that did.
        settings: of each suite.
        suites: what each suite found, its `Result`.
        not_applicable: why a suite has nothing to say, where all were asked for.
    """

    model_config = ConfigDict(extra="forbid")

    version: Literal[2] = 2
    subject: str
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
        """What one suite found, typed; None where it was not run."""
        found = self.suites.get(name)
        return None if found is None else SUITES[name].Result.model_validate(found)


def evaluate(
    subject: EvalTarget,
    names: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    progress: Progress = silent,
) -> Evaluation:
    """Run suites by name, each from where it was stopped; what others found before is kept.

    Args:
        subject: the networks and images.
        names: of suites.
        settings: of each suite by its name.
        progress: hears of every part.

    Raises:
        UsageError: an unknown suite or setting; both are named before anything is computed.
        NotApplicableError: a suite that was asked for by its name cannot be run here.
    """
    checked = {name: suite_settings(name, settings.get(name, {})) for name in suites_in(names)}
    for name in settings:
        find_suite(name)
    fingerprint = subject.fingerprint()
    evaluation = read_or_begin(subject, fingerprint)
    for name, options in checked.items():
        suite = SUITES[name]
        parts = ResultCache(
            subject.folder / "evaluation" / "parts.jsonl",
            name_of(suite, options, fingerprint),
            subject.folder / "evaluation" / name,
            progress,
        )
        try:
            result: SuiteResult = suite.run(subject, options, parts)
        except NotApplicableError as reason:
            if "all" not in names:
                raise
            evaluation.not_applicable[name] = str(reason)
        else:
            evaluation.not_applicable.pop(name, None)
            evaluation.settings[name] = options.model_dump(mode="json")
            evaluation.suites[name] = result.model_dump(mode="json")
        write(evaluation, subject.folder / FILE)
    return evaluation


def suites_in(names: Sequence[str]) -> list[str]:
    """The suites asked for, in their usual order; "all" stands for every one.

    Raises:
        UsageError: one is unknown.
    """
    wanted = list(SUITES) if "all" in names else [find_suite(name).name for name in names]
    return [name for name in SUITES if name in wanted]


def find_suite(name: str) -> Suite:
    """A suite by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in SUITES:
        raise UsageError(f"unknown suite {name!r}: all, or some of {', '.join(SUITES)}")
    return SUITES[name]


def suite_settings(name: str, values: Mapping[str, Any]) -> Any:
    """The settings of a suite, checked."""
    with one_line_errors(name):
        return find_suite(name).Settings.model_validate(values)


def read_or_begin(subject: EvalTarget, fingerprint: str) -> Evaluation:
    """What was found before of these weights on these images, or a new record."""
    from adautomix.device import describe_device, versions

    known = read(subject.folder)
    if known is not None and known.fingerprint == fingerprint:
        return known
    return Evaluation(
        subject=subject.name,
        source=subject.source,
        fingerprint=fingerprint,
        test_images=len(subject.data.test),
        seed=subject.seed,
        device=describe_device(subject.device),
        versions=versions(),
    )


def read(folder: Path) -> Evaluation | None:
    """The record in a folder; None where there is none, or one of an older layout."""
    try:
        return Evaluation.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def write(evaluation: Evaluation, path: Path) -> None:
    """Write the record whole, or leave the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".writing")
    fresh.write_text(json.dumps(evaluation.model_dump(mode="json"), indent=1) + "\n")
    fresh.replace(path)
