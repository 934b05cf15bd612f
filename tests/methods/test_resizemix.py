"""ResizeMix compared with PyTorch's interpolation."""

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from given import make, rng

from adautomix.methods.resizemix import (
    ResizeMix,
    ResizeMixParams,
    ResizeMixSettings,
    draw_resizemix,
)
from adautomix.mixing.params import draw_partners


def test_resizemix_pastes_pytorchs_interpolation() -> None:
    """Every height and width of the patch, in an image that is not square."""
    images = torch.rand(5, 2, 9, 14, generator=rng(1))
    perm = draw_partners(5, rng())
    method = make(ResizeMix)
    for side in range(1, 15):
        tall, wide = min(side, 9), 15 - side
        top = torch.randint(0, 10 - tall, (5,), generator=rng(side))
        left = torch.randint(0, 15 - wide, (5,), generator=rng(side + 50))
        box = torch.stack([top, top + tall, left, left + wide], dim=1)
        mixed = method.mix(images, torch.eye(5), ResizeMixParams(perm, box))
        for b in range(5):
            expected = images[b].clone()
            small = F.interpolate(images[perm[b, 1]][None], size=(tall, wide))[0]
            expected[:, top[b] : top[b] + tall, left[b] : left[b] + wide] = small
            assert torch.equal(mixed.images[b], expected)
            assert mixed.lam[b, 1].item() == pytest.approx(tall * wide / (9 * 14))


def test_resizemix_scales_and_places() -> None:
    params = draw_resizemix(20_000, 40, 20, ResizeMixSettings(per_sample=True), rng())
    top, bottom, left, right = params.box.unbind(dim=1)
    tall, wide = bottom - top, right - left
    assert (params.box >= 0).all()
    assert (bottom <= 40).all()
    assert (right <= 20).all()
    assert tall.min() == 4
    assert tall.max() == 31
    assert torch.equal(wide, tall // 2), "the image's own aspect"
    counts = torch.bincount(tall, minlength=32)[4:32]
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.001, "a uniform scale"
    at_top = top[tall == 20] == 0  # centers 0 to 10 of 40 are pushed to the border
    assert at_top.double().mean().item() == pytest.approx(11 / 40, abs=0.06)


def test_resizemix_has_one_scale_per_batch_and_a_box_per_mix() -> None:
    box = draw_resizemix(64, 32, 32, ResizeMixSettings(scale_max=0.5), rng()).box
    sides = box[:, 1::2] - box[:, ::2]
    assert len(sides.unique(dim=0)) == 1
    assert len(box.unique(dim=0)) > 40
