"""FMix: noise, waves compared with numpy, and masks."""

import math
from typing import Any, get_args

import numpy as np
import pytest
import scipy.stats
import torch
from given import HEIGHT, WIDTH, batch, make, rng
from torch import Tensor

from adautomix.methods.fmix import (
    FMix,
    FMixParams,
    Spectrum,
    draw_fmix,
    gaussian_noise,
    highest_pixels,
    random_waves,
)
from adautomix.mixing.params import draw_partners


def complex_noise(seeds: Tensor, count: int) -> Any:
    return torch.view_as_complex(gaussian_noise(seeds, count)).numpy()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 10), (9, 24), (24, 10)])
def test_waves_equal_numpys_transform_of_the_same_noise(height: int, width: int) -> None:
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


def test_the_reference_spectrum_has_one_horizontal_wave_and_the_paper_more() -> None:
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
    parts = gaussian_noise(torch.arange(40) * 97, 3000).flatten(1)
    assert scipy.stats.kstest(parts.flatten().numpy()[::5], "norm").pvalue > 0.001
    limit = 5 / math.sqrt(6000)
    assert (torch.corrcoef(parts) - torch.eye(40)).abs().max() < limit
    for lag in (1, 2, 7):
        assert (parts[:, :-lag] * parts[:, lag:]).mean().abs() < 5 / math.sqrt(parts.numel())
    assert torch.equal(
        gaussian_noise(torch.tensor([97]), 3000), gaussian_noise(torch.arange(2) * 97, 3000)[1:]
    )


def test_masks_hold_the_highest_pixels() -> None:
    waves = torch.randn(5, 4, 6, generator=rng())
    counts = torch.tensor([0, 1, 7, 23, 24])
    masks = highest_pixels(waves, counts)
    for wave, count, mask in zip(waves, counts.tolist(), masks, strict=True):
        best = sorted(wave.flatten().tolist(), reverse=True)[:count]
        assert [
            value in best for value in wave.flatten().tolist()
        ] == mask.flatten().bool().tolist()


def test_fmix_keeps_lam_of_the_pixels_within_one() -> None:
    params = draw_fmix(2000, 12, 10, 0.5, rng(), per_sample=True)
    exact = params.lam[:, 0].double() * 120
    off = params.pixels - exact
    assert off.abs().max() < 1
    up = (off > 0).double().mean().item()
    assert up == pytest.approx(0.5, abs=0.05), "a fair coin"
    assert scipy.stats.kstest(params.lam[:, 0].numpy(), "beta", (0.5, 0.5)).pvalue > 0.001
    assert len(params.seed.unique()) == 2000
    shared = draw_fmix(50, 12, 10, 0.5, rng())
    assert all(len(part.unique(dim=0)) == 1 for part in (shared.lam, shared.pixels, shared.seed))


@pytest.mark.parametrize("kept", [0, HEIGHT * WIDTH])
def test_fmix_of_all_or_no_pixels(kept: int) -> None:
    images, targets = batch()
    lam = torch.tensor([[1.0, 0.0] if kept else [0.0, 1.0]]).expand(6, 2)
    perm = draw_partners(6, rng())
    params = FMixParams(perm, lam, torch.full((6,), kept), torch.arange(6))
    mixed = make(FMix).mix(images, targets, params)
    assert torch.equal(mixed.images, images if kept else images[perm[:, 1]])
    assert torch.equal(mixed.targets, targets if kept else targets[perm[:, 1]])
