"""The choice between Mixup and CutMix, compared with timm and torchvision."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import timm.data.mixup
import torch
import torchvision.transforms.v2 as tv
from given import batch, make, rng
from torch import Tensor

from adautomix.methods.cutmix import CutMix, CutMixParams
from adautomix.methods.mixup import Mixup, MixupParams
from adautomix.methods.mixup_cutmix import (
    MixupCutMix,
    MixupCutMixParams,
    MixupCutMixSettings,
    draw_interval,
    draw_mixup_cutmix,
)

TIMM: Any = timm.data.mixup


FLIPPED = torch.stack([torch.arange(8), torch.arange(8).flip(0)], dim=1)


class TimmRecord:
    """timm's `Mixup` on eight images, recording the weights and boxes that it draws."""

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
        """Weights `[8, 2]`, boxes `[8, 4]` and which mixes are CutMix, `[8]`."""
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
    params = MixupCutMixParams(FLIPPED, lam, box, cut, kind)
    mixed = make(MixupCutMix).mix(timms.images, torch.eye(8), params)
    torch.testing.assert_close(mixed.images, timms.mixed)
    torch.testing.assert_close(mixed.targets, timms.targets)


@MODES
def test_mixup_gives_timms_mixes(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    timms = TimmRecord(monkeypatch, mode, 1, mixup_alpha=1.0, cutmix_alpha=0.0)
    mixed = make(Mixup).mix(timms.images, torch.eye(8), MixupParams(FLIPPED, timms.rows(mode)[0]))
    torch.testing.assert_close(mixed.images, timms.mixed)
    torch.testing.assert_close(mixed.targets, timms.targets)


@MODES
@pytest.mark.parametrize("seed", range(3))
def test_cutmix_gives_timms_mixes(monkeypatch: pytest.MonkeyPatch, mode: str, seed: int) -> None:
    timms = TimmRecord(monkeypatch, mode, seed, mixup_alpha=0.0, cutmix_alpha=1.0)
    _, box, _ = timms.rows(mode)
    mixed = make(CutMix).mix(timms.images, torch.eye(8), CutMixParams(FLIPPED, box))
    assert torch.equal(mixed.images, timms.mixed)
    torch.testing.assert_close(mixed.targets, timms.targets)


@pytest.mark.parametrize("by_box", [False, True])
def test_the_switch_gives_torchvisions_mixes(monkeypatch: pytest.MonkeyPatch, by_box: bool) -> None:
    """torchvision pairs each image with the one before it."""
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
        params = MixupCutMixParams(perm, lam, ends, cut, kind)
        mixed = make(MixupCutMix).mix(images, torch.eye(8), params)
        torch.testing.assert_close(mixed.images, their_images)
        torch.testing.assert_close(mixed.targets, their_targets)


def test_boxes_are_drawn_as_timm_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Areas (k/32)² have exact roots; timm is handed the centers that we drew."""
    for k in range(33):
        lam = torch.tensor([1 - (k / 32) ** 2])
        box = [end.item() for size in (32, 24) for end in draw_interval(lam, size, rng(k))]
        centers = iter([torch.randint(size, (1,), generator=rng(k)).item() for size in (32, 24)])
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "randint", lambda *_, found=centers, **__: next(found))
            theirs = TIMM.rand_bbox((3, 32, 24), lam.item())
        assert box == [int(end) for end in theirs]


def test_even_boxes_are_those_of_timm_0_4_12() -> None:
    """timm of the time of DeiT, Swin and ConvNeXt rounded both half-sides down."""
    differ = 0
    for k in range(33):
        lam = torch.tensor([1 - (k / 32) ** 2])
        start, end = (edge.item() for edge in draw_interval(lam, 32, rng(k), odd=False))
        center = int(torch.randint(32, (1,), generator=rng(k)))
        assert (start, end) == (max(center - k // 2, 0), min(center + k // 2, 32))
        differ += end != draw_interval(lam, 32, rng(k))[1].item()
    assert 8 <= differ <= 16  # odd sides that do not end at the border
    odd, even = (
        draw_mixup_cutmix(1, 32, 32, MixupCutMixSettings(odd_boxes=keep), rng(3)).box[0]
        for keep in (True, False)
    )
    assert (odd[1::2] - odd[::2] - even[1::2] + even[::2]).tolist() == [1, 1]


def test_the_switch_follows_its_probabilities() -> None:
    kinds, lams = {"mixup": 0, "cutmix": 0}, []
    for seed in range(400):
        params = draw_mixup_cutmix(4, 16, 16, MixupCutMixSettings(), rng(seed))
        kinds[params.kind] += 1
        assert bool(params.cut[0]) == (params.kind == "cutmix")
        assert len(params.lam.unique(dim=0)) == len(params.box.unique(dim=0)) == 1
        if params.kind == "mixup":
            lams.append(params.lam[0, 0].item())
    assert scipy.stats.binomtest(kinds["cutmix"], 400).pvalue > 0.001
    assert scipy.stats.kstest(lams, "beta", (0.8, 0.8)).pvalue > 0.001

    s = MixupCutMixSettings(per_sample=True, prob=0.6, switch_prob=0.25)
    params = draw_mixup_cutmix(8000, 16, 16, s, rng())
    untouched = (params.lam[:, 0] == 1) & ~params.cut
    assert params.kind == "both"
    assert untouched.double().mean().item() == pytest.approx(0.4, abs=0.02)
    assert params.cut.double().mean().item() == pytest.approx(0.15, abs=0.015)
    by_lam = params.lam[~params.cut & ~untouched, 0].numpy()
    assert scipy.stats.kstest(by_lam, "beta", (0.8, 0.8)).pvalue > 0.001


def test_the_switch_can_leave_a_batch_unmixed() -> None:
    images, targets = batch()
    for per_sample in (False, True):
        method = make(MixupCutMix, prob=0.0, per_sample=per_sample)
        mixed = method.mix(images, targets, method.make_params(images.shape, rng(), 0))
        assert torch.equal(mixed.images, images)
        assert torch.equal(mixed.targets, targets)
