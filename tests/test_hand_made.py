"""The hand-made mixes, recomputed sample by sample, and beside timm's and torchvision's."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import pytest
import scipy.stats
import timm.data.mixup
import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as tv
from tiny import CLASSES, TinyClassifier, state_of, toy_images
from torch import Tensor
from torchvision.ops import roi_align

from adautomix.errors import UsageError
from adautomix.methods import recursivemix as recursivemix_module
from adautomix.methods.base import (
    InputMixing,
    Method,
    Mixed,
    Sources,
    captured_share,
    draw_beta,
    draw_partners,
    soft_targets,
)
from adautomix.methods.cutmix import CutMix, CutMixDraw
from adautomix.methods.cutout import Cutout, CutoutDraw, draw_cutout
from adautomix.methods.fmix import (
    FMix,
    FMixDraw,
    Spectrum,
    draw_fmix,
    highest,
    noise_of,
    random_waves,
)
from adautomix.methods.gridmix import (
    CellsDraw,
    GridMix,
    GridMixSettings,
    LatticeDraw,
    draw_cells,
    draw_lattice,
)
from adautomix.methods.hidden import altered, with_partners
from adautomix.methods.manifoldmix import ManifoldMix, ManifoldMixDraw
from adautomix.methods.mixup import Mixup, MixupDraw
from adautomix.methods.mixup_cutmix import (
    MixupCutMix,
    MixupCutMixDraw,
    MixupCutMixSettings,
    draw_mixup_cutmix,
    draw_stretch,
)
from adautomix.methods.recursivemix import (
    HISTORY,
    RecursiveMix,
    RecursiveMixDraw,
    box_average,
    draw_recursivemix,
)
from adautomix.methods.resizemix import (
    ResizeMix,
    ResizeMixDraw,
    ResizeMixSettings,
    draw_resizemix,
)
from adautomix.methods.smoothmix import SmoothMix, SmoothMixDraw, draw_smoothmix, smooth_mask
from adautomix.methods.vanilla import Vanilla
from adautomix.models import Classifier, build_model

HEIGHT, WIDTH = 12, 10


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    """Random images, and a label that no other image has."""
    images = torch.rand(count, 3, HEIGHT, WIDTH, generator=rng(1))
    return images, torch.eye(max(count, 6))[:count]


def make(cls: type[Method], classes: int = 6, **options: Any) -> Any:
    return cls(cls.Settings(**options), num_classes=classes, seed=3)


CASES: dict[str, Callable[[], Any]] = {
    "cutout": lambda: make(Cutout, size=4, holes=2),
    "fmix": lambda: make(FMix, alpha=1.0),
    "fmix-each": lambda: make(FMix, alpha=1.0, per_sample=True),
    "fmix-isotropic": lambda: make(FMix, alpha=1.0, spectrum="isotropic", per_sample=True),
    "lattice": lambda: make(GridMix, alpha=1.0),
    "lattice-each": lambda: make(GridMix, alpha=1.0, per_sample=True),
    "cells": lambda: make(GridMix, pattern="cells", alpha=1.0),
    "cells-each": lambda: make(GridMix, pattern="cells", alpha=1.0, per_sample=True),
    "resizemix": lambda: make(ResizeMix),
    "resizemix-each": lambda: make(ResizeMix, per_sample=True),
    "circle": lambda: make(SmoothMix),
    "circle-each": lambda: make(SmoothMix, per_sample=True),
    "square": lambda: make(SmoothMix, pattern="square", per_sample=True),
    "mixup+cutmix: mixup": lambda: make(MixupCutMix, switch_prob=0),
    "mixup+cutmix: cutmix": lambda: make(MixupCutMix, switch_prob=1),
    "mixup+cutmix: each": lambda: make(MixupCutMix, prob=0.8, per_sample=True),
}
EVERY = pytest.mark.parametrize("case", CASES)
MIXING = pytest.mark.parametrize("case", [case for case in CASES if case != "cutout"])


def masks_of(mixed: Mixed) -> Tensor:
    if mixed.masks is not None:
        return mixed.masks
    return mixed.lam[:, :, None, None].expand(-1, -1, HEIGHT, WIDTH)


# ---------------------------------------------------------------------- what holds for all


@MIXING
def test_mixes_follow_their_ledger(case: str) -> None:
    """Images and labels summed up one source at a time; patches of ResizeMix are tested below."""
    method = CASES[case]()
    images, targets = batch()
    if "resize" in case:
        images = images.mean(dim=(2, 3), keepdim=True).expand_as(images).contiguous()
    for step in range(4):
        mixed = method.mix(images, targets, method.draw(images.shape, rng(step), step))
        masks = masks_of(mixed)
        assert masks.shape == (6, 2, HEIGHT, WIDTH)
        torch.testing.assert_close(masks.sum(dim=1), torch.ones(6, HEIGHT, WIDTH))
        torch.testing.assert_close(mixed.lam.sum(dim=1), torch.ones(6))
        for b in range(6):
            (own, partner), (lam, rest) = mixed.perm[b].tolist(), mixed.lam[b].tolist()
            expected = masks[b, 0].double() * images[own] + masks[b, 1].double() * images[partner]
            torch.testing.assert_close(mixed.images[b].double(), expected, atol=1e-6, rtol=0)
            label = [0.0] * 6
            label[own] += lam
            label[partner] += rest
            assert own == b
            assert mixed.targets[b].tolist() == pytest.approx(label, abs=1e-6)


@MIXING
def test_label_share_is_the_share_of_the_picture(case: str) -> None:
    """Every image of one grey: the grey of a mix is the mix of the greys by its label."""
    method = CASES[case]()
    greys = torch.rand(6, generator=rng(8))
    images = greys[:, None, None, None].expand(6, 3, HEIGHT, WIDTH).contiguous()
    pixel = 1 / (HEIGHT * WIDTH) if "fmix" in case else 1e-6
    seen = set()
    for step in range(6):
        mixed = method.mix(images, torch.eye(6), method.draw(images.shape, rng(step), step))
        recounted = mixed.images.mean(dim=(1, 2, 3))
        torch.testing.assert_close(recounted, mixed.targets @ greys, atol=pixel, rtol=0)
        seen.update(mixed.lam[:, 0].tolist())
    assert len(seen) > 1


@MIXING
def test_an_image_mixed_with_itself_is_itself(case: str) -> None:
    method = CASES[case]()
    images, targets = batch(1)
    if "resize" in case:
        images = torch.full_like(images, 0.3)
    mixed = method.mix(images, targets, method.draw(images.shape, rng(2), 0))
    torch.testing.assert_close(mixed.images, images)
    torch.testing.assert_close(mixed.targets, targets)


@EVERY
def test_rows_of_a_draw_are_rows_of_the_mix(case: str) -> None:
    """Fewer mixes than images, an odd number of them: those of the whole batch."""
    method = CASES[case]()
    images, targets = batch(7)
    for step in range(3):
        draw = method.draw(images.shape, rng(step), step)
        whole = method.mix(images, targets, draw)
        for some in (slice(1, 4), slice(2, 3), slice(0, 7)):
            part = method.mix(images, targets, draw.rows(some))
            torch.testing.assert_close(part.images, whole.images[some], rtol=0, atol=1e-7)
            torch.testing.assert_close(part.targets, whole.targets[some], rtol=0, atol=1e-7)
            assert torch.equal(part.lam, whole.lam[some])
            assert torch.equal(part.perm, whole.perm[some])


@EVERY
def test_mixes_may_come_in_any_order(case: str) -> None:
    """Fewer of them than images: column 0 of `perm` says whose they are."""
    method = CASES[case]()
    images, targets = batch(7)
    draw = method.draw(images.shape, rng(), 0)
    whole = method.mix(images, targets, draw)
    order = torch.tensor([3, 0, 6])
    picked = {name: value[order] for name, value in vars(draw).items() if isinstance(value, Tensor)}
    mixed = method.mix(images, targets, dataclasses.replace(draw, **picked))
    torch.testing.assert_close(mixed.images, whole.images[order], rtol=0, atol=1e-7)
    torch.testing.assert_close(mixed.targets, whole.targets[order], rtol=0, atol=1e-7)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(case: str, dtype: torch.dtype) -> None:
    method = CASES[case]()
    images, targets = batch()
    draw = method.draw(images.shape, rng(3), 0)
    half = method.mix(images.to(dtype), targets, draw)
    full = method.mix(images, targets, draw)
    assert half.images.dtype == dtype
    torch.testing.assert_close(half.images.float(), full.images, atol=0.012, rtol=0)
    assert torch.equal(half.targets, full.targets)


@EVERY
def test_inputs_and_their_layout_are_left_alone(case: str) -> None:
    method = CASES[case]()
    images, targets = batch()
    plain = method.mix(images, targets, method.draw(images.shape, rng(3), 0))
    images = images.to(memory_format=torch.channels_last)
    kept = images.clone(), targets.clone()
    draw = method.draw(images.shape, rng(3), 0)
    for some in (draw, draw.rows(slice(1, 4))):
        mixed = method.mix(images, targets, some)
        assert mixed.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images, kept[0])
        assert torch.equal(targets, kept[1])
    torch.testing.assert_close(method.mix(images, targets, draw).images, plain.images)


@EVERY
def test_draws_depend_on_the_generator_alone(case: str) -> None:
    method = CASES[case]()
    one = method.draw((9, 3, HEIGHT, WIDTH), rng(4), 0)
    torch.rand(7)  # somebody else draws
    other = CASES[case]().draw((9, 3, HEIGHT, WIDTH), rng(4), 1)
    third = method.draw((9, 3, HEIGHT, WIDTH), rng(5), 0)
    assert same(one, other)
    assert not same(one, third)
    tensors = [value for value in vars(one).values() if isinstance(value, Tensor)]
    assert all(len(value) == 9 and value.is_contiguous() for value in tensors)


def same(one: Any, other: Any) -> bool:
    values = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in values)


@pytest.mark.parametrize("case", [case for case in CASES if "each" in case or case == "square"])
def test_each_mix_has_a_label_of_its_own(case: str) -> None:
    """Shuffled within the batch the labels give another loss: none is averaged away."""
    method = CASES[case]()
    images, targets = batch()
    mixed = method.mix(images, targets, method.draw(images.shape, rng(3), 0))
    assert len(mixed.lam[:, 0].unique()) > 3
    logits = torch.randn(6, 6, generator=rng(6))
    shuffled = mixed.targets.roll(1, dims=0)
    losses = (method.cross_entropy(logits, labels) for labels in (mixed.targets, shuffled))
    assert next(losses).item() != pytest.approx(next(losses).item(), abs=1e-3)


@EVERY
def test_labels_of_any_mass(case: str) -> None:
    """Rows that do not sum to 1 are mixed as they are."""
    method = CASES[case]()
    images, _ = batch()
    several = (torch.rand(6, 4, generator=rng(9)) > 0.4).float()
    draw = method.draw(images.shape, rng(3), 0)
    mixed = method.mix(images, several, draw)
    expected = torch.einsum("bn,bnk->bk", mixed.lam, several[mixed.perm])
    torch.testing.assert_close(mixed.targets, expected)


@EVERY
def test_a_mix_is_one_graph(case: str) -> None:
    method = CASES[case]()
    assert isinstance(method, InputMixing)
    images, targets = batch()
    torch._dynamo.reset()
    compiled = torch.compile(method.mix, fullgraph=True, backend="eager")
    for step in range(3):
        draw = method.draw(images.shape, rng(step), step)
        ours, plain = compiled(images, targets, draw), method.mix(images, targets, draw)
        assert torch.equal(ours.images, plain.images)
        assert torch.equal(ours.targets, plain.targets)


def test_settings_out_of_order_are_refused() -> None:
    with pytest.raises(UsageError, match=r"gridmix.holes_min = 9 is above holes_max = 6"):
        GridMixSettings(holes_min=9)
    with pytest.raises(UsageError, match=r"resizemix.scale_min = 0.9 is above scale_max = 0.8"):
        ResizeMixSettings(scale_min=0.9)


# ---------------------------------------------------------------------- Cutout


def test_cutout_pixel_by_pixel() -> None:
    images, targets = batch(4)
    boxes = torch.tensor(
        [
            [[0, 4, 0, 4], [2, 6, 3, 7]],
            [[8, 12, 6, 10], [8, 12, 6, 10]],
            [[3, 3, 0, 10], [5, 6, 5, 5]],
            [[0, 12, 0, 10], [1, 2, 1, 2]],
        ]
    )
    mixed = make(Cutout).mix(images, targets, CutoutDraw(torch.arange(4)[:, None], boxes))
    for b in range(4):
        for y in range(HEIGHT):
            for x in range(WIDTH):
                hole = any(t <= y < e and left <= x < r for t, e, left, r in boxes[b].tolist())
                expected = torch.zeros(3) if hole else images[b, :, y, x]
                assert torch.equal(mixed.images[b, :, y, x], expected)
    assert torch.equal(mixed.targets, targets)
    assert mixed.lam.tolist() == [[1.0]] * 4


def test_holes_are_even_squares_clipped_to_the_image() -> None:
    """The mean length of holes of 8 pixels in 32 by 20, over all centres, exactly."""
    boxes = draw_cutout(20_000, 32, 20, 8, 1, rng()).boxes[:, 0]
    sides = boxes[:, 1::2] - boxes[:, ::2]
    assert sides.max() == 8
    assert (boxes >= 0).all()
    for side, end, size in zip(sides.T, boxes[:, 1::2].T, (32, 20), strict=True):
        lengths = [min(c + 4, size) - max(c - 4, 0) for c in range(size)]
        assert side.double().mean().item() == pytest.approx(sum(lengths) / size, rel=0.01)
        assert end.max() == size
    assert abs(torch.corrcoef(sides.T.double())[0, 1]) < 0.05


def test_cutout_of_no_size_is_the_identity() -> None:
    images, targets = batch()
    method = make(Cutout, size=0)
    assert torch.equal(
        method.mix(images, targets, method.draw(images.shape, rng(), 0)).images, images
    )


# ---------------------------------------------------------------------- FMix


def complex_noise(seeds: Tensor, count: int) -> Any:
    return torch.view_as_complex(noise_of(seeds, count)).numpy()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 10), (9, 24), (24, 10)])
def test_waves_are_numpys_transform_of_the_same_noise(height: int, width: int) -> None:
    seeds = torch.tensor([5, 2**31 + 3])
    half = width // 2 + 1
    across, down = np.fft.rfftfreq(width), np.fft.fftfreq(height)
    floor = 1 / max(height, width)
    noise = complex_noise(seeds, 2 * half).reshape(2, half, 2)
    first = np.maximum(across, floor) ** -3.0
    second = np.maximum(np.hypot(1 / height, across), floor) ** -3.0
    waves = noise.real * first[:, None] + 1j * noise.imag * second[:, None]
    expected = np.stack([np.fft.irfftn(wave, (height, width), (0, 1)) for wave in waves])
    ours = random_waves(seeds, height, width, 3.0, "reference").double().numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-6 * np.abs(expected).max())

    noise = complex_noise(seeds, height * half).reshape(2, height, half)
    damped = noise * np.maximum(np.hypot(down[:, None], across), floor) ** -3.0
    expected = np.stack([np.fft.irfftn(wave, (height, width), (0, 1)) for wave in damped])
    ours = random_waves(seeds, height, width, 3.0, "isotropic").double().numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-6 * np.abs(expected).max())


def test_the_reference_has_one_wave_across_and_the_paper_more() -> None:
    power = {}
    for spectrum in get_args(Spectrum):
        waves = random_waves(torch.arange(600), 32, 32, 3.0, spectrum)
        waves = waves - waves.mean(dim=(1, 2), keepdim=True)
        columns = torch.fft.rfft2(waves).abs().square().sum(dim=(0, 1))
        power[spectrum] = columns / columns.sum()
    assert power["reference"][2:].sum() < 1e-6
    assert power["reference"][1] > 0.8
    assert power["isotropic"][0] > 0.2
    assert 0.01 < power["isotropic"][2:].sum() < 0.05


def test_noise_is_normal_and_seeds_are_unrelated() -> None:
    parts = noise_of(torch.arange(40) * 97, 3000).flatten(1)
    assert scipy.stats.kstest(parts.flatten().numpy()[::5], "norm").pvalue > 0.001
    limit = 5 / math.sqrt(6000)
    assert (torch.corrcoef(parts) - torch.eye(40)).abs().max() < limit
    for lag in (1, 2, 7):
        assert (parts[:, :-lag] * parts[:, lag:]).mean().abs() < 5 / math.sqrt(parts.numel())
    assert torch.equal(noise_of(torch.tensor([97]), 3000), noise_of(torch.arange(2) * 97, 3000)[1:])


def test_masks_hold_the_highest_pixels() -> None:
    waves = torch.randn(5, 4, 6, generator=rng())
    counts = torch.tensor([0, 1, 7, 23, 24])
    masks = highest(waves, counts)
    for wave, count, mask in zip(waves, counts.tolist(), masks, strict=True):
        best = sorted(wave.flatten().tolist(), reverse=True)[:count]
        assert [
            value in best for value in wave.flatten().tolist()
        ] == mask.flatten().bool().tolist()


def test_fmix_keeps_a_share_of_pixels_to_less_than_one() -> None:
    draw = draw_fmix(2000, 12, 10, 0.5, rng(), per_sample=True)
    exact = draw.lam[:, 0].double() * 120
    off = draw.pixels - exact
    assert off.abs().max() < 1
    up = (off > 0).double().mean().item()
    assert up == pytest.approx(0.5, abs=0.05), "a fair coin"
    assert scipy.stats.kstest(draw.lam[:, 0].numpy(), "beta", (0.5, 0.5)).pvalue > 0.001
    assert len(draw.seed.unique()) == 2000
    shared = draw_fmix(50, 12, 10, 0.5, rng())
    assert all(len(part.unique(dim=0)) == 1 for part in (shared.lam, shared.pixels, shared.seed))


@pytest.mark.parametrize("kept", [0, HEIGHT * WIDTH])
def test_fmix_of_all_or_nothing(kept: int) -> None:
    images, targets = batch()
    lam = torch.tensor([[1.0, 0.0] if kept else [0.0, 1.0]]).expand(6, 2)
    perm = draw_partners(6, rng())
    draw = FMixDraw(perm, lam, torch.full((6,), kept), torch.arange(6))
    mixed = make(FMix).mix(images, targets, draw)
    assert torch.equal(mixed.images, images if kept else images[perm[:, 1]])
    assert torch.equal(mixed.targets, targets if kept else targets[perm[:, 1]])


# ---------------------------------------------------------------------- GridMix


def test_lattice_hole_by_hole() -> None:
    images, targets = batch()
    crop = torch.tensor(
        [[0, 12, 0, 10], [2, 9, 1, 10], [5, 6, 5, 6], [1, 12, 3, 8], [0, 12, 0, 10], [3, 11, 0, 7]]
    )
    cell, hole = torch.tensor([5, 2, 2, 3, 6, 4]), torch.tensor([2, 1, 1, 2, 5, 3])
    perm = draw_partners(6, rng())
    mixed = make(GridMix).mix(images, targets, LatticeDraw(perm, crop, cell, hole))
    for b, (top, bottom, left, right) in enumerate(crop.tolist()):
        side, wide = int(cell[b]), int(hole[b])
        partner = np.zeros((HEIGHT, WIDTH), dtype=bool)
        for y in range(top, bottom, side):
            for x in range(left, right, side):
                partner[y : min(y + wide, bottom), x : min(x + wide, right)] = True
        expected = torch.where(torch.from_numpy(partner), images[perm[b, 1]], images[b])
        assert torch.equal(mixed.images[b], expected)
        assert mixed.lam[b, 0].item() == pytest.approx(1 - partner.mean())


def test_lattices_are_drawn_as_gridmixup_draws_them() -> None:
    s = GridMixSettings(alpha=1.0, per_sample=True)
    draw = draw_lattice(4000, 40, 32, s, rng())
    top, bottom, left, right = draw.crop.unbind(dim=1)
    down, across = bottom - top, right - left
    assert (draw.crop >= 0).all()
    assert (bottom <= 40).all()
    assert (right <= 32).all()
    inner = (down < 40) & (across < 32)  # the others were cut to the image
    share, aspect = (down * across / 1280)[inner], (down / across)[inner]
    assert 0.43 < share.min() < 0.52
    assert share.max() < 1
    assert aspect.min() < 0.9
    assert aspect.max() > 1.5
    counts = torch.stack([(across / draw.cell).ceil() == n for n in range(2, 7)])
    assert counts.any(dim=0).all(), "two to six cells a row"
    expected = (across[:, None] / torch.arange(2, 7)).ceil()
    assert (expected == draw.cell[:, None]).any(dim=1).all()
    hit = torch.stack([(expected[:, n] == draw.cell).double().mean() for n in range(5)])
    assert hit.min() > 0.15, "each as often"
    ratio = draw.hole / draw.cell
    assert (draw.hole >= 1).all()
    assert (draw.hole <= draw.cell - 1).all()
    wide = draw.cell >= 10
    cut = (1 - ratio[wide].square()).mean().item()
    assert cut == pytest.approx(0.5, abs=0.06), "mean λ₀ of Beta(1, 1)"
    starts = (left[across < 24] == 0).double().mean().item()
    assert starts < 0.25, "anywhere, not at the border"


def test_a_shared_lattice_is_one() -> None:
    draw = draw_lattice(8, 32, 32, GridMixSettings(), rng())
    assert draw.shared
    assert all(len(part.unique(dim=0)) == 1 for part in (draw.crop, draw.cell, draw.hole))
    assert len(draw.perm.unique(dim=0)) == 8


def test_cells_come_whole_from_one_image() -> None:
    images = torch.rand(5, 3, 16, 8, generator=rng(1))
    partner = torch.rand(5, 4, 4, generator=rng(2)) < 0.5
    perm = draw_partners(5, rng())
    mixed = make(GridMix, pattern="cells").mix(images, torch.eye(5), CellsDraw(perm, partner))
    for b in range(5):
        for row in range(4):
            for column in range(4):
                cell = (slice(4 * row, 4 * row + 4), slice(2 * column, 2 * column + 2))
                source = images[perm[b, 1]] if partner[b, row, column] else images[b]
                assert torch.equal(mixed.images[b][:, *cell], source[:, *cell])
        assert mixed.lam[b, 0].item() == 1 - partner[b].double().mean().item()


def test_cells_are_tossed_one_by_one_with_lam() -> None:
    s = GridMixSettings(pattern="cells", alpha=1e6, per_sample=True)  # λ₀ = 1/2
    partner = draw_cells(2000, s, rng()).partner.flatten(1).double()
    assert partner.mean().item() == pytest.approx(0.5, abs=0.01)
    assert (torch.corrcoef(partner.T) - torch.eye(16)).abs().max() < 0.1
    s = GridMixSettings(pattern="cells", alpha=0.2, cells=12, per_sample=True)
    kept = 1 - draw_cells(50, s, rng(4)).partner.double().mean(dim=(1, 2))
    generator = rng(4)
    draw_partners(50, generator)
    lam = draw_beta(50, 1, 0.2, generator)[:, 0].double()
    assert (kept - lam).abs().max() < 0.2, "a cell is the image's own with probability λ₀"
    s = GridMixSettings(pattern="cells", alpha=1.0, per_sample=True)
    kept = 1 - draw_cells(4000, s, rng()).partner.double().mean(dim=(1, 2))
    # A binomial of 16 with uniform probability takes each of 0..16 alike.
    counts = np.bincount((kept * 16).round().long().numpy(), minlength=17)
    assert scipy.stats.chisquare(counts).pvalue > 0.001


# ---------------------------------------------------------------------- ResizeMix


def test_resizemix_pastes_what_pytorch_resizes() -> None:
    """Every height and width of the patch, in an image that is not square."""
    images = torch.rand(5, 2, 9, 14, generator=rng(1))
    perm = draw_partners(5, rng())
    method = make(ResizeMix, 5)
    for side in range(1, 15):
        tall, wide = min(side, 9), 15 - side
        top = torch.randint(0, 10 - tall, (5,), generator=rng(side))
        left = torch.randint(0, 15 - wide, (5,), generator=rng(side + 50))
        box = torch.stack([top, top + tall, left, left + wide], dim=1)
        mixed = method.mix(images, torch.eye(5), ResizeMixDraw(perm, box))
        for b in range(5):
            expected = images[b].clone()
            small = F.interpolate(images[perm[b, 1]][None], size=(tall, wide))[0]
            expected[:, top[b] : top[b] + tall, left[b] : left[b] + wide] = small
            assert torch.equal(mixed.images[b], expected)
            assert mixed.lam[b, 1].item() == pytest.approx(tall * wide / (9 * 14))


def test_resizemix_scales_and_places() -> None:
    draw = draw_resizemix(20_000, 40, 20, ResizeMixSettings(per_sample=True), rng())
    top, bottom, left, right = draw.box.unbind(dim=1)
    tall, wide = bottom - top, right - left
    assert (draw.box >= 0).all()
    assert (bottom <= 40).all()
    assert (right <= 20).all()
    assert tall.min() == 4
    assert tall.max() == 31
    assert torch.equal(wide, tall // 2), "the image's own aspect"
    counts = torch.bincount(tall, minlength=32)[4:32]
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.001, "a uniform scale"
    at_top = top[tall == 20] == 0  # centres 0 to 10 of 40 are pushed to the border
    assert at_top.double().mean().item() == pytest.approx(11 / 40, abs=0.06)


def test_resizemix_shares_its_scale_but_no_place() -> None:
    box = draw_resizemix(64, 32, 32, ResizeMixSettings(scale_max=0.5), rng()).box
    sides = box[:, 1::2] - box[:, ::2]
    assert len(sides.unique(dim=0)) == 1
    assert len(box.unique(dim=0)) > 40


# ---------------------------------------------------------------------- SmoothMix


def test_soft_masks_pixel_by_pixel() -> None:
    center, scale = torch.tensor([[0, 9], [5, 4], [11, 0]]), torch.tensor([[0.25], [0.5], [0.9]])
    circle = smooth_mask(center, scale, HEIGHT, WIDTH, "circle", 0.2)
    square = smooth_mask(center, scale, HEIGHT, WIDTH, "square", 0.2)
    for b, ((cy, cx), s) in enumerate(zip(center.tolist(), scale[:, 0].tolist(), strict=True)):
        for y in range(HEIGHT):
            for x in range(WIDTH):
                dy, dx = abs(y - cy) / (s * HEIGHT), abs(x - cx) / (s * WIDTH)
                gauss = math.exp(-(dy**2 + dx**2) / 2)
                assert circle[b, y, x].item() == pytest.approx(gauss, abs=1e-6)
                ramp = min(max((0.5 - max(dy, dx)) / 0.1, 0), 1)
                assert square[b, y, x].item() == pytest.approx(ramp, abs=1e-5)
        assert circle[b, cy, cx] == square[b, cy, cx] == 1


def test_soft_masks_are_the_weight_of_the_image_itself() -> None:
    """White images among black ones: a white one is white at its mask's centre."""
    images = torch.zeros(2, 1, HEIGHT, WIDTH)
    images[0] = 1
    perm = torch.tensor([[0, 1], [1, 0]])
    draw = SmoothMixDraw(perm, torch.tensor([[3, 3], [6, 5]]), torch.full((2, 1), 0.3))
    mixed = make(SmoothMix).mix(images, torch.eye(2), draw)
    assert mixed.images[0, 0, 3, 3] == 1
    assert mixed.images[1, 0, 6, 5] == 0
    assert mixed.targets[0, 0].item() == pytest.approx(mixed.images[0].mean().item())
    assert mixed.targets[1, 0].item() == pytest.approx(mixed.images[1].mean().item())


