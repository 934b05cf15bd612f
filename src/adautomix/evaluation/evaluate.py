"""Run evaluation suites on a target and store their results in `evaluation.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from adautomix.device import describe_device, versions
from adautomix.evaluation.record import Evaluation, read_evaluation, write_evaluation
from adautomix.evaluation.registry import SUITES, find_suite
from adautomix.evaluation.suite import (
    NotApplicableError,
    ResultCache,
    SuiteProgress,
    SuiteResult,
    SuiteSettings,
    cache_key,
    no_progress,
)
from adautomix.evaluation.target import EvalTarget
from adautomix.runs.lock import run_lock
from adautomix.validation import one_line_errors


def evaluate(
    target: EvalTarget,
    suites: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    on_progress: SuiteProgress = no_progress,
) -> Evaluation:
    """Run suites by name; an interrupted suite continues where it stopped.

    Results of other suites on the same weights and test images are kept in the record.

    Args:
        target: the networks and images.
        suites: names of suites; "all" stands for every suite, and then those that do not apply
            to the target are skipped.
        settings: settings of each suite, by suite name.
        on_progress: called before each task of a suite.

    Returns:
        The record, which is also written to `evaluation.json` in the target's folder.

    Raises:
        UsageError: a suite or a setting is unknown, or another process writes the folder; this is
            checked before anything is computed.
        NotApplicableError: a suite that was requested by name does not apply to the target.
    """
    validated = {
        name: validate_settings(name, settings.get(name, {})) for name in select_suites(suites)
    }
    for name in settings:
        find_suite(name)
    with run_lock(target.folder):
        return run_suites(target, validated, skip="all" in suites, on_progress=on_progress)


def run_suites(
    target: EvalTarget,
    suites: Mapping[str, SuiteSettings],
    *,
    skip: bool,
    on_progress: SuiteProgress,
) -> Evaluation:
    """Run suites with validated settings into a folder that no other process writes.

    Args:
        target: the networks and images.
        suites: settings by name of the suites to run.
        skip: skip suites that do not apply to the target.
        on_progress: called before each task of a suite.

    Raises:
        NotApplicableError: a suite does not apply to the target, and `skip` is False.
    """
    fingerprint = target.fingerprint()
    evaluation = read_or_create(target, fingerprint)
    for name, suite_settings in suites.items():
        cache = open_cache(target, name, suite_settings, fingerprint, on_progress)
        try:
            SUITES[name].check_target(target)
            result: SuiteResult = SUITES[name].run(target, suite_settings, cache)
        except NotApplicableError as reason:
            if not skip:
                raise
            evaluation.not_applicable[name] = str(reason)
        else:
            evaluation.not_applicable.pop(name, None)
            evaluation.settings[name] = suite_settings.model_dump(mode="json")
            evaluation.suites[name] = result.model_dump(mode="json")
        write_evaluation(evaluation, target.folder)
    return evaluation


def select_suites(names: Sequence[str]) -> list[str]:
    """Return the requested suites in their usual order; "all" stands for every suite.

    Raises:
        UsageError: a suite is unknown.
    """
    requested = list(SUITES) if "all" in names else [find_suite(name).name for name in names]
    return [name for name in SUITES if name in requested]


def validate_settings(name: str, values: Mapping[str, Any]) -> Any:
    """Return the validated settings of a suite.

    Raises:
        UsageError: a setting is unknown or its value is not allowed.
    """
    with one_line_errors(name):
        return find_suite(name).Settings.model_validate(values)


def open_cache(
    target: EvalTarget,
    name: str,
    settings: SuiteSettings,
    fingerprint: str,
    on_progress: SuiteProgress,
) -> ResultCache:
    """Return the cache of a suite's partial results, kept in the target's folder."""
    folder = target.folder / "evaluation"
    key = cache_key(SUITES[name], settings, fingerprint)
    return ResultCache(folder / "parts.jsonl", key, folder / name, on_progress)


def read_or_create(target: EvalTarget, fingerprint: str) -> Evaluation:
    """Return the stored record of these weights and test images, or a new one."""
    stored = read_evaluation(target.folder)
    if stored is not None and stored.fingerprint == fingerprint:
        return stored
    return Evaluation(
        target=target.name,
        source=target.source,
        fingerprint=fingerprint,
        test_images=len(target.data.test),
        seed=target.seed,
        device=describe_device(target.device),
        versions=versions(),
    )
