"""S²-FracMix recomputed patch by patch and pixel by pixel."""

import contextlib
import dataclasses
import math

import pytest
import torch
from given import make, rng
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods.fracmix import (
    FracMix,
    FracMixParams,
    SelfMixParams,
    blur_images,
    color_fractals,
    enlarge,
    find_patches,
    mix_with_itself,
    salient_pixels,
)
from adautomix.methods.mixture import Mixture, MixtureSettings

IMAGES = torch.rand(5, 3, 16, 12, generator=rng(1))
TARGETS = torch.eye(5)


def own_params(**values: Tensor) -> SelfMixParams:
    params: SelfMixParams = make(FracMix, switch=1.0).make_params(IMAGES.shape, rng(3), 0).own
    return dataclasses.replace(params, **values)


def test_the_first_patch_that_is_salient_enough_by_brute_force() -> None:
    salient = torch.rand(40, 16, 12, generator=rng(2)) < 0.4
    places = torch.rand(40, 2, 2, generator=rng(3))
    threshold = 0.5 + 0.12 * torch.rand(40, generator=rng(4))
    for divisor in (2, 4):
        height, width = 16 // divisor, 12 // divisor
        corners, found = find_patches(salient, places, threshold, divisor)
        accepted = 0
        for m in range(40):
            for down, right in places[m].tolist():
                top, left = int(down * (17 - height)), int(right * (13 - width))
                patch = salient[m, top : top + height, left : left + width]
                if patch.float().mean() >= 1 - threshold[m]:
                    accepted += 1
                    assert found[m]
                    assert corners[m].tolist() == [top, left]
                    break
            else:
                assert not found[m]
        assert 0 < accepted < 40


def test_patches_are_enlarged_by_hand() -> None:
    """Bilinear: pixel i of the result shows the patch at (i + 1/2) / divisor - 1/2."""
    corner = torch.tensor([[5, 4], [2, 3]])
    large = enlarge(IMAGES[:2], corner, 2)
    for m in range(2):
        for i in range(16):
            for j in range(12):
                y = float(corner[m, 0]) + (i + 0.5) / 2 - 0.5
                x = float(corner[m, 1]) + (j + 0.5) / 2 - 0.5
                top, left, dy, dx = int(y), int(x), y % 1, x % 1
                window = IMAGES[m, :, top : top + 2, left : left + 2]
                rows = torch.tensor([1 - dy, dy])[:, None] * torch.tensor([1 - dx, dx])
                expected = (window * rows).sum(dim=(1, 2))
                torch.testing.assert_close(large[m, :, i, j], expected, atol=1e-5, rtol=0)


def test_a_quarter_turn_turns_the_patch() -> None:
    square = torch.rand(1, 3, 16, 16, generator=rng(5))
    corner = torch.tensor([[4, 5]])
    plain, turned = (
        enlarge(square, corner, 2, torch.tensor([angle])) for angle in (0.0, math.pi / 2)
    )
    torch.testing.assert_close(turned, plain.rot90(dims=(2, 3)), atol=1e-5, rtol=0)


def test_the_mix_by_hand() -> None:
    params = own_params(threshold=torch.tensor([1.0, 0.5, 0.8, 0.9, 0.6]))
    mixed = mix_with_itself(IMAGES, params, 0.2)
    salient = salient_pixels(IMAGES)
    fractals = color_fractals(params.systems, params.color, IMAGES)
    counts = []
    for m in range(5):
        patches = []
        one = slice(m, m + 1)
        for number, divisor in enumerate((2, 4)):
            places, threshold = params.places[one, number], params.threshold[one]
            corner, found = find_patches(salient[one], places, threshold, divisor)
            if not found:
                continue
            patch = enlarge(IMAGES[one], corner, divisor)
            mask = enlarge(salient[one, None].float(), corner, divisor, mode="nearest")
            rotated = enlarge(IMAGES[one], corner, divisor, params.angle[one, number])
            with_fractal = 0.8 * rotated + 0.2 * fractals[one]
            patches.append(mask * with_fractal + (1 - mask) * blur_images(patch))
        counts.append(len(patches))
        expected = IMAGES[m]
        if patches:
            weight = params.weight[m]
            expected = weight * expected + (1 - weight) * torch.cat(patches).mean(dim=0)
        torch.testing.assert_close(mixed[m], expected, atol=1e-5, rtol=0)
    assert 2 in counts


def test_an_image_without_a_salient_patch_stays_as_it_is() -> None:
    params = own_params(threshold=torch.zeros(5))  # every pixel of a patch must be salient
    salient = salient_pixels(IMAGES)
    found = [
        find_patches(salient, params.places[:, number], params.threshold, divisor)[1]
        for number, divisor in enumerate((2, 4))
    ]
    nothing = ~(found[0] | found[1])
    assert nothing.any()
    mixed = mix_with_itself(IMAGES, params, 0.2)
    assert torch.equal(mixed[nothing], IMAGES[nothing])


def test_a_fractal_has_the_range_of_its_image() -> None:
    params = own_params(color=torch.ones(5, 3))
    fractals = color_fractals(params.systems, params.color, IMAGES)
    torch.testing.assert_close(fractals.amin(dim=(2, 3)), IMAGES.amin(dim=(2, 3)))
    torch.testing.assert_close(fractals.amax(dim=(2, 3)), IMAGES.amax(dim=(2, 3)))


def test_labels_are_kept_and_rows_give_rows() -> None:
    method = make(FracMix, switch=1.0)
    params = method.make_params(IMAGES.shape, rng(6), 0)
    whole = method.mix(IMAGES, TARGETS, params)
    assert torch.equal(whole.targets, TARGETS)
    assert whole.lam.eq(1).all()
    part = method.mix(IMAGES, TARGETS, params.rows(slice(1, 4)))
    torch.testing.assert_close(part.images, whole.images[1:4])
    assert torch.equal(part.targets, whole.targets[1:4])


def test_other_steps_are_those_of_the_mixture() -> None:
    method, others = make(FracMix, switch=0.0), make(Mixture)
    for seed in range(4):
        generator = rng(seed)
        torch.rand((), generator=generator)
        expected = others.make_params(IMAGES.shape, generator, 0)
        params = method.make_params(IMAGES.shape, rng(seed), 0)
        assert params.own is None
        mixed = method.mix(IMAGES, TARGETS, params)
        assert torch.equal(mixed.images, others.mix(IMAGES, TARGETS, expected).images)


def test_one_batch_in_four_is_blended_with_itself() -> None:
    method = make(FracMix)
    own = [method.make_params((2, 3, 8, 8), rng(seed), 0).own is not None for seed in range(200)]
    assert sum(own) / 200 == pytest.approx(0.25, abs=0.08)


def test_nothing_reads_a_tensor_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which has no values, reading one fails."""
    # Autocast does not support the meta device; it is only ever disabled here.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    meta = torch.device("meta")
    own = own_params().to(meta)
    assert mix_with_itself(IMAGES.to(meta), own, 0.2).shape == IMAGES.shape
    assert isinstance(FracMixParams(own=own).rows(slice(0, 2)).own, SelfMixParams)


def test_impossible_settings_are_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"fracmix.threshold_min = 0.9 is above threshold_max"):
        FracMix.Settings(threshold_min=0.9, threshold_max=0.8)
    with pytest.raises(UsageError, match=r"set fracmix\.switch instead"):
        FracMix.Settings(others=("fracmix",))
    with pytest.raises(UsageError, match="adautomix takes more than images"):
        FracMix.Settings(others=("adautomix",))
    assert MixtureSettings(mix=("fracmix", "mixup"))