def test_smoothmix_scales_and_centres() -> None:
    for pattern, low, high in (("circle", 0.25, 0.5), ("square", 0.0, 1.0)):
        draw = draw_smoothmix(4000, 16, 8, pattern, rng(), per_sample=True)  # type: ignore[arg-type]
        assert (
            scipy.stats.kstest(draw.scale[:, 0].numpy(), "uniform", (low, high - low)).pvalue
            > 0.001
        )
        for column, size in enumerate((16, 8)):
            counts = torch.bincount(draw.center[:, column], minlength=size)
            assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.001
    vanishing = smooth_mask(torch.tensor([[3, 3]]), torch.zeros(1, 1), 8, 8, "square", 0.2)
    assert vanishing.sum() == 1


# ---------------------------------------------------------------------- Mixup, CutMix, their switch

TIMM: Any = timm.data.mixup
FLIPPED = torch.stack([torch.arange(8), torch.arange(8).flip(0)], dim=1)


class TimmRecord:
    """timm's `Mixup` on eight images, with the shares and boxes that it drew on the way."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, mode: str, seed: int, **options: Any
    ) -> None:
        np.random.seed(seed)
        self.boxes: list[tuple[int, ...]] = []
        drawn = TIMM.cutmix_bbox_and_lam

        def recorded(*args: Any, **kwargs: Any) -> Any:
            box, lam = drawn(*args, **kwargs)
            self.boxes.append(tuple(int(end) for end in box))
            return box, lam

        monkeypatch.setattr(TIMM, "cutmix_bbox_and_lam", recorded)
        theirs = TIMM.Mixup(mode=mode, num_classes=8, label_smoothing=0.0, **options)
        name = "_params_per_batch" if mode == "batch" else "_params_per_elem"
        parameters = getattr(theirs, name)

        def kept(*args: Any) -> Any:
            self.lam, self.cut = parameters(*args)
            self.lam, self.cut = np.array(self.lam), np.array(self.cut)
            self.drawn_lam = self.lam.copy()
            return (float(self.lam), bool(self.cut)) if mode == "batch" else (self.lam, self.cut)

        monkeypatch.setattr(theirs, name, kept)
        self.images = torch.rand(8, 3, 13, 16, generator=rng(seed))
        self.mixed, self.targets = theirs(self.images.clone(), torch.arange(8))
        monkeypatch.setattr(TIMM, "cutmix_bbox_and_lam", drawn)

    def rows(self, mode: str) -> tuple[Tensor, Tensor, Tensor]:
        """Shares `[8, 2]`, boxes `[8, 4]` and which mixes are by box, `[8]`."""
        lam, cut = np.atleast_1d(self.drawn_lam), np.atleast_1d(self.cut)
        boxes, left = [], iter(self.boxes)
        for share, by_box in zip(lam, cut, strict=True):
            boxes.append(next(left) if by_box and share != 1 else (0, 0, 0, 0))
        if mode == "pair":  # the second half mirrors the first
            lam, cut, boxes = np.r_[lam, lam[::-1]], np.r_[cut, cut[::-1]], boxes + boxes[::-1]
        first = torch.from_numpy(lam).float().expand(8)
        shares = torch.stack([first, 1 - first], dim=1)
        return shares, torch.tensor(boxes).expand(8, 4), torch.from_numpy(cut).expand(8)


MODES = pytest.mark.parametrize("mode", ["batch", "pair", "elem"])


@MODES
@pytest.mark.parametrize("seed", range(6))
def test_the_switch_gives_timms_mixes(
    monkeypatch: pytest.MonkeyPatch, mode: str, seed: int
) -> None:
    timms = TimmRecord(monkeypatch, mode, seed, mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.8)
    lam, box, cut = timms.rows(mode)
    kind: Any = ("cutmix" if cut[0] else "mixup") if mode == "batch" else "both"
    draw = MixupCutMixDraw(FLIPPED, lam, box, cut, kind)
    mixed = make(MixupCutMix, 8).mix(timms.images, torch.eye(8), draw)
    torch.testing.assert_close(mixed.images, timms.mixed)
    torch.testing.assert_close(mixed.targets, timms.targets)


@MODES
def test_mixup_gives_timms_mixes(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    timms = TimmRecord(monkeypatch, mode, 1, mixup_alpha=1.0, cutmix_alpha=0.0)
    mixed = make(Mixup, 8).mix(timms.images, torch.eye(8), MixupDraw(FLIPPED, timms.rows(mode)[0]))
    torch.testing.assert_close(mixed.images, timms.mixed)
    torch.testing.assert_close(mixed.targets, timms.targets)


@MODES
@pytest.mark.parametrize("seed", range(3))
def test_cutmix_gives_timms_mixes(monkeypatch: pytest.MonkeyPatch, mode: str, seed: int) -> None:
    timms = TimmRecord(monkeypatch, mode, seed, mixup_alpha=0.0, cutmix_alpha=1.0)
    _, box, _ = timms.rows(mode)
    mixed = make(CutMix, 8).mix(timms.images, torch.eye(8), CutMixDraw(FLIPPED, box))
    assert torch.equal(mixed.images, timms.mixed)
    torch.testing.assert_close(mixed.targets, timms.targets)


@pytest.mark.parametrize("by_box", [False, True])
def test_the_switch_gives_torchvisions_mixes(monkeypatch: pytest.MonkeyPatch, by_box: bool) -> None:
    """Which pairs each image with the one before it."""
    images, labels = torch.rand(8, 3, 13, 16, generator=rng(3)), torch.arange(8)
    rows = torch.arange(8)
    perm = torch.stack([rows, rows.roll(1)], dim=1)
    box = (3, 2, 11, 9)  # left, top, right, bottom
    share = 1 - 8 * 7 / (13 * 16)
    theirs: Any = tv.CutMix(num_classes=8) if by_box else tv.MixUp(num_classes=8)
    parameters = {"box": box, "lam_adjusted": share} if by_box else {"lam": 0.37}
    monkeypatch.setattr(theirs, "make_params", lambda inputs: parameters)
    their_images, their_targets = theirs(images, labels)
    lam = torch.tensor([0.37, 0.63]).expand(8, 2)
    ends = torch.tensor([2, 9, 3, 11]).expand(8, 4)
    cut = torch.full((8,), by_box)
    kinds: Any = ("cutmix" if by_box else "mixup", "both")
    for kind in kinds:
        draw = MixupCutMixDraw(perm, lam, ends, cut, kind)
        mixed = make(MixupCutMix, 8).mix(images, torch.eye(8), draw)
        torch.testing.assert_close(mixed.images, their_images)
        torch.testing.assert_close(mixed.targets, their_targets)


def test_boxes_are_drawn_as_timm_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut shares (k/32)² have exact roots; timm is handed the centres that we drew."""
    for k in range(33):
        lam = torch.tensor([1 - (k / 32) ** 2])
        box = [end.item() for size in (32, 24) for end in draw_stretch(lam, size, rng(k))]
        centers = iter([torch.randint(size, (1,), generator=rng(k)).item() for size in (32, 24)])
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "randint", lambda *_, found=centers, **__: next(found))
            theirs = TIMM.rand_bbox((3, 32, 24), lam.item())
        assert box == [int(end) for end in theirs]


