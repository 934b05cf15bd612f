"""Labels of learned masks: by λ, by what the masks show, or by λ that the masks are scaled to."""

from typing import Any

import pytest
import torch
from every import Bench
from torch import Tensor, nn

from adautomix.mixing.mix_block import mask_loss, scale_to_lam
from adautomix.mixing.ops import Mixed

LEARNED = pytest.mark.parametrize("name", ["adautomix", "automix", "samix"])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bench_of(name: str, **settings: Any) -> Bench:
    """A method whose masks are far from even."""
    if name == "samix":
        settings = {"mask_adjust": 0.0, **settings}
    bench = Bench(name, lam_margin=0.0, per_sample=True, **settings)
    for part in bench.method.generator.modules():  # type: ignore[union-attr]
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, generator=rng(9))
    return bench


def masks_and_lam(n: int = 3, count: int = 20) -> tuple[Tensor, Tensor]:
    masks = (3 * torch.randn(count, n, 6, 5, generator=rng(n))).softmax(dim=1)
    lam = torch.rand(count, n, generator=rng(7)) ** 2
    return masks, lam / lam.sum(dim=1, keepdim=True)


# ---------------------------------------------------------------------- masks scaled to λ


@pytest.mark.parametrize("n", [2, 3, 5])
def test_masks_of_n_images_scaled_to_lam(n: int) -> None:
    masks, lam = masks_and_lam(n)
    lam[0] = torch.eye(n)[0]
    scaled = scale_to_lam(masks, lam)
    torch.testing.assert_close(scaled.mean(dim=(2, 3)), lam)
    torch.testing.assert_close(scaled.sum(dim=1), torch.ones(20, 6, 5))
    assert ((scaled >= 0) & (scaled <= 1 + 1e-6)).all()
    torch.testing.assert_close(scale_to_lam(scaled, lam), scaled)


def test_what_a_mask_loses_goes_to_those_that_lack() -> None:
    masks, lam = masks_and_lam()
    scaled = scale_to_lam(masks, lam)
    for b in range(len(masks)):
        means = masks[b].mean(dim=(1, 2))
        lost = torch.zeros(6, 5)
        for n in range(3):
            if means[n] > lam[b, n]:
                kept = masks[b, n] * lam[b, n] / means[n]
                lost += masks[b, n] - kept
                torch.testing.assert_close(scaled[b, n], kept)
        lacking = [max(float(lam[b, n] - means[n]), 0) for n in range(3)]
        for n in range(3):
            if lacking[n]:
                torch.testing.assert_close(
                    scaled[b, n], masks[b, n] + lost * lacking[n] / sum(lacking), atol=1e-5, rtol=0
                )


# ---------------------------------------------------------------------- labels


def mixes(name: str, **settings: Any) -> Mixed:
    return bench_of(name, **settings).mix_batch(3)


@LEARNED
def test_area_labels_say_what_the_masks_show(name: str) -> None:
    plain, area = mixes(name), mixes(name, label="area")
    assert torch.equal(area.images, plain.images)
    assert area.masks is not None
    shown = area.masks.double().mean(dim=(2, 3)).float()
    torch.testing.assert_close(area.lam, shown)
    assert (area.lam - plain.lam).abs().max() > 0.1
    targets = Bench(name).targets
    torch.testing.assert_close(area.targets, torch.einsum("bn,bnk->bk", shown, targets[area.perm]))


@LEARNED
def test_scaled_masks_show_what_the_labels_say(name: str) -> None:
    plain, scaled = mixes(name), mixes(name, label="scaled")
    assert torch.equal(scaled.targets, plain.targets)
    assert plain.masks is not None
    assert scaled.masks is not None
    assert torch.equal(scaled.masks, scale_to_lam(plain.masks, plain.lam))
    torch.testing.assert_close(scaled.masks.mean(dim=(2, 3)), scaled.lam)


def test_always_adjusted_masks_are_scaled_ones() -> None:
    adjusted, scaled = mixes("automix", mask_adjust=1.0), mixes("automix", label="scaled")
    assert torch.equal(adjusted.images, scaled.images)


def test_the_generator_is_judged_by_lam_whatever_the_students_labels_are() -> None:
    losses = []
    for label in ("lam", "area", "scaled"):
        bench = bench_of("adautomix", label=label)
        found = bench.losses(bench.labels)
        losses.append([found["generator_teacher"].item(), found["generator_cosine"].item()])
    assert losses[0] == losses[1] == losses[2]


# ---------------------------------------------------------------------- the masks' own loss


def test_mask_loss_of_three_masks_by_hand() -> None:
    masks, lam = masks_and_lam()
    expected = 0.0
    for n in range(3):
        mean, share = masks[:, n].double().mean(), lam[:, n].double().mean()
        variance = (masks[:, n].double() - mean).square().mean()
        far = max(float((mean - share).abs()) - 0.01, 0)
        expected += (far - 2 * float(variance)) / 3
    assert mask_loss(masks, lam, 0.01, 2.0).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("step", [0, 1])
def test_adautomix_adds_its_weighted_mask_loss(step: int) -> None:
    settings = {"mask_margin": 0.02}
    without, weighted = (bench_of("adautomix", mask_weight=w, **settings) for w in (0.0, 3.0))
    plain, with_mask = (bench.losses(bench.labels, step) for bench in (without, weighted))
    assert "generator_mask" not in plain
    mask = with_mask["generator_mask"].item()
    assert mask > 0.01
    assert with_mask["loss"].item() == pytest.approx(plain["loss"].item() + 3 * mask, rel=1e-5)
    method: Any = weighted.method
    params: Any = weighted.make_params(step)
    features = method.extract_features(
        weighted.images, weighted.targets, weighted.student, weighted.teacher, params
    )
    mixed = method.generator_mix(weighted.images, weighted.targets, params, features["features"])
    assert mask_loss(mixed.masks, params.generator_lam, 0.02).item() == pytest.approx(mask)


def test_the_mask_loss_draws_means_to_lam() -> None:
    bench = bench_of(
        "adautomix",
        mask_weight=1.0,
        mask_margin=0.0,
        lam_embedding=True,
        teacher_term=False,
        cosine_term=False,
        clean_term=False,
        mixup_term=False,
        mixed_term=False,
    )
    optimizer = torch.optim.Adam(bench.method.parameters(), lr=0.03)
    course = []
    for _ in range(15):
        loss = bench.losses(bench.labels)["loss"]
        course.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert course[-1] < 0.5 * course[0]
