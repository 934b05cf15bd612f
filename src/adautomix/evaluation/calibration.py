"""The calibration suite: does confidence match accuracy, before and after temperature scaling?

Confidence is the probability of the most likely class. The expected calibration error (ECE) is the
mean distance between accuracy and confidence over bins of confidence: with bins of equal width as
in Guo, Pleiss, Sun and Weinberger, *On Calibration of Modern Neural Networks*, ICML 2017,
equation 3, as computed by torchmetrics; the adaptive ECE has bins of equally many images (Mukhoti
et al., *Calibrating Deep Neural Networks using Focal Loss*, NeurIPS 2020). Temperature scaling
(Guo et al., section 4.2) divides all logits by one number T.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from adautomix.evaluation.suite import (
    NotApplicableError,
    ResultCache,
    Suite,
    SuiteResult,
    SuiteSettings,
)
from adautomix.evaluation.target import EvalTarget

TEMPERATURE_BOUNDS = (0.01, 100.0)
"""Range in which T is searched. If every fitted image is right, the NLL falls with T to the end."""

_CHUNK = 4096  # rows converted to float64 at a time, so that logits are held only once in memory


class CalibrationSettings(SuiteSettings):
    """How calibration is measured."""

    bins: int = Field(15, ge=1, le=1000, description="number of bins of confidence")
    temperature: bool = Field(
        True, description="also measure after scaling with a temperature fitted on held-out images"
    )


class Bin(BaseModel):
    """The images whose confidence falls into one bin.

    Attributes:
        images: number of images.
        confidence: their mean confidence, 0 to 1; None for an empty bin.
        accuracy: their accuracy, 0 to 1; None for an empty bin.
    """

    images: int
    confidence: float | None
    accuracy: float | None


class CalibrationMetrics(BaseModel):
    """Calibration of one network on the scored images.

    Attributes:
        ece: expected calibration error over bins of equal width, 0 to 1.
        adaptive_ece: the same over bins of equally many images, 0 to 1.
        nll: mean negative log-likelihood of the true class, in nats.
        brier: Brier score: mean squared distance of the probabilities from the one-hot label,
            0 to 2.
        bins: bins of equal width, from confidence 0 to 1.
    """

    ece: float
    adaptive_ece: float
    nll: float
    brier: float
    bins: list[Bin]


class Calibration(BaseModel):
    """Calibration of one network before and, if requested, after temperature scaling."""

    before: CalibrationMetrics
    temperature: float | None = None
    after: CalibrationMetrics | None = None


class CalibrationResult(SuiteResult):
    """Calibration of each network.

    Attributes:
        networks: results by network name.
        fitted_on: the images that the temperature was fitted on; these images are not scored.
        fitted_images: number of those images.
        scored_images: number of test images that all metrics are computed on.
    """

    networks: dict[str, Calibration]
    fitted_on: Literal["val", "half of test"] | None
    fitted_images: int
    scored_images: int


class Outcomes(NamedTuple):
    """Per-image values, float64 `[n]` on the CPU; see `CalibrationMetrics` for their means."""

    confidence: Tensor
    correct: Tensor
    nll: Tensor
    brier: Tensor


def outcomes(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Outcomes:
    """Return confidence, correctness, negative log-likelihood and Brier score of every image.

    Args:
        logits: `[n, K]`.
        labels: int64 `[n]`.
        temperature: positive number that divides the logits.
    """
    chunks = [_outcomes(z / temperature, y) for z, y in in_chunks(logits, labels)]
    return Outcomes(*(torch.cat(columns) for columns in zip(*chunks, strict=True)))


def _outcomes(logits: Tensor, labels: Tensor) -> Outcomes:
    log_p = logits.log_softmax(dim=1)
    p = log_p.exp()
    confidence, predicted = p.max(dim=1)
    label_log_p = log_p.gather(1, labels[:, None])[:, 0]
    # |p - onehot|² = |p|² - 2 p_label + 1
    brier = p.square().sum(dim=1) - 2 * label_log_p.exp() + 1
    return Outcomes(confidence, (predicted == labels).double(), -label_log_p, brier)


def in_chunks(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits `[n, K]`, converted to float64, and labels `[n]`, some rows at a time."""
    for z, y in zip(logits.split(_CHUNK), labels.split(_CHUNK), strict=True):
        yield z.double(), y


def equal_width(confidence: Tensor, bins: int) -> Tensor:
    """Return the bin, int64 `[n]`, of each confidence: bin b is (b / bins, (b + 1) / bins]."""
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)
    return torch.bucketize(confidence, edges[1:-1])


def equal_mass(confidence: Tensor, bins: int) -> Tensor:
    """Return the bin, int64 `[n]`, of each confidence; bin sizes differ by at most one image."""
    rank = confidence.argsort(stable=True).argsort()
    return rank * bins // len(confidence)


