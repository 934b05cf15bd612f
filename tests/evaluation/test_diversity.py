"""Distances between mixes by hand, and the same mixes at every kept checkpoint."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_NET, Command
from PIL import Image
from targets import make_target, random_images
from torch import Tensor

from adautomix.config import load_config
from adautomix.evaluation.diversity import (
    SUITE,
    DiversityResult,
    DiversitySettings,
    draw_params,
    image_distance,
    mask_distance,
    mean_difference,
    mixes_at,
    with_same_sources,
)
from adautomix.evaluation.load_target import EvalOptions, load_target
from adautomix.evaluation.mixing import plain_mixer, run_mixer, shuffled_batches, source_weights
from adautomix.evaluation.record import read_evaluation
from adautomix.evaluation.suite import NotApplicableError, ResultCache
from adautomix.evaluation.target import EvalTarget
from adautomix.mixing.ops import Mixed
from adautomix.reporting.evaluations import evaluation_sections
from adautomix.reporting.section import Evaluated
from adautomix.runs.trained import load_trained
from adautomix.training.run import train

EPOCHS = [1, 2, 3]
SETTINGS = DiversitySettings(images=16, draws=3, rows=2)


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of AdAutoMix with three kept checkpoints, and a run of Mixup without any."""
    folder = tmp_path_factory.mktemp("diversity")
    words = [str(word).removeprefix("--") for word in SMALL_NET]
    net = dict(zip(words[::2], words[1::2], strict=True))
    for method, own in {
        "adautomix": {"epochs": 3, "keep_every": 1},
        "mixup": {"epochs": 1},
    }.items():
        flags = {"data": str(photos), "batch_size": 6, "lr": 0.5, "out": folder / method}
        train(load_config(flags=net | flags | own | {"method": method}), quiet=True)
    return {method: folder / method for method in ("adautomix", "mixup")}


def target_of(run: Path, out: Path) -> EvalTarget:
    return load_target(str(run), EvalOptions({}, device="cpu", out=out))


def run_suite(target: EvalTarget, settings: DiversitySettings = SETTINGS) -> DiversityResult:
    cache = ResultCache(target.folder / "parts.jsonl", "diversity/0", target.folder / "pictures")
    found = SUITE.run(target, settings, cache)
    assert isinstance(found, DiversityResult)
    return found


def mean_over_pairs(values: Tensor) -> Tensor:
    pairs = itertools.combinations(values, 2)
    return torch.stack([(one - other).abs() for one, other in pairs]).mean(dim=0)


# --- distances -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_mean_difference_is_over_all_pairs(count: int) -> None:
    values = torch.randn(count, 4, 2, 3, generator=torch.Generator().manual_seed(count))
    torch.testing.assert_close(mean_difference(values), mean_over_pairs(values))


def test_mask_distance_by_hand() -> None:
    """Two mixes on 1 × 4 pixels at three checkpoints; the second does not move."""
    first = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 0]])
    still = torch.full((3, 4), 0.3)
    own = torch.stack([first, still], dim=1)[:, :, None, None]
    masks = torch.cat([own, 1 - own], dim=2)
    # Pixels that move to the other source: 4 of 4, then 3 of 4; 1 of 4 between first and last.
    assert mask_distance(masks).tolist() == pytest.approx([(1 + 3 / 4 + 1 / 4) / 3, 0])
    assert mask_distance(masks[:2]).tolist() == [1, 0]
    assert mask_distance(masks[1:]).tolist() == [0.75, 0]


def test_a_pixel_that_moves_to_a_third_source_counts_once() -> None:
    masks = torch.zeros(2, 1, 3, 1, 2)
    masks[:, 0, 0, 0, 0] = 1
    masks[0, 0, 1, 0, 1] = masks[1, 0, 2, 0, 1] = 1
    assert mask_distance(masks).tolist() == [0.5]


def test_image_distance_is_a_mean_over_pixels_and_channels() -> None:
    images = torch.zeros(2, 1, 3, 2, 2)
    images[1, 0, 1] = 0.6
    assert image_distance(images).tolist() == pytest.approx([0.2])


# --- over draws ------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_draws_have_the_same_sources(runs: dict[str, Path], tmp_path: Path) -> None:
    target = target_of(runs["adautomix"], tmp_path)
    mixer, generator = run_mixer(target), torch.Generator().manual_seed(0)
    pixels, labels = next(target.batches())
    mixes = [
        mixer.mix(pixels, labels, params)
        for params in draw_params(mixer, pixels, SETTINGS.draws, generator)
    ]
    assert len(mixes) == 3
    assert all(torch.equal(mixed.perm, mixes[0].perm) for mixed in mixes)
    lams = torch.stack([mixed.lam for mixed in mixes]).flatten(0, 1)
    assert len(lams.unique(dim=0)) == len(lams)


def test_mixes_whose_sources_changed_are_removed() -> None:
    def mixed_from(perm: list[list[int]]) -> Mixed:
        rows = torch.arange(3.0)[:, None, None, None]
        return Mixed(rows, torch.zeros(3, 2), torch.full((3, 2), 0.5), torch.tensor(perm))

    kept = with_same_sources(
        [mixed_from([[0, 1], [1, 2], [2, 0]]), mixed_from([[0, 1], [1, 0], [2, 0]])]
    )
    assert [mixed.images.flatten().tolist() for mixed in kept] == [[0, 2], [0, 2]]


