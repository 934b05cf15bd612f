"""The accuracy suite: scores and results per class on the test images, from one pass over them."""

from typing import Any

from pydantic import Field

from adautomix.class_results import ClassResults, class_results
from adautomix.data.dataset import split_files
from adautomix.evaluation.suite import ResultCache, Suite, SuiteResult, SuiteSettings
from adautomix.evaluation.target import EvalTarget
from adautomix.metrics import score
from adautomix.pictures.wrong_photos import write_wrong_photos


class AccuracyResult(SuiteResult):
    """Scores and results per class.

    Attributes:
        networks: the `Scores` of each network, by network name.
        classes: the results per class of each network; empty in records of before version 4.
    """

    networks: dict[str, dict[str, float]]
    classes: dict[str, ClassResults] = Field(default={})


def run_accuracy(target: EvalTarget, settings: SuiteSettings, cache: ResultCache) -> AccuracyResult:
    """Score each network on the test images, and draw the images it got wrong."""

    def compute() -> dict[str, Any]:
        logits, labels = target.logits()
        files = split_files(target.data, "test")
        results = {}
        for name, values in logits.items():
            found = class_results(values, labels, target.classes, files)
            prefix = f"{cache.digest}-{name}"
            results[name] = write_wrong_photos(found, target.data.test, cache.folder, prefix)
        return AccuracyResult(
            networks={name: score(values, labels).present() for name, values in logits.items()},
            classes=results,
        ).model_dump(mode="json")

    return AccuracyResult.model_validate(cache.get("results", compute))


SUITE = Suite(
    name="accuracy",
    summary="top-1, top-5, NLL and ECE, results per class, and the most confident wrong images",
    run=run_accuracy,
    Result=AccuracyResult,
    multi_label=True,
)