def test_the_switch_is_tossed_as_its_settings_say() -> None:
    kinds, lams = {"mixup": 0, "cutmix": 0}, []
    for seed in range(400):
        draw = draw_mixup_cutmix(4, 16, 16, MixupCutMixSettings(), rng(seed))
        kinds[draw.kind] += 1
        assert bool(draw.cut[0]) == (draw.kind == "cutmix")
        assert len(draw.lam.unique(dim=0)) == len(draw.box.unique(dim=0)) == 1
        if draw.kind == "mixup":
            lams.append(draw.lam[0, 0].item())
    assert scipy.stats.binomtest(kinds["cutmix"], 400).pvalue > 0.001
    assert scipy.stats.kstest(lams, "beta", (0.8, 0.8)).pvalue > 0.001

    s = MixupCutMixSettings(per_sample=True, prob=0.6, switch_prob=0.25)
    draw = draw_mixup_cutmix(8000, 16, 16, s, rng())
    untouched = (draw.lam[:, 0] == 1) & ~draw.cut
    assert draw.kind == "both"
    assert untouched.double().mean().item() == pytest.approx(0.4, abs=0.02)
    assert draw.cut.double().mean().item() == pytest.approx(0.15, abs=0.015)
    by_lam = draw.lam[~draw.cut & ~untouched, 0].numpy()
    assert scipy.stats.kstest(by_lam, "beta", (0.8, 0.8)).pvalue > 0.001


