"""The accuracy suite: accuracy, likelihood and calibration error on the test images."""

from adautomix.evaluation.suite import ResultCache, Suite, SuiteResult, SuiteSettings
from adautomix.evaluation.target import EvalTarget
from adautomix.metrics import score


class AccuracyResult(SuiteResult):
    """The `Scores` of each network, by network name."""

    networks: dict[str, dict[str, float]]


def run_accuracy(target: EvalTarget, settings: SuiteSettings, cache: ResultCache) -> AccuracyResult:
    """Score each network on the test images."""

    def compute() -> dict[str, dict[str, float]]:
        logits, labels = target.logits()
        return {name: score(values, labels).present() for name, values in logits.items()}

    return AccuracyResult(networks=cache.get("scores", compute))


SUITE = Suite(
    name="accuracy",
    summary="top-1, top-5, negative log-likelihood and ECE on the test images",
    run=run_accuracy,
    Result=AccuracyResult,
)
