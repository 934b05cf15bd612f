"""Calibration metrics by hand and by torchmetrics, and the fit of the temperature."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from targets import make_target, random_images, relabeled, top1_accuracy
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from adautomix.errors import UsageError
from adautomix.evaluation import calibration
from adautomix.evaluation.calibration import (
    Calibration,
    CalibrationResult,
    calibration_error,
    equal_mass,
    equal_width,
    fit_temperature,
    halves,
    measure,
    outcomes,
    summarize_bins,
)
from adautomix.evaluation.evaluate import evaluate
from adautomix.evaluation.suite import NotApplicableError
from adautomix.evaluation.target import EvalTarget
from adautomix.reporting.evaluations import read_evaluated, write_evaluations
from adautomix.reporting.section import Evaluated
from adautomix.reporting.sections.calibration import section
from adautomix.rng import generator_at


def random_logits(count: int = 600, classes: int = 7, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = generator_at(0, 0, "test")
    logits = scale * torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


def four_images() -> tuple[Tensor, Tensor]:
    """Two classes with confidences 0.9 (right), 0.9 (wrong), 0.7 (right) and 0.55 (wrong)."""
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.7, 0.3], [0.55, 0.45]], dtype=torch.float64)
    return p.log(), torch.tensor([0, 0, 0, 1])


def run_suite(target: EvalTarget, **settings: object) -> CalibrationResult:
    result = evaluate(target, ["calibration"], {"calibration": settings}).result("calibration")
    assert isinstance(result, CalibrationResult)
    return result


# --- metrics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 2, 15, 40])
@pytest.mark.parametrize("scale", [0.1, 2.0, 8.0])
def test_ece_equals_torchmetrics(bins: int, scale: float) -> None:
    logits, labels = random_logits(scale=scale)
    p = logits.double().softmax(dim=1)
    expected = multiclass_calibration_error(p, labels, num_classes=7, n_bins=bins, norm="l1")
    metrics = measure(logits, labels, bins)
    assert metrics.ece == float(expected)
    # torchmetrics sums in float32; one image in another bin would change 1e-4 or more.
    assert calibration_error(metrics.bins) == pytest.approx(float(expected), abs=1e-6)


def test_ece_by_hand() -> None:
    metrics = measure(*four_images(), bins=5)
    expected = 2 / 4 * abs(0.5 - 0.9) + 1 / 4 * abs(1 - 0.7) + 1 / 4 * abs(0 - 0.55)
    assert metrics.ece == pytest.approx(expected)
    assert [one.images for one in metrics.bins] == [0, 0, 1, 1, 2]
    assert [one.accuracy for one in metrics.bins] == [None, None, 0, 1, 0.5]
    confidences = [one.confidence for one in metrics.bins]
    assert confidences[:2] == [None, None]
    assert confidences[2:] == pytest.approx([0.55, 0.7, 0.9])


def test_adaptive_ece_by_hand() -> None:
    logits, labels = four_images()
    expected = 2 / 4 * abs(0.5 - (0.55 + 0.7) / 2) + 2 / 4 * abs(0.5 - 0.9)
    assert measure(logits, labels, bins=2).adaptive_ece == pytest.approx(expected)
    one_each = (abs(1 - 0.9) + abs(0 - 0.9) + abs(1 - 0.7) + abs(0 - 0.55)) / 4
    assert measure(logits, labels, bins=4).adaptive_ece == pytest.approx(one_each)
    assert measure(logits, labels, bins=40).adaptive_ece == pytest.approx(one_each)


def test_brier_and_nll_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], dtype=torch.float64)
    metrics = measure(p.log() + 5, torch.tensor([2, 1]), bins=15)
    first = 0.5**2 + 0.3**2 + (1 - 0.2) ** 2
    second = 0.1**2 + (1 - 0.8) ** 2 + 0.1**2
    assert metrics.brier == pytest.approx((first + second) / 2)
    assert metrics.nll == pytest.approx(-(math.log(0.2) + math.log(0.8)) / 2)


def test_a_bin_holds_its_upper_edge() -> None:
    confidence = torch.tensor([0.25, 0.250001, 0.5, 0.75, 0.999, 1.0], dtype=torch.float64)
    assert equal_width(confidence, 4).tolist() == [0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize(("images", "bins"), [(10, 3), (12, 4), (5, 15), (100, 7)])
def test_bins_of_equal_mass(images: int, bins: int) -> None:
    confidence = torch.rand(images, generator=generator_at(0, 0, "test"))
    index = equal_mass(confidence, bins)
    counts = index.bincount(minlength=bins)
    assert counts.sum() == images
    assert counts.max() - counts.min() <= 1
    assert index[confidence.argsort()].diff().min() >= 0, "bins are not in the order of confidence"


def test_equal_confidences_fill_bins_of_equal_mass() -> None:
    assert equal_mass(torch.full((6,), 0.5), 3).tolist() == [0, 0, 1, 1, 2, 2]


def test_metrics_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = random_logits()
    whole, temperature = measure(logits, labels, 15, 2.5), fit_temperature(logits, labels)
    monkeypatch.setattr(calibration, "_CHUNK", 7)
    assert measure(logits, labels, 15, 2.5) == whole
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=1e-5)


def test_perfect_calibration_has_no_error() -> None:
    logits = torch.tensor([0.75, 0.25]).log().expand(4, 2)
    images = outcomes(logits, torch.tensor([0, 0, 0, 1]))
    bins = summarize_bins(images, equal_width(images.confidence, 15), 15)
    assert calibration_error(bins) == pytest.approx(0, abs=1e-7)


# --- the temperature -------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.05, 0.4, 1.0, 2.5, 30.0])
def test_the_temperature_recovers_a_known_factor(factor: float) -> None:
    # Three of four images belong to the class with probability 3/4, so the factor is the best T.
    logits = factor * torch.tensor([0.75, 0.25], dtype=torch.float64).log().expand(4, 2)
    labels = torch.tensor([0, 0, 1, 0])
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(factor, rel=1e-3)
    after = measure(logits, labels, 15, temperature)
    assert after.ece == pytest.approx(0, abs=1e-3)
    assert after.nll == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)


def test_labels_drawn_from_the_network_give_its_factor_back() -> None:
    logits, _ = random_logits(20_000, scale=1.5)
    drawn = logits.softmax(dim=1).multinomial(1, generator=generator_at(1, 0, "test"))[:, 0]
    assert fit_temperature(4 * logits, drawn) == pytest.approx(4, rel=0.03)


def test_no_other_temperature_has_a_lower_nll() -> None:
    logits, labels = random_logits()
    labels[:300] = logits[:300].argmax(dim=1)
    best = fit_temperature(logits, labels)

    def nll(temperature: float) -> float:
        return float(F.cross_entropy(logits.double() / temperature, labels))

    assert 1 < best < 50
    for other in (0.01, 0.5 * best, 0.98 * best, 1.02 * best, 2 * best, 100.0):
        assert nll(best) < nll(other)


def test_the_temperature_stays_within_its_bounds() -> None:
    low, high = calibration.TEMPERATURE_BOUNDS
    all_right = torch.tensor([[0.01, 0.0], [0.0, 0.01]])
    assert fit_temperature(all_right, torch.tensor([0, 1])) == pytest.approx(low, rel=1e-3)
    assert fit_temperature(all_right, torch.tensor([1, 0])) == pytest.approx(high, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0, 50.0])
def test_a_temperature_changes_no_prediction(temperature: float) -> None:
    logits, labels = random_logits()
    before, after = outcomes(logits, labels), outcomes(logits, labels, temperature)
    assert torch.equal(before.correct, after.correct)
    assert float(before.correct.mean()) == top1_accuracy({"net": logits}, labels)["net"]
    assert not torch.allclose(before.confidence, after.confidence)


# --- fitted and scored images ----------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 7, 100])
def test_the_halves_are_disjoint_and_complete(count: int) -> None:
    fitted, scored = halves(count, generator_at(0, 0, "test"))
    assert sorted(fitted.tolist() + scored.tolist()) == list(range(count))
    assert len(scored) - len(fitted) in (0, 1)
    again = halves(count, generator_at(0, 0, "test"))
    assert torch.equal(fitted, again[0])


def before_scaling(result: CalibrationResult) -> dict[str, object]:
    return {name: network.before for name, network in result.networks.items()}


def temperatures(result: CalibrationResult) -> dict[str, float | None]:
    return {name: network.temperature for name, network in result.networks.items()}


def test_fitted_images_are_not_scored(tmp_path: Path) -> None:
    test = random_images(41, size=6)
    target = make_target(test, tmp_path / "original")
    fitted, scored = halves(41, target.generator("calibration/halves"))
    reference = run_suite(target)
    assert (reference.fitted_on, reference.fitted_images) == ("half of test", 20)
    assert reference.scored_images == 21

    other = test.labels.clone()
    other[scored] = (other[scored] + 1) % 4
    result = run_suite(make_target(relabeled(test, other), tmp_path / "scored"))
    assert temperatures(result) == temperatures(reference), "the scored half was fitted on"
    assert before_scaling(result) != before_scaling(reference)

    other = test.labels.clone()
    other[fitted] = (other[fitted] + 1) % 4
    result = run_suite(make_target(relabeled(test, other), tmp_path / "fitted"))
    assert before_scaling(result) == before_scaling(reference), "the fitted half was scored"
    assert temperatures(result) != temperatures(reference)


def test_the_temperature_is_fitted_on_validation_images_if_there_are_any(tmp_path: Path) -> None:
    test, val = random_images(30, size=6), random_images(25, size=6, seed=1)
    target = make_target(test, tmp_path, val=val)
    result = run_suite(target, bins=10)
    assert (result.fitted_on, result.fitted_images, result.scored_images) == ("val", 25, 30)
    val_logits, val_labels = target.logits(val)
    logits, labels = target.logits()
    for name, network in result.networks.items():
        temperature = fit_temperature(val_logits[name], val_labels)
        expected = Calibration(
            before=measure(logits[name], labels, 10),
            temperature=temperature,
            after=measure(logits[name], labels, 10, temperature),
        )
        assert network == expected


def test_without_a_temperature_every_test_image_is_scored(tmp_path: Path) -> None:
    target = make_target(random_images(30, size=6), tmp_path)
    result = run_suite(target, temperature=False)
    assert (result.fitted_on, result.fitted_images, result.scored_images) == (None, 0, 30)
    logits, labels = target.logits()
    for name, network in result.networks.items():
        assert network == Calibration(before=measure(logits[name], labels, 15))


def test_one_test_image_cannot_be_halved(tmp_path: Path) -> None:
    target = make_target(random_images(1, size=6), tmp_path)
    with pytest.raises(
        NotApplicableError, match="hold out validation images with val_fraction, or set"
    ):
        run_suite(target)
    assert run_suite(target, temperature=False).scored_images == 1


@pytest.mark.parametrize("bins", [0, "many"])
def test_a_wrong_setting_is_named(tmp_path: Path, bins: object) -> None:
    with pytest.raises(UsageError, match=r"calibration\.bins"):
        run_suite(make_target(random_images(4, size=6), tmp_path), bins=bins)


# --- the report ------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [True, False])
def test_the_section_shows_every_metric(tmp_path: Path, temperature: bool) -> None:
    target = make_target(random_images(40, size=6), tmp_path)
    record = evaluate(target, ["calibration"], {"calibration": {"temperature": temperature}})
    result = record.result("calibration")
    assert isinstance(result, CalibrationResult)
    part = section([(Evaluated("mine", record, tmp_path, 0), result)])
    (table,) = part.tables
    for row, (name, network) in zip(table.rows, result.networks.items(), strict=True):
        assert row[:2] == ("mine", name)
        stages = [network.before] + [network.after] * temperature
        assert row[2] == " → ".join(f"{100 * stage.ece:.2f}" for stage in stages if stage)
        assert row[5] == " → ".join(f"{stage.brier:.4f}" for stage in stages if stage)
        assert row[6:] == (
            (f"{network.temperature:.3f}", "20 test", "20") if temperature else ("–", "–", "40")
        )
    slugs = ["reliability", "reliability-scaled", "confidence"]
    assert [chart.slug for chart in part.charts] == (
        slugs if temperature else ["reliability", "confidence"]
    )
    assert ("half of the test images" in table.note) == temperature


def test_the_numbers_behind_the_histogram_are_its_bins(tmp_path: Path) -> None:
    target = make_target(random_images(40, size=6), tmp_path)
    record = evaluate(target, ["calibration"], {"calibration": {"bins": 4}})
    result = record.result("calibration")
    assert isinstance(result, CalibrationResult)
    chart = section([(Evaluated("mine", record, tmp_path, 0), result)]).charts[-1]
    rows = [row for row in chart.rows if row[0] == "mine, teacher"]
    bins = result.networks["teacher"].before.bins
    assert [row[1:5] for row in rows] == [
        (
            f"{25 * b:.1f} – {25 * (b + 1):.1f}",
            f"{100 * one.confidence:.2f}",
            f"{100 * one.accuracy:.2f}",
            str(one.images),
        )
        for b, one in enumerate(bins)
        if one.confidence is not None and one.accuracy is not None
    ]
    assert sum(int(row[4]) for row in rows) == result.scored_images


def test_the_page_and_the_record(tmp_path: Path) -> None:
    target = make_target(random_images(40, size=6), tmp_path)
    evaluate(target, ["calibration"], {})
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["suites"]["calibration"]["fitted_on"] == "half of test"
    assert record["settings"]["calibration"] == {"bins": 15, "temperature": True}
    page = write_evaluations(read_evaluated([tmp_path]), tmp_path / "page.html").read_text()
    assert 'id="reliability-scaled-title"' in page
    assert "a network is overconfident" in " ".join(page.split())