def test_the_switch_can_leave_a_batch_alone() -> None:
    images, targets = batch()
    for per_sample in (False, True):
        method = make(MixupCutMix, prob=0.0, per_sample=per_sample)
        mixed = method.mix(images, targets, method.draw(images.shape, rng(), 0))
        assert torch.equal(mixed.images, images)
        assert torch.equal(mixed.targets, targets)


# ---------------------------------------------------------------------- networks to look inside


class Staged(TinyClassifier):
    """The tiny network with the name of its stage."""

    stages = ("bn1",)


def staged(seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Staged()


def network(name: str = "resnet18", **options: Any) -> Classifier:
    if name == "resnet18":
        options |= {"width": 0.125, "stem": "cifar"}
    elif name == "convnext_tiny":
        options |= {"width": 0.125, "stem": "cifar", "options": {"depths": (1, 1, 2, 1)}}
    elif name == "vit_tiny_patch16_224":
        options |= {"width": 0.25, "options": {"patch_size": 4, "depth": 3}}
    return build_model(name, CLASSES, image_size=16, generator_seed=1, **options)


def inside(cls: type[Method], model: Any, **options: Any) -> Any:
    """A method that looks inside a network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return cls(cls.Settings(**options), num_classes=CLASSES, seed=3, model=model)


NETWORKS = pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_tiny_patch16_224"])


@NETWORKS
def test_stages_put_out_the_taps(name: str) -> None:
    model = network(name).eval()
    images, _ = toy_images(3)
    found: dict[str, Tensor] = {}
    for path in model.stages:
        model.get_submodule(path).register_forward_hook(
            lambda module, args, out, path=path: found.__setitem__(path, out)
        )
    for tap, path in enumerate(model.stages, start=1):
        feature_map = model.features(images, tap).tap
        assert feature_map is not None
        out = found[path]
        if out.ndim == 3:  # tokens, the class token first
            out = out[:, 1:].transpose(1, 2).unflatten(2, feature_map.shape[2:])
        torch.testing.assert_close(out, feature_map)


def test_methods_that_look_inside_need_a_network_with_stages() -> None:
    for cls in (ManifoldMix, RecursiveMix):
        with pytest.raises(UsageError, match=rf"{cls.name} looks inside the network: pass model="):
            inside(cls, torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match=r"manifoldmix.deepest = 5: resnet18 has 4 stages"):
        inside(ManifoldMix, network(), deepest=5)


# ---------------------------------------------------------------------- Manifold Mixup


def resnet_by_hand(model: Classifier, images: Tensor, draw: ManifoldMixDraw) -> Tensor:
    """The network stage by stage, the hidden states mixed one by one after stage `draw.stage`."""
    net = model.backbone
    hidden = net.maxpool(net.act1(net.bn1(net.conv1(images))))
    for number, stage in enumerate((net.layer1, net.layer2, net.layer3, net.layer4), start=1):
        hidden = stage(hidden)
        if number == draw.stage:
            mixes = [
                sum(lam * hidden[source] for source, lam in zip(sources, shares, strict=True))
                for sources, shares in zip(draw.perm.tolist(), draw.lam.tolist(), strict=True)
            ]
            hidden = torch.stack(mixes)
    return model.logits(net.forward_head(hidden, pre_logits=True))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("stage", [1, 2, 4])
def test_hidden_states_are_mixed_by_hand(stage: int, per_sample: bool) -> None:
    """Loss and every gradient, through both sources of each mix."""
    images, labels = toy_images(5)
    model, twin = network(), network()
    method = inside(ManifoldMix, model, per_sample=per_sample, deepest=4)
    drawn = method.draw(images.shape, rng(2), 0)
    draw = ManifoldMixDraw(drawn.perm, drawn.lam, stage)
    sources = method.sources(images, labels, model, None, draw)
    loss = method.terms(sources, model, None, draw)["loss"]
    loss.backward()
    targets = torch.einsum("bn,bnk->bk", draw.lam, F.one_hot(labels, CLASSES)[draw.perm].float())
    expected = -(targets * resnet_by_hand(twin, images, draw).log_softmax(dim=1)).sum(dim=1).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    theirs = dict(twin.named_parameters())
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, theirs[name].grad, atol=2e-6, rtol=1e-4)
    assert model.backbone.conv1.weight.grad.abs().max() > 0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name])


def test_at_the_images_it_is_mixup() -> None:
    images, labels = toy_images(7)
    model = network()
    method = inside(ManifoldMix, model)
    drawn = method.draw(images.shape, rng(), 0)
    draw = ManifoldMixDraw(drawn.perm, drawn.lam, 0)
    before = state_of(model)
    sources = method.sources(images, labels, model, None, draw)
    ours = method.terms(sources, model, None, draw)
    model.load_state_dict(before)
    mixup = make(Mixup, CLASSES)
    theirs = mixup.terms(sources, model, None, MixupDraw(draw.perm, draw.lam))
    assert ours["loss"].item() == theirs["loss"].item()
    assert ours["captured"].item() == theirs["captured"].item()


@NETWORKS
@pytest.mark.parametrize("stage", [1, 2])
def test_a_share_of_one_is_the_clean_forward(name: str, stage: int) -> None:
    images, labels = toy_images(4)
    model = network(name).eval()
    method = inside(ManifoldMix, model)
    lam = torch.tensor([1.0, 0.0]).expand(4, 2)
    draw = ManifoldMixDraw(draw_partners(4, rng()), lam, stage)
    loss = method.terms(method.sources(images, labels, model, None, draw), model, None, draw)
    expected = F.cross_entropy(model(images), labels)
    assert loss["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_parts_of_a_batch_are_the_batch(name: str, stage: int) -> None:
    """Partners may lie in another part; without batch norm the parts add up to the whole."""
    images, labels = toy_images(6)
    model = network(name)
    method = inside(ManifoldMix, model, per_sample=True)
    drawn = method.draw(images.shape, rng(2), 0)
    draw = ManifoldMixDraw(drawn.perm, drawn.lam, stage)
    sources = method.sources(images, labels, model, None, draw)
    whole = method.terms(sources, model, None, draw)["loss"]
    parts = 0.0
    for own in (slice(0, 2), slice(2, 6)):
        part = Sources(sources.images, sources.targets, {}, own)
        share = (own.stop - own.start) / 6
        parts += share * method.terms(part, model, None, draw.rows(own))["loss"].item()
    assert whole.item() == pytest.approx(parts, rel=1e-5)


def test_partners_of_a_part() -> None:
    images, perm = torch.arange(6.0)[:, None], torch.tensor([[2, 5], [3, 0]])
    needed, places = with_partners(images, perm)
    assert needed[:, 0].tolist() == [2, 3, 5, 0]
    assert torch.equal(needed[places][..., 0], perm.float())
    everything, same_perm = with_partners(images[:2], perm)
    assert everything is not None
    assert same_perm is perm


def test_the_network_is_put_back() -> None:
    model = network()
    modules, keys = list(model.modules()), list(model.state_dict())
    stage = model.get_submodule(model.stages[1])
    with altered(model, model.stages[1], lambda hidden: 2 * hidden):
        assert model.get_submodule(model.stages[1]) is not stage
    with pytest.raises(ZeroDivisionError), altered(model, model.stages[1], lambda hidden: hidden):
        _ = 1 / 0
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert list(model.state_dict()) == keys


def test_stages_are_drawn_alike() -> None:
    method = inside(ManifoldMix, staged(), deepest=1)
    images, _ = toy_images(4)
    stages = [method.draw_at(images.shape, step).stage for step in range(300)]
    assert set(stages) == {0, 1}
    assert scipy.stats.binomtest(sum(stages), 300).pvalue > 0.001
    lams = [method.draw_at(images.shape, step).lam[0, 0].item() for step in range(300)]
    assert scipy.stats.kstest(lams, "beta", (2.0, 2.0)).pvalue > 0.001


def test_manifoldmix_in_half_precision() -> None:
    images, labels = toy_images(5)
    model = network()
    method = inside(ManifoldMix, model)
    drawn = method.draw(images.shape, rng(2), 0)
    draw = ManifoldMixDraw(drawn.perm, drawn.lam, 2)
    sources = method.sources(images, labels, model, None, draw)
    full = method.terms(sources, model, None, draw)["loss"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method.terms(sources, model, None, draw)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(full, rel=0.02)


# ---------------------------------------------------------------------- RecursiveMix


@pytest.mark.parametrize(("height", "width", "shape"), [(32, 32, (4, 4)), (24, 40, (6, 5))])
def test_box_average_is_roi_align(height: int, width: int, shape: tuple[int, int]) -> None:
    maps = torch.randn(60, 3, *shape, generator=rng(1))
    draws = torch.rand(60, 2, 2, generator=rng(2)).sort(dim=2).values
    box = (draws * torch.tensor([height + 1.0, width + 1.0])[:, None]).long().flatten(1)
    box[0], box[1] = torch.tensor([0, height, 0, width]), torch.tensor([5, 5, 3, 3])
    ours = box_average(maps, box, height, width)
    scale = torch.tensor([shape[0] / height, shape[1] / width])
    for b, (top, bottom, left, right) in enumerate(box.tolist()):
        # torchvision has one scale for both directions: hand it boxes in pixels of the map.
        corners = [left * scale[1], top * scale[0], right * scale[1], bottom * scale[0]]
        region = torch.tensor([[0.0, *corners]])
        theirs = roi_align(maps[b : b + 1], region, output_size=1, aligned=True).flatten()
        if top == bottom or left == right:
            assert not ours[b].any()
        else:
            torch.testing.assert_close(ours[b], theirs, atol=1e-5, rtol=1e-5)


class ByHand:
    """RecursiveMix in plain PyTorch, one image at a time, with the history in a list."""

    def __init__(self, model: Any, method: Any) -> None:
        self.model, self.head, self.omega = model, method.roi_head, method.settings.omega
        self.history: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def step(self, images: Tensor, labels: Tensor, draw: RecursiveMixDraw) -> dict[str, Any]:
        mixes, targets, lams = [], [], []
        size = images.shape[2]
        for b, (top, bottom, left, right) in enumerate(draw.box.tolist()):
            mix, target, lam = images[b].clone(), F.one_hot(labels[b], CLASSES).float(), 1.0
            if b in self.history and bottom > top and right > left:
                old, old_target, _ = self.history[b]
                small = F.interpolate(old[None], size=(bottom - top, right - left))[0]
                mix[:, top:bottom, left:right] = small
                lam = 1 - (bottom - top) * (right - left) / size**2
                target = lam * target + (1 - lam) * old_target
            mixes.append(mix)
            targets.append(target)
            lams.append(lam)
        mixed, target = torch.stack(mixes), torch.stack(targets)
        features = self.model.features(mixed, 1)
        logits = self.model.logits(features.pooled)
        loss = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
        consistency = torch.zeros(())
        scale = features.tap.shape[2] / size
        for b, (top, bottom, left, right) in enumerate(draw.box.tolist()):
            if lams[b] < 1:
                box = torch.tensor([[b, left, top, right, bottom]]).float()
                region = roi_align(features.tap, box, 1, spatial_scale=scale, aligned=True)
                prediction = self.head(region.flatten(1)).log_softmax(dim=1)[0]
                old_logits = self.history[b][2]
                entropy = -(old_logits.softmax(dim=0) * prediction).sum()
                consistency = consistency + (1 - lams[b]) * entropy / len(images)
        for b in range(len(images)):
            self.history[b] = (mixed[b], target[b], logits[b].detach())
        return {"mixed": mixed, "targets": target, "loss": loss + self.omega * consistency}


@pytest.mark.parametrize("per_sample", [False, True])
def test_recursivemix_step_by_step(per_sample: bool) -> None:
    """Six steps with batches of changing size: losses, gradients, kept rows."""
    model, twin = staged(), staged()
    method = inside(RecursiveMix, model, per_sample=per_sample, omega=0.7)
    other = inside(RecursiveMix, twin, per_sample=per_sample, omega=0.7)
    by_hand = ByHand(twin, other)
    for step, count in enumerate((6, 6, 4, 6, 1, 5)):
        images, labels = toy_images(count, seed=step)
        draw = method.draw_at(images.shape, step)
        losses = method.losses(images, labels, model, None, step)
        expected = by_hand.step(images, labels, draw)
        losses["loss"].backward()
        expected["loss"].backward()
        assert losses["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
        torch.testing.assert_close(method.kept_images[:count], expected["mixed"])
        torch.testing.assert_close(method.kept_targets[:count], expected["targets"])
        torch.testing.assert_close(method.kept_targets.sum(dim=1), torch.ones(6))
        for row, (image, _, logits) in by_hand.history.items():
            torch.testing.assert_close(method.kept_images[row], image)
            torch.testing.assert_close(method.kept_logits[row], logits)
        pairs = zip(
            [*model.named_parameters(), *method.named_parameters()],
            [*twin.named_parameters(), *other.named_parameters()],
            strict=True,
        )
        for (name, mine), (_, theirs) in pairs:
            if theirs.grad is not None:
                torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=name)
            elif mine.grad is not None:
                assert not mine.grad.any(), name


def test_the_first_step_is_vanilla() -> None:
    images, labels = toy_images(6)
    model = staged()
    before = state_of(model)
    method = inside(RecursiveMix, model)
    ours = method.losses(images, labels, model, None, 0)
    model.load_state_dict(before)
    theirs = make(Vanilla, CLASSES).losses(images, labels, model, None, 0)
    assert ours["loss"].item() == theirs["loss"].item()
    assert ours["consistency"].item() == 0
    assert torch.equal(method.kept_images, images)


def test_no_box_is_vanilla_for_good() -> None:
    model = staged()
    method = inside(RecursiveMix, model, alpha=0.0)
    for step in range(3):
        images, labels = toy_images(6, seed=step)
        method.losses(images, labels, model, None, step)
        assert torch.equal(method.kept_images, images)
        assert torch.equal(method.kept_targets, soft_targets(labels, CLASSES))


def trained(method: Any, model: Any, steps: range) -> list[float]:
    optimizer = torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.1)
    losses = []
    for step in steps:
        images, labels = toy_images(4 if step == 2 else 6, seed=step)
        loss = method.losses(images, labels, model, None, step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_recursivemix_goes_on_from_its_state_dict() -> None:
    model = staged()
    method = inside(RecursiveMix, model)
    first = trained(method, model, range(3))
    saved, weights = state_of(method), state_of(model)
    assert set(HISTORY) <= set(saved)
    went_on = trained(method, model, range(3, 6))
    twin = staged(5)
    other = inside(RecursiveMix, twin)
    other.load_state_dict(saved)
    twin.load_state_dict(weights)
    assert trained(other, twin, range(3, 6)) == went_on
    assert first != went_on
    fresh = inside(RecursiveMix, staged())
    fresh.load_state_dict(state_of(inside(RecursiveMix, staged())))  # before any step


def test_history_is_kept_in_place_and_without_a_graph() -> None:
    model = staged()
    method = inside(RecursiveMix, model)
    trained(method, model, range(1))
    places = [getattr(method, name).data_ptr() for name in HISTORY]
    trained(method, model, range(1, 5))
    assert places == [getattr(method, name).data_ptr() for name in HISTORY]
    method.load_state_dict(state_of(method))
    assert places == [getattr(method, name).data_ptr() for name in HISTORY]
    assert not any(getattr(method, name).requires_grad for name in HISTORY)


def test_looking_at_mixes_changes_no_history() -> None:
    model = staged()
    method = inside(RecursiveMix, model)
    trained(method, model, range(2))
    kept = state_of(method)
    for count, size in ((9, 16), (6, 16), (3, 20)):
        images, labels = toy_images(count, seed=9, size=size)
        targets = soft_targets(labels, CLASSES)
        draw = method.draw_at(images.shape, 1)
        mixed = method.sample(images, targets, model, None, draw)
        unseen = count == 9 or size == 20
        assert torch.equal(mixed.images, images) == unseen, "no history of that size"
        torch.testing.assert_close(mixed.targets.sum(dim=1), torch.ones(count))
    for name, value in method.state_dict().items():
        assert torch.equal(value, kept[name])


def test_parts_of_a_batch_take_and_leave_the_batchs_history() -> None:
    """Split in two or whole: the same losses and the same history; no batch norm in between."""
    whole, split = (network("convnext_tiny") for _ in range(2))
    one, two = (inside(RecursiveMix, model, per_sample=True) for model in (whole, split))
    for step in range(3):
        images, labels = toy_images(6, seed=step)
        draw = one.draw_at(images.shape, step)
        expected = one.terms(one.sources(images, labels, whole, None, draw), whole, None, draw)
        sources = two.sources(images, labels, split, None, draw)
        loss = 0.0
        for own in (slice(0, 2), slice(2, 6)):
            part = Sources(sources.images, sources.targets, sources.seen, own)
            found = two.terms(part, split, None, draw.rows(own))["loss"]
            found.backward()
            loss += (own.stop - own.start) / 6 * found.item()
        assert loss == pytest.approx(expected["loss"].item(), rel=1e-5)
        for name in HISTORY:
            torch.testing.assert_close(getattr(two, name), getattr(one, name))


def test_processes_fetch_each_others_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first of two processes sees it: the other's rows come with its own."""
    images, labels = toy_images(6)
    targets = soft_targets(labels, CLASSES)
    logits = torch.randn(6, CLASSES, generator=rng(3))
    perm = torch.arange(6)[:, None].expand(6, 2)
    method = inside(RecursiveMix, staged())
    wholes = [perm[:, 0], images, targets, logits]

    def gather(values: Tensor) -> Tensor:
        (whole,) = (
            w
            for w in wholes
            if w.dtype == values.dtype
            and w.shape[1:] == values.shape[1:]
            and torch.equal(w[:3], values)
        )
        return whole

    monkeypatch.setattr(recursivemix_module, "all_rows", gather)
    mixed = Mixed(images[:3], targets[:3], torch.ones(3, 2), perm[:3])
    method.keep(6, mixed, logits[:3])
    assert torch.equal(method.kept_images, images)
    assert torch.equal(method.kept_targets, targets)
    assert torch.equal(method.kept_logits, logits)
    assert method.kept.tolist() == [1] * 6


def test_boxes_of_recursivemix_have_a_uniform_share() -> None:
    """In an image large enough for flooring not to count, before clipping."""
    box = draw_recursivemix(6000, 2000, 2000, 0.5, rng(), per_sample=True).box
    whole = ((box[:, ::2] > 0) & (box[:, 1::2] < 2000)).all(dim=1)
    sides = (box[:, 1] - box[:, 0])[whole].double()
    assert sides.max() ** 2 / 2000**2 < 0.5
    # Among boxes that touch no border small ones are too many: those of one size alike.
    weight = 1 / (1 - sides / 2000) ** 2
    for share in (0.1, 0.2, 0.3, 0.4):
        below = weight[(sides / 2000) ** 2 < share].sum() / weight.sum()
        assert below.item() == pytest.approx(share / 0.5, abs=0.06)
    shared = draw_recursivemix(5, 32, 32, 0.5, rng())
    assert len(shared.box.unique(dim=0)) == 1
    assert torch.equal(shared.perm, torch.arange(5)[:, None].expand(5, 2))


def test_recursivemix_in_half_precision() -> None:
    model = network()
    method = inside(RecursiveMix, model)
    for step in range(2):
        images, labels = toy_images(5, seed=step)
        images = images.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = method.losses(images, labels, model, None, step)["loss"]
        loss.backward()
        assert loss.dtype == method.kept_logits.dtype == torch.float32
    draw = method.draw_at((5, 3, 16, 16), 1)
    half = method.mix(images.bfloat16(), torch.eye(5), draw)
    assert half.images.dtype == torch.bfloat16
    assert half.images.is_contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------- one graph


@contextmanager
def compiled(work: Callable[..., Any]) -> Iterator[Any]:
    torch._dynamo.reset()
    yield torch.compile(work, fullgraph=True, backend="eager")
    torch._dynamo.reset()


def test_a_step_of_manifoldmix_is_one_graph() -> None:
    """Each place has a graph of its own, and none is taken for another."""
    model = staged()
    method = inside(ManifoldMix, model, deepest=1)
    images, labels = toy_images(6)

    def work(draw: ManifoldMixDraw) -> Tensor:
        sources = method.sources(images, labels, model, None, draw)
        loss: Tensor = method.terms(sources, model, None, draw)["loss"]
        return loss

    before = state_of(model)
    with compiled(work) as graph:
        for step in range(6):
            draw = method.draw_at(images.shape, step)
            expected = work(draw)
            model.load_state_dict(before)
            torch.testing.assert_close(graph(draw), expected)
            model.load_state_dict(before)


def test_a_step_of_recursivemix_is_one_graph_once_there_is_a_history() -> None:
    model, twin = staged(), staged()
    method, other = inside(RecursiveMix, model), inside(RecursiveMix, twin)
    images, labels = toy_images(6)

    def step_of(method: Any, model: Any) -> Callable[[RecursiveMixDraw], Tensor]:
        def work(draw: RecursiveMixDraw) -> Tensor:
            sources = method.sources(images, labels, model, None, draw)
            loss: Tensor = method.terms(sources, model, None, draw)["loss"]
            return loss

        return work

    mine, theirs = step_of(method, model), step_of(other, twin)
    first = method.draw_at(images.shape, 0)
    assert mine(first).item() == theirs(first).item()
    with compiled(mine) as graph:
        for step in range(1, 4):
            draw = method.draw_at(images.shape, step)
            torch.testing.assert_close(graph(draw), theirs(draw))
            for name in HISTORY:
                torch.testing.assert_close(getattr(method, name), getattr(other, name))


def test_captured_counts_the_mixed_labels() -> None:
    images, labels = toy_images(6)
    model = staged().eval()
    method = inside(ManifoldMix, model, deepest=1)
    drawn = method.draw(images.shape, rng(), 0)
    draw = ManifoldMixDraw(drawn.perm, drawn.lam, 0)
    mixed = method.sample(images, soft_targets(labels, CLASSES), model, None, draw)
    losses = method.terms(method.sources(images, labels, model, None, draw), model, None, draw)
    expected = captured_share(model(mixed.images), mixed.targets)
    assert losses["captured"].item() == expected.item()