def summarize_bins(images: Outcomes, index: Tensor, bins: int) -> list[Bin]:
    """Return the mean confidence and accuracy of each bin, given the bin `[n]` of every image."""
    counts = index.bincount(minlength=bins)
    confidence = index.bincount(images.confidence, minlength=bins) / counts
    accuracy = index.bincount(images.correct, minlength=bins) / counts
    return [
        Bin(images=n, confidence=c if n else None, accuracy=a if n else None)
        for n, c, a in zip(counts.tolist(), confidence.tolist(), accuracy.tolist(), strict=True)
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Return the mean distance between accuracy and confidence, weighted by images, 0 to 1."""
    total = sum(one.images for one in bins)
    return math.fsum(
        one.images / total * abs(one.accuracy - one.confidence)
        for one in bins
        if one.accuracy is not None and one.confidence is not None
    )


def expected_calibration_error(
    logits: Tensor, labels: Tensor, bins: int, temperature: float = 1.0
) -> float:
    """Return the ECE of torchmetrics over bins of equal width, 0 to 1.

    torchmetrics assigns a confidence that lies exactly on an edge to the upper bin, and puts
    confidences that round to 1 in float32 into a separate bin.
    """
    from torchmetrics.classification import MulticlassCalibrationError

    metric = MulticlassCalibrationError(num_classes=logits.shape[1], n_bins=bins, norm="l1")
    for z, y in in_chunks(logits, labels):
        metric.update((z / temperature).softmax(dim=1), y)
    return float(metric.compute())


def measure(
    logits: Tensor, labels: Tensor, bins: int, temperature: float = 1.0
) -> CalibrationMetrics:
    """Return the calibration of logits `[n, K]`, divided by a temperature, for labels `[n]`."""
    images = outcomes(logits, labels, temperature)
    index = equal_mass(images.confidence, bins)
    return CalibrationMetrics(
        ece=expected_calibration_error(logits, labels, bins, temperature),
        adaptive_ece=calibration_error(summarize_bins(images, index, bins)),
        nll=float(images.nll.mean()),
        brier=float(images.brier.mean()),
        bins=summarize_bins(images, equal_width(images.confidence, bins), bins),
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature in `TEMPERATURE_BOUNDS` that minimizes the NLL of logits `[n, K]`.

    The NLL is convex in 1/T, so it has a single minimum over log T, where it is searched.
    """
    from scipy.optimize import minimize_scalar

    def nll(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        losses = [
            F.cross_entropy(z * scale, y, reduction="sum") for z, y in in_chunks(logits, labels)
        ]
        return float(sum(losses)) / len(labels)

    low, high = (math.log(temperature) for temperature in TEMPERATURE_BOUNDS)
    return math.exp(minimize_scalar(nll, bounds=(low, high), method="bounded").x)


class HeldOut(NamedTuple):
    """Logits of each network and labels: those to fit on, and those to score."""

    source: Literal["val", "half of test"] | None
    fitted: tuple[dict[str, Tensor], Tensor]
    scored: tuple[dict[str, Tensor], Tensor]


def hold_out(target: EvalTarget) -> HeldOut:
    """Return the validation split to fit on, or half of the test images, which are not scored.

    Raises:
        NotApplicableError: there is no validation split and only one test image.
    """
    if target.data.val is not None:
        return HeldOut("val", target.logits(target.data.val), target.logits())
    count = len(target.data.test)
    if count < 2:
        raise NotApplicableError(
            "calibration.temperature needs images to fit on, and one test image cannot be halved: "
            "hold out validation images with val_fraction, or set calibration.temperature to false"
        )
    logits, labels = target.logits()
    fitted, scored = halves(count, target.generator("calibration/halves"))
    return HeldOut("half of test", select(fitted, logits, labels), select(scored, logits, labels))


def halves(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split the rows 0 to count - 1 at random; an odd row goes to the second half."""
    first, second = torch.randperm(count, generator=generator).tensor_split([count // 2])
    return first.sort().values, second.sort().values


def select(
    rows: Tensor, logits: dict[str, Tensor], labels: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the logits and labels of some images."""
    return {name: z[rows] for name, z in logits.items()}, labels[rows]


def run_calibration(
    target: EvalTarget, settings: CalibrationSettings, cache: ResultCache
) -> CalibrationResult:
    """Measure the calibration of each network, before and after temperature scaling."""
    compute = measure_scaled if settings.temperature else measure_unscaled
    values = cache.get("figures", lambda: compute(target, settings.bins).model_dump())
    return CalibrationResult.model_validate(values)


def measure_unscaled(target: EvalTarget, bins: int) -> CalibrationResult:
    """Score every test image without temperature scaling."""
    logits, labels = target.logits()
    return CalibrationResult(
        networks={n: Calibration(before=measure(z, labels, bins)) for n, z in logits.items()},
        fitted_on=None,
        fitted_images=0,
        scored_images=len(labels),
    )


def measure_scaled(target: EvalTarget, bins: int) -> CalibrationResult:
    """Score images before and after scaling with a temperature fitted on held-out images."""
    source, (fitted, fitted_labels), (scored, labels) = hold_out(target)
    networks = {}
    for name, logits in scored.items():
        temperature = fit_temperature(fitted[name], fitted_labels)
        networks[name] = Calibration(
            before=measure(logits, labels, bins),
            temperature=temperature,
            after=measure(logits, labels, bins, temperature),
        )
    return CalibrationResult(
        networks=networks,
        fitted_on=source,
        fitted_images=len(fitted_labels),
        scored_images=len(labels),
    )


SUITE = Suite(
    name="calibration",
    summary="ECE, NLL, Brier score and reliability, before and after temperature scaling",
    run=run_calibration,
    Result=CalibrationResult,
    Settings=CalibrationSettings,
)
