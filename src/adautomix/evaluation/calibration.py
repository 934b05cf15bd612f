"""Whether a network is right as often as it is sure: calibration, before and after a temperature.

Confidence is the probability of the most likely class. The expected calibration error (ECE) is
that of Guo, Pleiss, Sun and Weinberger, *On Calibration of Modern Neural Networks*, ICML 2017,
equation 3, with bins of equal width; its adaptive form has bins of equal mass (Mukhoti et al.,
*Calibrating Deep Neural Networks using Focal Loss*, NeurIPS 2020). Temperature scaling is that of
Guo et al., section 4.2: one number T that divides all logits.
"""

import math
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

TEMPERATURES = (0.01, 100.0)
"""Between these T is sought. Where all fitted images are right, NLL falls down to the lower one."""

_CHUNK = 4096  # rows in float64 at a time: the logits of a large set are held only once


class CalibrationSettings(SuiteSettings):
    """How calibration is measured."""

    bins: int = Field(15, ge=1, le=1000, description="of confidence, equal in width or in images")
    temperature: bool = Field(
        True, description="also after a temperature fitted on held-out images"
    )


class Bin(BaseModel):
    """The images whose confidence falls into one bin.

    Attributes:
        images: how many.
        confidence: their mean confidence, 0 to 1; None without images.
        accuracy: the share that is right; None without images.
    """

    images: int
    confidence: float | None
    accuracy: float | None


class Figures(BaseModel):
    """How one network is calibrated on the scored images.

    Attributes:
        ece: expected calibration error over bins of equal width, 0 to 1.
        adaptive_ece: over bins of equally many images, 0 to 1.
        nll: mean negative log-likelihood of the right class, in nats.
        brier: mean squared distance between probabilities and the one-hot label, 0 to 2.
        bins: of equal width, from confidence 0 to 1.
    """

    ece: float
    adaptive_ece: float
    nll: float
    brier: float
    bins: list[Bin]


class Calibration(BaseModel):
    """One network before and after temperature scaling; without it `before` is all there is."""

    before: Figures
    temperature: float | None = None
    after: Figures | None = None


class CalibrationResult(SuiteResult):
    """`Calibration` of each network, by name.

    Attributes:
        networks: what was found.
        fitted_on: where the images for the temperature come from; no fitted image is scored.
        fitted_images: how many.
        scored_images: how many test images all figures are of.
    """

    networks: dict[str, Calibration]
    fitted_on: Literal["val", "half of test"] | None
    fitted_images: int
    scored_images: int


class Outcomes(NamedTuple):
    """What became of each image, float64 `[n]` on the CPU: see `Figures` for the means."""

    confidence: Tensor
    right: Tensor
    nll: Tensor
    brier: Tensor


