"""How generators of masks begin and learn: first weights, optimizer, warm-up, spread of masks."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from every import Bench, steps_of, trainer_of
from torch import Tensor, nn

from adautomix.methods.automix import AutoMixBlock
from adautomix.methods.samix import SAMixBlock
from adautomix.mixing.generator import MixGenerator, init_conv, mask_spread
from adautomix.mixing.params import draw_permutations, draw_simplex
from adautomix.mixing.settings import MixSettings
from adautomix.models import build_model
from adautomix.runs.folder import RunFolder

LEARNED = pytest.mark.parametrize("name", ["adautomix", "automix", "samix"])
GENERATORS = {
    "adautomix": (MixGenerator, 3),
    "automix": (AutoMixBlock, 2),
    "samix": (SAMixBlock, 2),
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------- first weights


def smooth_images(count: int = 12, size: int = 32) -> Tensor:
    """Noise that varies at many scales, as photographs do."""
    scales = [torch.randn(count, 3, side, side, generator=rng(side)) for side in (2, 4, 8, 16)]
    total = torch.stack([F.interpolate(scale, size=size, mode="bilinear") for scale in scales])
    return total.sum(dim=0) / 2


@cache
@torch.no_grad()
def feature_maps(width: float) -> Tensor:
    """Of the third stage of a CIFAR ResNet-18."""
    network = build_model("resnet18", 5, stem="cifar", width=width, image_size=32, seed=0)
    return network.feature_map(smooth_images(), 3)


@torch.no_grad()
def first_spread(name: str, width: float, init: str) -> float:
    """Mean over a few generators with new weights."""
    features, (cls, n) = feature_maps(width), GENERATORS[name]
    spreads = []
    for seed in range(6):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator: Any = cls(features.shape[1], init=init)
        perm = draw_permutations(len(features), n, rng(seed))
        lam = draw_simplex(len(features), n, 1.0, rng(seed))
        spreads.append(mask_spread(generator(features, perm, lam, (32, 32))))
    return float(torch.stack(spreads).mean())


@LEARNED
def test_scaled_masks_have_one_spread_in_narrow_and_full_networks(name: str) -> None:
    narrow, full = (first_spread(name, width, "scaled") for width in (0.25, 1.0))
    assert full > 0.03
    assert 0.6 < narrow / full < 1.7
    assert first_spread(name, 0.25, "released") == 0
    assert first_spread(name, 1.0, "released") < 0.001


@LEARNED
def test_first_weights_are_the_same_draws_in_another_scale(name: str) -> None:
    released, scaled = (Bench(name, generator_init=init) for init in ("released", "scaled"))
    channels = 32
    std = {"adautomix": 3 / channels**0.5, "automix": 3 / channels**0.5 / 16**0.25}
    theirs = dict(scaled.method.named_parameters())
    for key, weight in released.method.named_parameters():
        if weight.ndim == 4:
            ratio = theirs[key] / weight
            torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)
            if key == "generator.query.weight" and name in std:
                assert ratio.mean().item() == pytest.approx(std[name] / 0.01, rel=1e-4)
        else:
            assert torch.equal(theirs[key], weight)


def test_released_weights_have_one_scale_whatever_the_channels() -> None:
    for channels in (8, 512):
        conv = init_conv(nn.Conv2d(channels, 600, 1))
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert conv.bias is not None
        assert not conv.bias.any()


# ---------------------------------------------------------------------- spread of masks


def test_spread_of_known_masks() -> None:
    flat = torch.full((4, 3, 8, 8), 1 / 3)
    assert mask_spread(flat).item() == 0
    assert mask_spread(flat + 1e-5 * torch.rand(4, 3, 8, 8, generator=rng())).item() == 0
    half = (torch.arange(8) < 4).float().expand(4, 1, 8, 8)
    assert mask_spread(torch.cat([half, 1 - half], dim=1)).item() == pytest.approx(0.5)
    noise = torch.rand(4, 2, 8, 8, generator=rng()).requires_grad_()
    by_hand = [((mask - mask.mean()) ** 2).mean().sqrt() for mix in noise.detach() for mask in mix]
    assert mask_spread(noise).item() == pytest.approx(float(sum(by_hand)) / 8, rel=1e-5)
    assert not mask_spread(noise).requires_grad


@pytest.mark.slow
@LEARNED
def test_the_spread_of_the_generators_masks_is_logged(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(name, tmp_path, epochs=1, **{name: {"generator_init": "scaled"}})
    trainer.fit()
    (row,) = (row for row in RunFolder(tmp_path).rows() if row.kind == "epoch")
    assert 0.005 < row.parts["mask_spread"] < 0.5


# ---------------------------------------------------------------------- an optimizer of its own


ADAMW: dict[str, Any] = {"generator_optimizer": "adamw"}


@LEARNED
def test_each_optimizer_has_its_own_parameters(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(name, tmp_path, **{name: ADAMW}, lr=0.05, min_lr=0.01)
    assert trainer.method_optimizer is not None
    held = [
        {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        for optimizer in (trainer.optimizer, trainer.method_optimizer)
    ]
    assert held[0] == {id(weight) for weight in trainer.student.parameters()}
    assert held[1] == {id(weight) for weight in trainer.method.parameters()}
    group = trainer.method_optimizer.param_groups[0]
    assert (group["max_lr"], group["min_lr"]) == pytest.approx((1e-3, 2e-4))
    assert trainer_of(name, tmp_path).method_optimizer is None


def test_rates_of_the_generators_own_optimizer() -> None:
    rates = Bench("adautomix", **ADAMW, generator_lr=0.01).method.learning_rates(0.1, 0.05)
    assert rates == pytest.approx((0.01, 0.005))
    rates = Bench("adautomix", **ADAMW, generator_min_lr=0.0).method.learning_rates(0.1, 0.05)
    assert rates == (1e-3, 0.0)


def test_the_first_step_of_adamw_moves_each_weight_by_the_rate(tmp_path: Path) -> None:
    trainer = trainer_of("adautomix", tmp_path, adautomix=ADAMW)
    before = {name: weight.detach().clone() for name, weight in trainer.method.named_parameters()}
    steps_of(trainer, 1)
    for name, weight in trainer.method.named_parameters():
        moved = (weight - before[name]).abs().max().item()
        assert moved < 1.01e-3
        if name == "generator.value.weight":
            assert moved == pytest.approx(1e-3, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("clip", [None, 1.0])
def test_it_resumes_exactly_with_both_optimizers(clip: float | None, tmp_path: Path) -> None:
    settings = {"adautomix": {**ADAMW, "generator_every": 2}, "clip_grad": clip}
    whole, first, second = (trainer_of("adautomix", tmp_path / p, **settings) for p in "wab")
    rows = steps_of(whole, 6)
    halves = steps_of(first, 3)
    checkpoint = first.checkpoint()
    assert checkpoint.state["method_optimizer"]["state"]
    second.restore(checkpoint)
    assert halves + steps_of(second, 3) == rows
    for key, value in whole.weights().items():
        assert torch.equal(value, second.weights()[key]), key


def test_the_students_course_starts_the_same_with_another_optimizer(tmp_path: Path) -> None:
    """The first step of the student does not depend on who steps the generator."""
    same = trainer_of("adautomix", tmp_path / "same")
    own = trainer_of("adautomix", tmp_path / "own", adautomix=ADAMW)
    assert steps_of(same, 1) == steps_of(own, 1)
    for mine, theirs in zip(own.student.parameters(), same.student.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    generators = [dict(t.method.named_parameters())["generator.value.weight"] for t in (same, own)]
    assert not torch.equal(*generators)


# ---------------------------------------------------------------------- warm-up


def warming(name: str, **settings: Any) -> Bench:
    bench = Bench(name, mask_warmup=0.5, **settings)
    bench.method.plan(10, MixSettings(), 0)
    bench.student.eval()
    return bench


@LEARNED
def test_the_student_sees_plain_mixup_while_the_generator_warms_up(name: str) -> None:
    bench, usual = warming(name), Bench(name, lam_margin=0.499)
    params: Any = bench.make_params(4)
    assert params.warming_up
    assert not bench.make_params(5).warming_up  # type: ignore[attr-defined]
    warm, mixup = bench.mix_batch(4), usual.mix_batch(4)
    linear = torch.einsum("bn,bnchw->bchw", warm.lam, bench.images[warm.perm])
    torch.testing.assert_close(warm.images, linear)
    assert torch.equal(warm.targets, mixup.targets)
    bench.losses(bench.labels, 4)["loss"].backward()
    assert all(weight.grad is not None for weight in bench.method.parameters())


def test_equal_views_are_shown_once() -> None:
    """Mixup and generated images would be the same: one pass has the weight of both."""
    bench = warming("adautomix", alpha=0.3)
    both: Any = bench.make_params(4)
    losses = bench.losses(bench.labels, 4)
    assert losses.keys() >= {"clean", "mixup"}
    assert "mixed" not in losses
    sources = bench.method.prepare(bench.images, bench.labels, bench.student, bench.teacher, both)
    loss, _ = bench.method.student_loss(sources, bench.student, both)  # type: ignore[operator]
    expected = 0.7 * losses["clean"] + 1.3 * losses["mixup"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_warm_up_without_a_mixup_term_keeps_its_view() -> None:
    bench = warming("adautomix", alpha=0.0)
    losses = bench.losses(bench.labels, 4)
    assert losses.keys() >= {"clean", "mixed"}


@pytest.mark.slow
@pytest.mark.parametrize("views", ["split", "alternate"])
def test_a_warm_up_goes_with_views_and_resumes_exactly(views: str, tmp_path: Path) -> None:
    settings = {"adautomix": {"views": views, "mask_warmup": 0.5}}
    whole, first, second = (trainer_of("adautomix", tmp_path / p, **settings) for p in "wab")
    rows = steps_of(whole, 8)
    halves = steps_of(first, 3)
    second.restore(first.checkpoint())
    assert halves + steps_of(second, 5) == rows
    assert all("mixed" not in row for row in rows[:4])
    assert any("mixed" in row for row in rows[4:])