def test_the_spread_of_mixup_follows_from_lam(runs: dict[str, Path], tmp_path: Path) -> None:
    target = target_of(runs["mixup"], tmp_path)
    found = run_suite(target)
    generator = target.generator("diversity/spread")
    mixer = plain_mixer("mixup", target)
    masks, images = [], []
    batches = shuffled_batches(target, 16, target.generator("diversity/images"))
    for pixels, _ in batches:
        draws: list[Any] = [mixer.make_params(pixels, generator) for _ in range(3)]
        perm = draws[0].perm
        far = (pixels[perm[:, 0]] - pixels[perm[:, 1]]).abs().mean(dim=(1, 2, 3))
        for one, other in itertools.combinations(draws, 2):
            moved = (one.lam[:, 0] - other.lam[:, 0]).abs()
            masks.append(moved)
            images.append(moved * far)
    assert found.spread.masks == pytest.approx(float(torch.cat(masks).mean()), rel=1e-4)
    assert found.spread.images == pytest.approx(float(torch.cat(images).mean()), rel=1e-4)
    assert (found.mixes, found.draws, found.method) == (16, 3, "mixup")


def test_a_note_explains_how_to_keep_checkpoints(runs: dict[str, Path], tmp_path: Path) -> None:
    found = run_suite(target_of(runs["mixup"], tmp_path))
    assert found.training is None
    assert found.epochs == []
    assert found.note == (
        "the run kept fewer than two checkpoints; train with --keep-every 5, for example, to "
        "compare the same mixes over training"
    )


# --- over training ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_pairs_at_every_checkpoint(runs: dict[str, Path], tmp_path: Path) -> None:
    target = target_of(runs["adautomix"], tmp_path)
    at = {epoch: list(mixes_at(target, SETTINGS, epoch)) for epoch in EPOCHS}
    for epoch in EPOCHS[1:]:
        for mixed, first in zip(at[epoch], at[1], strict=True):
            assert torch.equal(mixed.perm, first.perm)
            assert torch.equal(mixed.lam, first.lam)
            assert not torch.equal(source_weights(mixed), source_weights(first))


@pytest.mark.slow
def test_distances_over_training_by_hand(runs: dict[str, Path], tmp_path: Path) -> None:
    """Masks are computed with the generator and teacher of each checkpoint."""
    run = runs["adautomix"]
    target = target_of(run, tmp_path)
    found = run_suite(target)
    (reference,) = mixes_at(target, SETTINGS, 1)
    batches = shuffled_batches(target, 16, target.generator("diversity/images"))
    ((pixels, _),) = list(batches)
    masks = []
    for epoch in EPOCHS:
        trained = load_trained(run, checkpoint=f"epoch-{epoch:04d}", device="cpu")
        method: Any = trained.method
        assert trained.step == 4 * epoch
        with torch.no_grad():
            features = trained.networks["teacher"].feature_map(
                target.networks["teacher"].normalize(pixels), method.tap
            )
            drawn = method.generator(features, reference.perm, reference.lam, (16, 16))
        lam = reference.lam[:, :1, None, None]
        plain = (lam <= 0.03) | (lam > 0.97)
        masks.append(torch.where(plain, reference.lam[:, :, None, None], drawn))

    def distance(one: Tensor, other: Tensor) -> float:
        return float((one - other).abs().sum(dim=1).mean() / 2)

    a, b, c = masks
    assert found.training is not None
    assert found.training.consecutive == pytest.approx([distance(a, b), distance(b, c)], rel=1e-3)
    pairs = [distance(a, b), distance(b, c), distance(a, c)]
    assert found.training.pairwise == pytest.approx(sum(pairs) / 3, rel=1e-3)
    assert found.training.pairwise > 0
    assert (found.epochs, found.note) == (EPOCHS, "")
    picture = Image.open(tmp_path / "pictures" / found.training.picture)
    assert picture.size == (12 + 6 * 140, 34 + 2 * (12 + 2 * 150))  # 3 sources, 3 checkpoints
    assert run_suite(target) == found


@pytest.mark.slow
def test_the_number_of_checkpoints_is_limited(runs: dict[str, Path], tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"checkpoints": 2})
    found = run_suite(target_of(runs["adautomix"], tmp_path), settings)
    assert found.epochs == [1, 3]
    assert found.training is not None
    assert found.training.pairwise == found.training.consecutive[0]


# --- the report ------------------------------------------------------------------------------


def test_the_suite_does_not_apply_to_other_networks(tmp_path: Path) -> None:
    with pytest.raises(NotApplicableError, match="diversity needs a run, and noise is not one"):
        run_suite(make_target(random_images(8, 6), tmp_path))


@pytest.mark.slow
def test_the_section_has_table_chart_picture_and_note(
    runs: dict[str, Path], tmp_path: Path, command: Command
) -> None:
    words = ("--suites", "diversity", "--diversity.images", 16)
    found = []
    for color, (method, run) in enumerate(runs.items()):
        outcome = command("evaluate", run, *words, "--out", tmp_path / method)
        assert outcome.status == 0, outcome.err
        record = read_evaluation(tmp_path / method)
        assert record is not None
        found.append(Evaluated(method, record, tmp_path / method, color))
    (section,) = evaluation_sections(found)
    (table,) = section.tables
    assert [row[1] for row in table.rows] == ["adautomix", "mixup"]
    assert table.rows[1][4:] == ("–", "–", "–")
    assert "mixup: the run kept fewer than two checkpoints" in table.note
    assert "--keep-every" in table.note
    (chart,) = section.charts
    assert [row[:2] for row in chart.rows] == [("adautomix", "2"), ("adautomix", "3")]
    (picture,) = section.pictures
    assert picture.source.startswith("data:image/webp;base64,")
    assert "data:image/webp" in (tmp_path / "adautomix/report.html").read_text()
    assert "--keep-every" in (tmp_path / "mixup/report.html").read_text()