def outcomes(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Outcomes:
    """Confidence, correctness, likelihood and Brier score of every image.

    Args:
        logits: `[n, K]`.
        labels: int64 `[n]`.
        temperature: divides the logits, positive.
    """
    chunks = zip(logits.split(_CHUNK), labels.split(_CHUNK), strict=True)
    parts = [_outcomes(z.double() / temperature, y) for z, y in chunks]
    return Outcomes(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _outcomes(logits: Tensor, labels: Tensor) -> Outcomes:
    log_p = logits.log_softmax(dim=1)
    p = log_p.exp()
    confidence, predicted = p.max(dim=1)
    of_label = log_p.gather(1, labels[:, None])[:, 0]
    # |p - onehot|² multiplied out
    brier = p.square().sum(dim=1) - 2 * of_label.exp() + 1
    return Outcomes(confidence, (predicted == labels).double(), -of_label, brier)


def equal_width(confidence: Tensor, bins: int) -> Tensor:
    """The bin, int64 `[n]`, of each confidence in 0..1: bin b holds (b / bins, (b + 1) / bins]."""
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)
    return torch.bucketize(confidence, edges[1:-1])


def equal_mass(confidence: Tensor, bins: int) -> Tensor:
    """The bin, int64 `[n]`, of each confidence, in bins whose sizes differ by at most one image."""
    rank = confidence.argsort(stable=True).argsort()
    return rank * bins // len(confidence)


def gather_bins(found: Outcomes, index: Tensor, bins: int) -> list[Bin]:
    """What lies in each bin, for the bin `[n]` of every image."""
    images = index.bincount(minlength=bins)
    confidence = index.bincount(found.confidence, minlength=bins) / images
    accuracy = index.bincount(found.right, minlength=bins) / images
    return [
        Bin(images=n, confidence=c if n else None, accuracy=a if n else None)
        for n, c, a in zip(images.tolist(), confidence.tolist(), accuracy.tolist(), strict=True)
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Mean distance of accuracy and confidence over bins, weighted by their images, 0 to 1."""
    total = sum(one.images for one in bins)
    return math.fsum(
        one.images / total * abs(one.accuracy - one.confidence)
        for one in bins
        if one.accuracy is not None and one.confidence is not None
    )


def figures(logits: Tensor, labels: Tensor, bins: int, temperature: float = 1.0) -> Figures:
    """How logits `[n, K]`, divided by a temperature, are calibrated against labels `[n]`."""
    found = outcomes(logits, labels, temperature)
    width = gather_bins(found, equal_width(found.confidence, bins), bins)
    mass = gather_bins(found, equal_mass(found.confidence, bins), bins)
    return Figures(
        ece=calibration_error(width),
        adaptive_ece=calibration_error(mass),
        nll=float(found.nll.mean()),
        brier=float(found.brier.mean()),
        bins=width,
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature, within `TEMPERATURES`, that minimizes the NLL of logits `[n, K]`.

    NLL is convex in 1/T, so it has one valley over log T, where it is sought.
    """
    from scipy.optimize import minimize_scalar

    def nll(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        chunks = zip(logits.split(_CHUNK), labels.split(_CHUNK), strict=True)
        losses = [F.cross_entropy(z.double() * scale, y, reduction="sum") for z, y in chunks]
        return float(sum(losses)) / len(labels)

    low, high = (math.log(temperature) for temperature in TEMPERATURES)
    return math.exp(minimize_scalar(nll, bounds=(low, high), method="bounded").x)


class HeldOut(NamedTuple):
    """Logits of each network and labels, to fit on and to score."""

    source: Literal["val", "half of test"] | None
    fitted: tuple[dict[str, Tensor], Tensor]
    scored: tuple[dict[str, Tensor], Tensor]


def hold_out(target: EvalTarget) -> HeldOut:
    """The `val` split to fit on, or a half of the test images that is then not scored.

    Raises:
        NotApplicableError: there are neither held-out images nor enough test images to halve.
    """
    if target.data.val is not None:
        return HeldOut("val", target.logits(target.data.val), target.logits())
    count = len(target.data.test)
    if count < 2:
        raise NotApplicableError(
            "calibration.temperature needs images to fit on and one test image cannot be halved: "
            "hold some out with val_fraction, or switch it off"
        )
    logits, labels = target.logits()
    fitted, scored = halves(count, target.generator("calibration/halves"))
    return HeldOut("half of test", at(fitted, logits, labels), at(scored, logits, labels))


def halves(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows 0..count in two disjoint halves, each in order; the second is not the smaller one."""
    first, second = torch.randperm(count, generator=generator).tensor_split([count // 2])
    return first.sort().values, second.sort().values


def at(rows: Tensor, logits: dict[str, Tensor], labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Logits and labels of some images."""
    return {name: z[rows] for name, z in logits.items()}, labels[rows]


def run_calibration(
    target: EvalTarget, settings: CalibrationSettings, cache: ResultCache
) -> CalibrationResult:
    """Measure the calibration of each network on test images, and what a temperature mends."""
    compute = scaled if settings.temperature else plain
    found = cache.get("figures", lambda: compute(target, settings.bins).model_dump())
    return CalibrationResult.model_validate(found)


def plain(target: EvalTarget, bins: int) -> CalibrationResult:
    """Every test image scored as it is."""
    logits, labels = target.logits()
    return CalibrationResult(
        networks={n: Calibration(before=figures(z, labels, bins)) for n, z in logits.items()},
        fitted_on=None,
        fitted_images=0,
        scored_images=len(labels),
    )


def scaled(target: EvalTarget, bins: int) -> CalibrationResult:
    """The scored images before and after the temperature that held-out images ask for."""
    source, (fitted, fitted_labels), (scored, labels) = hold_out(target)
    networks = {}
    for name, logits in scored.items():
        temperature = fit_temperature(fitted[name], fitted_labels)
        networks[name] = Calibration(
            before=figures(logits, labels, bins),
            temperature=temperature,
            after=figures(logits, labels, bins, temperature),
        )
    return CalibrationResult(
        networks=networks,
        fitted_on=source,
        fitted_images=len(fitted_labels),
        scored_images=len(labels),
    )


SUITE = Suite(
    name="calibration",
    summary="ECE, NLL, Brier score, reliability; before and after a temperature",
    run=run_calibration,
    Result=CalibrationResult,
    Settings=CalibrationSettings,
)
