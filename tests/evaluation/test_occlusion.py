"""The occlusion suite against a loop over images and patches, and with any batch size."""

import base64
import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from targets import MEAN, STD, linear_network, make_target, random_images, top1_accuracy
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.evaluation.evaluate import evaluate
from adautomix.evaluation.occlusion import (
    PICTURE_FRACTIONS,
    OcclusionResult,
    area_under,
    default_patch,
    hidden_batches,
    hidden_pixels,
    hide,
    random_order,
)
from adautomix.evaluation.target import EvalTarget, PixelNetwork
from adautomix.reporting.evaluations import read_evaluated, write_evaluations
from adautomix.reporting.section import Evaluated
from adautomix.reporting.sections.occlusion import section
from adautomix.rng import generator_at


def run_suite(target: EvalTarget, **settings: object) -> OcclusionResult:
    result = evaluate(target, ["occlusion"], {"occlusion": settings}).result("occlusion")
    assert isinstance(result, OcclusionResult)
    return result


def paint(image: Tensor, patches: list[int], patch: int, color: Tensor) -> Tensor:
    """Paint patch by patch and pixel by pixel; patches are numbered row by row."""
    painted, size = image.clone(), image.shape[-1]
    side = -(-size // patch)
    for number in patches:
        top, left = number // side * patch, number % side * patch
        for y in range(top, min(top + patch, size)):
            for x in range(left, min(left + patch, size)):
                painted[:, y, x] = color
    return painted


def by_hand(target: EvalTarget, fraction: float, patch: int) -> dict[str, float]:
    """Return the accuracies, computed image by image."""
    size, test = target.data.image_size, target.data.test
    patches = (-(-size // patch)) ** 2
    generator = target.generator("occlusion")
    right = dict.fromkeys(target.networks, 0)
    for pixels, label in zip(*next(target.batches(batch_size=len(test))), strict=True):
        numbers = torch.rand(patches, dtype=torch.float64, generator=generator).tolist()
        order = sorted(range(patches), key=numbers.__getitem__)
        for name, network in target.networks.items():
            painted = paint(
                pixels, order[: round(fraction * patches)], patch, network.mean[:, 0, 0]
            )
            right[name] += int(network(painted[None]).argmax() == label)
    return {name: count / len(test) for name, count in right.items()}


# --- against a slow loop ---------------------------------------------------------------------


@pytest.mark.parametrize(("size", "patch"), [(8, 2), (10, 4), (9, None), (6, 5)])
def test_the_curve_equals_a_loop_over_images(tmp_path: Path, size: int, patch: int | None) -> None:
    networks = {
        "student": linear_network(size),
        "teacher": linear_network(size, seed=1, mean=(0.1, 0.9, 0.3)),
    }
    target = make_target(random_images(37, size), tmp_path, networks=networks)
    result = run_suite(target, steps=4, patch=patch)
    assert result.fractions == [0, 0.25, 0.5, 0.75, 1]
    for step, fraction in enumerate(result.fractions):
        expected = by_hand(target, fraction, result.patch)
        assert {n: curve.accuracy[step] for n, curve in result.networks.items()} == expected
    curves = [curve.accuracy for curve in result.networks.values()]
    assert len({value for curve in curves for value in curve}) > 3, "hiding patches changes nothing"


@pytest.mark.parametrize(("size", "patch", "patches"), [(8, 2, 16), (10, 4, 9), (6, 50, 1)])
def test_the_patches_cover_the_image(tmp_path: Path, size: int, patch: int, patches: int) -> None:
    result = run_suite(make_target(random_images(4, size), tmp_path), steps=1, patch=patch)
    assert (result.patch, result.patches) == (min(patch, size), patches)


def test_nothing_hidden_gives_the_clean_accuracy(tmp_path: Path) -> None:
    target = make_target(random_images(37, 8), tmp_path)
    plain = top1_accuracy(*target.logits())
    assert {n: c.accuracy[0] for n, c in run_suite(target, steps=2).networks.items()} == plain


@pytest.mark.parametrize(("size", "patch"), [(8, 2), (10, 4), (7, 7)])
def test_everything_hidden_covers_every_pixel(tmp_path: Path, size: int, patch: int) -> None:
    target = make_target(random_images(5, size), tmp_path)
    network = target.networks["student"]
    for pixels, _, hidden in hidden_batches(target, 1.0, patch):
        assert hidden.shape == (len(pixels), 1, size, size)
        assert hidden.all()
        assert torch.equal(
            network.normalize(hide(pixels, hidden, network.mean)), torch.zeros_like(pixels)
        ), "the mean color does not normalize to zero"


def test_area_by_hand() -> None:
    assert area_under([0, 0.5, 1], [0.8, 0.6, 0.1]) == pytest.approx(0.5 * 0.7 + 0.5 * 0.35)
    assert area_under([0, 0.25, 1], [1, 1, 1]) == 1


def test_the_area_is_that_under_the_curve(tmp_path: Path) -> None:
    result = run_suite(make_target(random_images(30, 8), tmp_path), steps=4)
    for curve in result.networks.values():
        means = [(a + b) / 2 for a, b in pairwise(curve.accuracy)]
        assert curve.area == pytest.approx(sum(means) / 4)


# --- random orders ---------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "patch", "patches"), [(32, 4, 64), (10, 2, 25), (9, 4, 9)])
@pytest.mark.parametrize("fraction", [0, 0.1, 0.3, 0.5, 0.77, 1])
def test_the_number_of_hidden_patches(size: int, patch: int, patches: int, fraction: float) -> None:
    order = random_order(20, patches, generator_at(0, 0, "test"))
    hidden = hidden_pixels(order, fraction, size, patch)[:, 0]
    corners = hidden[:, ::patch, ::patch]
    assert corners.sum(dim=(1, 2)).tolist() == [round(fraction * patches)] * 20
    for y, x in ((y, x) for y in range(size) for x in range(size)):
        assert torch.equal(hidden[:, y, x], corners[:, y // patch, x // patch])


def test_a_hidden_patch_stays_hidden_at_larger_fractions() -> None:
    order = random_order(20, 64, generator_at(0, 0, "test"))
    masks = [hidden_pixels(order, step / 10, 32, 4) for step in range(11)]
    for fewer, more in pairwise(masks):
        assert not (fewer & ~more).any()
        assert (more & ~fewer).flatten(1).any(dim=1).all()


def test_every_image_has_its_own_order() -> None:
    order = random_order(50, 16, generator_at(0, 0, "test"))
    assert order.sort(dim=1).values.tolist() == [list(range(16))] * 50
    assert len({tuple(row) for row in order.tolist()}) == 50
    first = random_order(4000, 16, generator_at(0, 0, "test"))[:, 0].bincount(minlength=16)
    assert first.min() > 180, "some patches are hidden first more often than 4000 / 16 by chance"
    assert first.max() < 320


def test_masks_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    test = random_images(37, 8)

    def masks(batch_size: int) -> Tensor:
        target = make_target(test, tmp_path, batch_size=batch_size)
        return torch.cat([hidden for _, _, hidden in hidden_batches(target, 0.4, 1)])

    whole = masks(37)
    assert whole.any()
    for batch_size in (1, 3, 16, 36):
        assert torch.equal(masks(batch_size), whole), batch_size


def test_results_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    test = random_images(37, 8)
    small = run_suite(make_target(test, tmp_path / "small", batch_size=5))
    assert run_suite(make_target(test, tmp_path / "large", batch_size=500)) == small


@pytest.mark.parametrize(
    ("size", "patch"),
    [(4, 1), (8, 1), (16, 2), (28, 3), (32, 4), (48, 4), (64, 5), (96, 7), (224, 16), (384, 27)],
)
def test_the_default_patch(size: int, patch: int) -> None:
    assert default_patch(size) == patch


@pytest.mark.parametrize("name", ["steps", "patch"])
def test_a_wrong_setting_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"occlusion\.{name}"):
        run_suite(make_target(random_images(4, 6), tmp_path), **{name: 0})


# --- interrupted and continued ---------------------------------------------------------------


class StoppedError(Exception):
    """Interrupts the suite in the test."""


class Failing(PixelNetwork):
    """Counts its forward passes, and raises an error at one of them."""

    def __init__(self, network: PixelNetwork, fails_at: int | None) -> None:
        super().__init__(network.model, MEAN, STD)
        self.fails_at, self.forwards = fails_at, 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.forwards += 1
        if self.forwards == self.fails_at:
            raise StoppedError
        return super().forward(pixels)


def test_an_interrupted_suite_continues(tmp_path: Path) -> None:
    test = random_images(37, 8)  # three batches of at most 16 images per fraction

    def target(folder: str, fails_at: int | None = None) -> tuple[EvalTarget, Failing]:
        network = Failing(linear_network(8), fails_at)
        return make_target(test, tmp_path / folder, networks={"network": network}), network

    whole, counter = target("whole")
    expected = run_suite(whole)
    assert counter.forwards == 3 * 11
    stopped, _ = target("stopped", fails_at=3 * 4 + 2)  # in the middle of the fifth fraction
    with pytest.raises(StoppedError):
        run_suite(stopped)
    again, counter = target("stopped")
    assert run_suite(again) == expected
    assert counter.forwards == 3 * (11 - 4), "stored results were computed again"


# --- the report ------------------------------------------------------------------------------


def evaluate_into(folder: Path, **settings: object) -> tuple[OcclusionResult, Any]:
    target = make_target(random_images(30, 8), folder)
    record = evaluate(target, ["occlusion"], {"occlusion": settings})
    result = record.result("occlusion")
    assert isinstance(result, OcclusionResult)
    return result, (Evaluated("mine", record, folder, 0), result)


def test_the_section_shows_every_number(tmp_path: Path) -> None:
    result, evaluated = evaluate_into(tmp_path)
    part = section([evaluated])
    (table,), (chart,) = part.tables, part.charts
    assert table.columns[4:] == ("0 %", "20 %", "50 %", "80 %", "100 %")
    for row, line, (name, curve) in zip(
        table.rows, chart.rows, result.networks.items(), strict=True
    ):
        assert row[:4] == ("mine", name, "1", f"{curve.area:.4f}")
        assert list(row[4:]) == [f"{100 * curve.accuracy[at]:.2f}" for at in (0, 2, 5, 8, 10)]
        assert line == (f"mine, {name}", *(f"{100 * value:.2f}" for value in curve.accuracy))


def test_runs_with_different_fractions_share_a_table(tmp_path: Path) -> None:
    first, one = evaluate_into(tmp_path / "one", steps=2)
    _, other = evaluate_into(tmp_path / "other", steps=4)
    rows = section([one, other]).charts[0].rows
    accuracies = [f"{100 * value:.2f}" for value in first.networks["student"].accuracy]
    assert rows[0][1:] == (accuracies[0], "–", accuracies[1], "–", accuracies[2])
    assert "–" not in rows[2]


def test_the_picture(tmp_path: Path) -> None:
    _, evaluated = evaluate_into(tmp_path, patch=2)
    (picture,) = section([evaluated]).pictures
    data = base64.b64decode(picture.source.partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    tile, gap = 112, 6  # 8 pixels enlarged 14 times
    assert pixels.shape == (3 * (tile + gap) + gap, 6 * (tile + gap) + gap, 3)
    columns = [
        pixels[gap : gap + tile : 14, gap + n * (tile + gap) :][:, :tile:14].astype(int)
        for n in range(len(PICTURE_FRACTIONS))
    ]
    test = random_images(30, 8)
    assert np.array_equal(columns[0], test.images[0].numpy())
    mean = np.rint(255 * np.array(MEAN)).astype(int)
    assert np.abs(columns[-1] - mean).max() <= 1
    for column, fraction in zip(columns, PICTURE_FRACTIONS, strict=True):
        covered = (np.abs(column - mean) <= 1).all(axis=2)[::2, ::2]
        assert covered.sum() == round(fraction * 16)


def test_the_page(tmp_path: Path) -> None:
    evaluate_into(tmp_path)
    page = write_evaluations(read_evaluated([tmp_path]), tmp_path / "page.html").read_text()
    assert 'id="occlusion-curve-title"' in page
    assert re.search(r'<img src="data:image/png;base64,[^"]+" alt="Test images of noise', page)
