"""AutoMix, SAMix, DADA and ME-ADA: blocks and losses by hand, gradients, and what is learned."""

import copy
import itertools
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from tiny import CLASSES, gradients_of, state_of, tiny_classifier, toy_images, trained_networks
from torch import Tensor, nn

from adautomix.ema import Teacher
from adautomix.errors import UsageError
from adautomix.methods import build_method
from adautomix.methods.automix import AutoMix, AutoMixBlock
from adautomix.methods.base import MixInputs
from adautomix.methods.base_learned import MixBlockParams
from adautomix.methods.dada import DADA, DADAParams, ImageGenerator, fixed_features, source_loss
from adautomix.methods.meada import MEADA, PixelRange, objective
from adautomix.methods.samix import SAMix, SAMixBlock, s_curve
from adautomix.mixing.mix_block import MixBlock, mask_loss, scale_to_lam
from adautomix.mixing.ops import mix_by_lam, soft_targets
from adautomix.mixing.params import draw_lam, draw_partners
from adautomix.mixing.settings import MixSettings
from adautomix.models import build_model

METHODS: dict[str, Any] = {"automix": AutoMix, "samix": SAMix, "dada": DADA, "meada": MEADA}
BLOCKS = pytest.mark.parametrize("name", ["automix", "samix"])
EVERY = pytest.mark.parametrize("name", METHODS)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(name: str, student: Any = None, **settings: Any) -> Any:
    """A method; the weights of a block are so large that its masks are far from uniform."""
    cls = METHODS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        method = cls(
            cls.Settings(**settings),
            num_classes=CLASSES,
            seed=3,
            model=student or tiny_classifier(),
        )
    if isinstance(method, AutoMix | SAMix):
        sharpen(method.generator)
    return method


def sharpen(block: nn.Module) -> None:
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, generator=rng(9))
            if module.bias is not None:
                nn.init.normal_(module.bias, generator=rng(8))


class World:
    """A student, a teacher that differs from it, a method and a batch."""

    def __init__(self, name: str, images: int = 12, **settings: Any) -> None:
        self.student = tiny_classifier(seed=0)
        self.student.spec = SimpleNamespace(image_size=16)
        self.teacher: Any = Teacher(tiny_classifier(seed=1)).model
        self.method = make(name, self.student, **settings)
        self.images, self.labels = toy_images(images)
        self.targets = soft_targets(self.labels, CLASSES)

    def make_params(self, step: int = 0) -> Any:
        return self.method.make_params(self.images.shape, rng(4), step)

    def sources(self, params: Any) -> Any:
        return self.method.prepare(self.images, self.targets, self.student, self.teacher, params)

    def compute_loss(self, params: Any = None) -> Any:
        params = params or self.make_params()
        return self.method.compute_loss(self.sources(params), self.student, self.teacher, params)

    def mix_batch(self, params: Any) -> Any:
        return self.method.mix_batch(self.images, self.targets, self.student, self.teacher, params)


def cross_entropy(logits: Tensor, targets: Tensor) -> float:
    return -(targets.double() * logits.double().log_softmax(dim=1)).sum(dim=1).mean().item()


# ---------------------------------------------------------------------- every method


@EVERY
def test_parameters_depend_on_the_generator_alone(name: str) -> None:
    one, other = make(name), make(name)
    shape = (9, 3, 16, 16)
    first = vars(one.make_params(shape, rng(1), 5))
    torch.rand(7)
    second, third = (
        vars(other.make_params(shape, rng(1), 5)),
        vars(other.make_params(shape, rng(2), 5)),
    )
    tensors = [key for key, value in first.items() if isinstance(value, Tensor)]
    assert all(torch.equal(first[key], second[key]) for key in tensors)
    assert not all(torch.equal(first[key], third[key]) for key in tensors)
    assert all(len(first[key]) == 9 for key in tensors)


@EVERY
def test_rows_of_the_parameters_give_rows_of_the_mixes(name: str) -> None:
    """Except for DADA, whose generator normalizes over the images that it makes."""
    world = World(name)
    params = world.make_params()
    features = world.method.extract_features(
        world.images, world.targets, world.student, world.teacher, params
    )
    whole = world.method.mix(world.images, world.targets, params, **features)
    some = world.method.mix(world.images, world.targets, params.rows(slice(1, 4)), **features)
    assert len(some.images) == len(some.targets) == 3
    assert torch.equal(some.perm, whole.perm[1:4])
    assert torch.equal(some.targets, whole.targets[1:4])
    if name != "dada":
        torch.testing.assert_close(some.images, whole.images[1:4])


@EVERY
def test_the_loss_of_a_part_is_finite(name: str) -> None:
    world = World(name)
    params = world.make_params()
    sources = MixInputs(**{**vars(world.sources(params)), "own": slice(4, 9)})
    method, rows = world.method, params.rows(slice(4, 9))
    losses = method.compute_loss(sources, world.student, world.teacher, rows)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    assert all(p.grad is not None for p in world.student.conv1.parameters())


@EVERY
def test_soft_labels_give_the_loss_of_hard_ones(name: str) -> None:
    hard, soft = World(name), World(name)
    one = hard.method.losses(hard.images, hard.labels, hard.student, hard.teacher, 5)
    other = soft.method.losses(soft.images, soft.targets, soft.student, soft.teacher, 5)
    assert torch.equal(one["loss"], other["loss"])


@EVERY
def test_labels_of_many_classes_need_not_sum_to_one(name: str) -> None:
    world = World(name)
    world.targets = (torch.rand(12, CLASSES, generator=rng(5)) > 0.5).float() * 2
    sample = world.mix_batch(world.make_params())
    expected = (sample.lam[:, :, None] * world.targets[sample.perm]).sum(dim=1)
    torch.testing.assert_close(sample.targets, expected)
    assert torch.isfinite(world.compute_loss()["loss"])


@EVERY
def test_small_and_odd_batches(name: str) -> None:
    for images in (max(1, METHODS[name].min_batch.fget(None) if name == "dada" else 1), 3, 7):
        world = World(name, images=images)
        loss = world.method.losses(
            world.images, world.labels, world.student.eval(), world.teacher, 0
        )
        loss["loss"].backward()
        assert torch.isfinite(loss["loss"])
    if name == "dada":
        with pytest.raises(UsageError, match="mixes 2 images and the batch holds 1"):
            world.method.losses(world.images[:1], world.labels[:1], None, None, 0)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixes_keep_dtype_and_memory_format(name: str, dtype: torch.dtype) -> None:
    world = World(name, **({"ascents": 1} if name == "meada" else {}))
    params = world.make_params()
    features = world.method.extract_features(
        world.images, world.targets, world.student, world.teacher, params
    )
    full = world.method.mix(world.images, world.targets, params, **features)
    half = world.method.mix(world.images.to(dtype), world.targets, params, **features)
    assert half.images.dtype == dtype
    torch.testing.assert_close(half.images.float(), full.images, atol=0.05, rtol=0)
    last = world.images.contiguous(memory_format=torch.channels_last)
    mixed = world.method.mix(last, world.targets, params, **features).images
    torch.testing.assert_close(mixed, full.images)
    if name != "dada":
        assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.bfloat16) for name in METHODS),
        ("samix", torch.float16),
        ("meada", torch.half),
    ],
)
def test_autocast_changes_the_loss_little(name: str, dtype: torch.dtype) -> None:
    full = World(name).compute_loss()
    with torch.autocast("cpu", dtype):
        world = World(name)
        half = world.compute_loss()
    half["loss"].backward()
    assert half["loss"].dtype == torch.float32
    assert half["loss"].item() == pytest.approx(full["loss"].item(), rel=0.05)


@EVERY
def test_label_smoothing_reaches_the_classes(name: str) -> None:
    world = World(name)
    plain = world.compute_loss()
    world.method.label_smoothing = 0.4
    smooth = world.compute_loss()
    named = {
        "automix": ("clean", "mixed", "generator_teacher"),
        "samix": ("clean", "mixed", "generator_teacher"),
        "dada": ("class", "class_made"),
        "meada": ("clean", "adversarial"),
    }[name]
    assert all(smooth[part] != plain[part] for part in named)
    assert all(not value.requires_grad for part, value in smooth.items() if part != "loss")


@pytest.mark.parametrize("name", ["automix", "samix", "dada"])
def test_they_need_build_model(name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} looks inside .* pass model=build_model"):
        METHODS[name](METHODS[name].Settings(), num_classes=CLASSES)


@pytest.mark.parametrize("name", ["automix", "samix", "dada"])
def test_generators_own_learning_rates(name: str) -> None:
    def rates(**settings: Any) -> tuple[float, float]:
        method = make(name, generator_optimizer="same", **settings)
        found: tuple[float, float] = method.learning_rates(0.1, 0.05)
        return found

    assert rates() == (0.1, 0.05)
    assert rates(generator_lr=0.02) == (0.02, 0.05)
    assert rates(generator_min_lr=0.0) == (0.1, 0.0)


def test_dadas_own_adam_has_a_constant_learning_rate() -> None:
    assert make("dada").learning_rates(0.1, 0.05) == (3e-4, 3e-4)
    assert make("dada", generator_lr=0.02).learning_rates(0.1, 0.05) == (0.02, 0.02)
    assert make("dada", generator_min_lr=0.0).learning_rates(0.1, 0.05) == (3e-4, 0)


# ---------------------------------------------------------------------- the block, by hand


def convolved(conv: Any, maps: Tensor) -> Tensor:
    """A 1×1 convolution of one image's maps `[C, h, w]`, flat `[C', hw]`, in float64."""
    out = torch.einsum("dc,chw->dhw", conv.weight[:, :, 0, 0].double(), maps)
    if conv.bias is not None:
        out = out + conv.bias.double()[:, None, None]
    return out.flatten(1)


def mask_by_hand(query: Tensor, key: Tensor, value: Tensor, mode: str, side: int) -> Tensor:
    """σ(up(softmax_rows(qᵀk/√d) v)) of one mix, row by row of the attention."""
    out = torch.zeros(query.shape[1], dtype=torch.float64)
    for i in range(query.shape[1]):
        scores = torch.einsum("d,dj->j", query[:, i], key) / len(query) ** 0.5
        weights = scores.exp() / scores.exp().sum()
        out[i] = (weights * value[0]).sum()
    small = out.view(1, 1, 4, 4)
    if mode == "nearest":
        large = small.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3)
    else:
        large = F.interpolate(small, (side, side), mode="bilinear", align_corners=False)
    return 1 / (1 + torch.exp(-large[0, 0]))


def with_plane(maps: Tensor, value: float) -> Tensor:
    return torch.cat([maps, torch.full_like(maps[:1], value)])


@torch.no_grad()
def automix_by_hand(block: AutoMixBlock, maps: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    masks = []
    for (a, b), share in zip(perm.tolist(), lam[:, 0].tolist(), strict=True):
        first, second = maps[a].double(), maps[b].double()
        if block.lam_embedding:
            first, second = with_plane(first, share), with_plane(second, 1 - share)
        query, key = convolved(block.query, first), convolved(block.query, second)
        value = convolved(block.value, second)
        masks.append(mask_by_hand(query, key, value, block.upsampling, 8))
    return torch.stack(masks)


def g_by_hand(lam: float, k: float | None) -> float:
    if k is None:
        return lam
    return (4 / 3 * lam**3 - 2 * lam**2 + (k + 1) * lam) / (k + 1 - 2 / 3)


@torch.no_grad()
def samix_by_hand(block: SAMixBlock, maps: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    """As released: the scaled maps of all second images go through the network of the value."""
    scaled = []
    for (a, b), share in zip(perm.tolist(), lam[:, 0].tolist(), strict=True):
        g = g_by_hand(share, block.curve)
        factors = 1 + block.scale * g, 1 + block.scale * (1 - g)
        scaled.append((factors[0] * maps[a].double(), factors[1] * maps[b].double()))
    first: Any = block.value[0]
    last: Any = block.value[3]
    hidden = torch.stack([convolved(first, second) for _, second in scaled])
    mean = hidden.mean(dim=(0, 2), keepdim=True)
    var = ((hidden - mean) ** 2).mean(dim=(0, 2), keepdim=True)
    normed = (hidden - mean) / (var + 1e-5).sqrt()
    active = torch.where(normed > 0, normed, normed.exp() - 1)
    values = torch.einsum("dc,bcp->bdp", last.weight[:, :, 0, 0].double(), active)
    masks = []
    for (one, other), value in zip(scaled, values, strict=True):
        both = torch.cat([one, other])
        query, key = convolved(block.query, both), convolved(block.key, both)
        masks.append(mask_by_hand(query, key, value, block.upsampling, 8))
    return torch.stack(masks)


def features() -> Tensor:
    return torch.randn(9, 6, 4, 4, generator=rng(1)).relu()


def pairs(alpha: float = 2.0, *, per_sample: bool = True) -> tuple[Tensor, Tensor]:
    return draw_partners(9, rng(2)), draw_lam(9, alpha, rng(3), per_sample=per_sample)


@pytest.mark.parametrize("lam_embedding", [False, True])
@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_automix_masks_by_hand(lam_embedding: bool, upsampling: Any) -> None:
    block = AutoMixBlock(6, lam_embedding=lam_embedding, upsampling=upsampling)
    sharpen(block)
    assert block.query.weight.shape == (3, 6 + lam_embedding, 1, 1)
    perm, lam = pairs()
    masks = block(features(), perm, lam, (8, 8))
    expected = automix_by_hand(block, features(), perm, lam)
    torch.testing.assert_close(masks[:, 1].double(), expected, atol=1e-5, rtol=0)
    assert masks.std() > 0.1
    assert torch.equal(masks.sum(dim=1), torch.ones(9, 8, 8))


@pytest.mark.parametrize(("scale", "curve"), [(1.0, 0.25), (1.0, None), (0.4, 0.0), (0.0, 0.25)])
@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_samix_masks_by_hand(scale: float, curve: float | None, upsampling: Any) -> None:
    block = SAMixBlock(6, scale=scale, curve=curve, upsampling=upsampling)
    sharpen(block)
    perm, lam = pairs(per_sample=False)
    masks = block(features(), perm, lam, (8, 8))
    expected = samix_by_hand(block, features(), perm, lam)
    torch.testing.assert_close(masks[:, 1].double(), expected, atol=1e-4, rtol=0)
    assert masks.std() > 0.1
    torch.testing.assert_close(masks.sum(dim=1), torch.ones(9, 8, 8))


def test_samix_of_faint_maps_by_hand() -> None:
    """If batch norm's ε matters, the factor of λ does not cancel exactly in the value."""
    block = SAMixBlock(6)
    sharpen(block)
    perm, lam = pairs(per_sample=False)
    faint = 3e-3 * features()
    masks = block(faint, perm, lam, (8, 8))
    expected = samix_by_hand(block, faint, perm, lam)
    torch.testing.assert_close(masks[:, 1].double(), expected, atol=2e-5, rtol=0)
    other = block(faint, perm, 1 - lam, (8, 8))
    assert (other - masks).abs().max() > 1e-3


def test_samix_with_one_lam_per_mix_scales_its_maps() -> None:
    """Query and key depend on the λ of each mix, so changing one λ changes one mask."""
    block = SAMixBlock(6)
    sharpen(block)
    perm, lam = pairs()
    masks = block(features(), perm, lam, (8, 8))
    moved = lam.clone()
    moved[[0, 1]] = lam[[1, 0]]  # the mean over the mixes stays
    changed = (block(features(), perm, moved, (8, 8)) - masks).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert changed.tolist() == [True, True, *[False] * 7]


def test_the_s_curve() -> None:
    lam = torch.linspace(0, 1, 11, dtype=torch.float64)
    for k in (0.0, 0.25, 3.0):
        curve = s_curve(lam, k)
        assert curve.tolist() == pytest.approx([g_by_hand(x, k) for x in lam.tolist()])
        assert curve[[0, 5, 10]].tolist() == pytest.approx([0, 0.5, 1])
        torch.testing.assert_close(curve + s_curve(1 - lam, k), torch.ones_like(lam))
        assert (curve.diff() > 0).all()
        assert curve.diff().argmin() in (4, 5)
    assert torch.equal(s_curve(lam, None), lam)


@pytest.mark.parametrize("block", [AutoMixBlock(64), SAMixBlock(64)])
def test_initial_masks_are_about_uniform(block: MixBlock) -> None:
    maps = torch.randn(9, 64, 4, 4, generator=rng(1)).relu()
    perm, lam = pairs()
    assert (block(maps, perm, lam, (8, 8)) - 0.5).abs().max() < 0.05
    weights = [p for n, p in block.named_parameters() if p.ndim == 4]
    assert all(weight.std().item() == pytest.approx(0.01, rel=0.3) for weight in weights)
    assert all(not p.any() for n, p in block.named_parameters() if n.endswith("y.bias"))


def test_automix_depends_on_lam_only_with_the_embedding() -> None:
    perm, lam = pairs()
    for embedded in (False, True):
        block = AutoMixBlock(6, lam_embedding=embedded)
        sharpen(block)
        one, other = (block(features(), perm, share, (8, 8)) for share in (lam, 1 - lam))
        assert torch.equal(one, other) != embedded


@pytest.mark.parametrize("block", [AutoMixBlock(6, lam_embedding=True), SAMixBlock(6)])
def test_the_block_learns_from_its_masks(block: MixBlock) -> None:
    """By finite differences in float64: the gradient of every weight through the masks."""
    sharpen(block)
    block.double()
    perm, lam = draw_partners(3, rng(2)), draw_lam(3, 1.0, rng(3), per_sample=False).double()
    maps = torch.randn(3, 6, 2, 2, generator=rng(1)).double()
    weights = dict(block.named_parameters())
    probe = torch.randn(3, 2, 4, 4, generator=rng(6)).double()

    def loss() -> Tensor:
        # The block computes its attention in float32, hence a coarse step and tolerance.
        masks: Tensor = block(maps, perm, lam, (4, 4))
        return (masks.double() * probe).sum()

    loss().backward()
    for name, weight in weights.items():
        assert weight.grad is not None
        flat, gradient = weight.data.view(-1), weight.grad.view(-1)
        k = int(gradient.abs().argmax())
        before = flat[k].clone()
        flat[k] = before + 1e-2
        above = loss().item()
        flat[k] = before - 1e-2
        slope = (above - loss().item()) / 2e-2
        flat[k] = before
        assert slope == pytest.approx(gradient[k].item(), rel=0.02, abs=2e-3), name


# ---------------------------------------------------------------------- masks and λ


def test_masks_scaled_to_lam_by_hand() -> None:
    first = (
        torch.rand(6, 4, 4, generator=rng(1)) ** torch.tensor([0.2, 1, 4, 0.5, 2, 1])[:, None, None]
    )
    masks = torch.stack([first, 1 - first], dim=1)
    lam = draw_lam(6, 1.0, rng(2), per_sample=True)
    scaled = scale_to_lam(masks, lam)
    for b in range(6):
        share, mean = float(lam[b, 0]), float(first[b].mean())
        if mean > share:
            one = first[b] * share / mean
            other = 1 - one
        else:
            other = (1 - first[b]) * (1 - share) / (1 - mean)
            one = 1 - other
        torch.testing.assert_close(scaled[b], torch.stack([one, other]), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.mean(dim=(2, 3)), lam)
    assert ((scaled >= 0) & (scaled <= 1)).all()
    torch.testing.assert_close(
        scale_to_lam(masks, first.mean((1, 2))[:, None] * torch.tensor([[1.0, 0]])), masks
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_extreme_masks_can_be_scaled(value: float) -> None:
    first = torch.full((2, 4, 4), value)
    lam = torch.tensor([[0.3, 0.7], [1.0, 0.0]])
    scaled = scale_to_lam(torch.stack([first, 1 - first], dim=1), lam)
    assert torch.isfinite(scaled).all()
    assert ((scaled >= 0) & (scaled <= 1)).all()


@pytest.mark.parametrize("mean", [0.1, 0.35, 0.45, 0.9])
@pytest.mark.parametrize("variance_weight", [0.0, 2.0])
def test_mask_loss_by_hand(mean: float, variance_weight: float) -> None:
    """λ = 0.4 and a margin of 0.1; the mean is over the whole batch, not per image."""
    noise = torch.rand(5, 4, 4, generator=rng(1))
    first = (mean + 0.1 * (noise - noise.mean())) * torch.tensor([1.0, 1, 0, 1, 2])[:, None, None]
    masks = torch.stack([first, 1 - first], dim=1)
    lam = torch.tensor([0.4, 0.6]).expand(5, 2)
    pixels = first.double().flatten().tolist()
    average = sum(pixels) / len(pixels)
    variance = sum((pixel - average) ** 2 for pixel in pixels) / len(pixels)
    expected = max(abs(average - 0.4) - 0.1, 0) - variance_weight * variance
    assert mask_loss(masks, lam, 0.1, variance_weight).item() == pytest.approx(expected, abs=1e-6)


def test_mask_loss_uses_the_mean_lam() -> None:
    first = torch.full((2, 4, 4), 0.9)
    lam = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    assert mask_loss(torch.stack([first, 1 - first], 1), lam, 0.1).item() == pytest.approx(0.4)


def block_params(perm: Tensor, lam: Tensor, *, adjusted: bool = False) -> MixBlockParams:
    return MixBlockParams(perm, lam, perm, lam, torch.full((len(perm),), adjusted))


@BLOCKS
def test_near_edge_mixes_are_plain_mixup(name: str) -> None:
    world = World(name, images=6, lam_margin=0.08)
    first = torch.tensor([0.079, 0.081, 0.919, 0.921, 0.5, 0.0])
    lam = torch.stack([first, 1 - first], dim=1)
    rows = torch.arange(6)
    params = block_params(torch.stack([rows, rows.roll(1)], dim=1), lam)
    mixed = world.mix_batch(params)
    plain = mix_by_lam(world.images, world.targets, params.classifier_perm, lam)
    equal = [
        torch.allclose(*rows, atol=1e-6) for rows in zip(mixed.images, plain.images, strict=True)
    ]
    assert equal == [True, False, False, True, False, True]
    torch.testing.assert_close(mixed.targets, plain.targets)


@BLOCKS
def test_adjusted_masks_have_the_mean_lam(name: str) -> None:
    world = World(name, mask_adjust=0.5, lam_margin=0, per_sample=True)
    params = world.make_params()
    turned_on = world.mix_batch(block_params(*params.classifier, adjusted=True))
    turned_off = world.mix_batch(block_params(*params.classifier, adjusted=False))
    torch.testing.assert_close(turned_on.masks.mean(dim=(2, 3)), params.classifier_lam)
    assert (turned_off.masks.mean(dim=(2, 3)) - params.classifier_lam).abs().max() > 0.1
    assert torch.equal(turned_on.targets, turned_off.targets)


def test_masks_are_adjusted_with_probability_mask_adjust() -> None:
    method = make("samix")
    drawn = torch.stack(
        [method.make_params((4, 3, 16, 16), rng(k), 0).adjusted for k in range(400)]
    )
    assert torch.equal(drawn, drawn[:, :1].expand(-1, 4))  # a coin a step
    assert drawn.float().mean().item() == pytest.approx(0.25, abs=0.07)
    assert not make("automix").make_params((4, 3, 16, 16), rng(), 0).adjusted.any()


@BLOCKS
def test_partners_and_weights(name: str) -> None:
    method = make(name, per_sample=True)
    params = method.make_params((4000, 3, 16, 16), rng(), 0)
    beta = scipy.stats.beta(2, 2)
    for perm, lam in (params.classifier, params.generator):
        assert scipy.stats.kstest(lam[:, 0].numpy(), beta.cdf).pvalue > 0.001
        torch.testing.assert_close(lam.sum(dim=1), torch.ones(4000))
        assert torch.equal(perm[:, 0], torch.arange(4000))
        assert torch.equal(perm[:, 1].sort().values, torch.arange(4000))
    assert not torch.equal(params.classifier_perm, params.generator_perm)
    assert not torch.equal(params.classifier_lam, params.generator_lam)
    shared = make(name).make_params((50, 3, 16, 16), rng(), 0)
    assert len(shared.classifier_lam.unique(dim=0)) == len(shared.generator_lam.unique(dim=0)) == 1


# ---------------------------------------------------------------------- mixes and losses, by hand


@BLOCKS
def test_mix_sample_by_sample(name: str) -> None:
    world = World(name, per_sample=True, lam_margin=0)
    params = world.make_params()
    mixed = world.mix_batch(params)
    for b, (one, other) in enumerate(params.classifier_perm.tolist()):
        masks, (share, rest) = mixed.masks[b].double(), params.classifier_lam[b].tolist()
        images, targets = world.images.double(), world.targets.double()
        image = masks[0] * images[one] + masks[1] * images[other]
        label = share * targets[one] + rest * targets[other]
        torch.testing.assert_close(mixed.images[b].double(), image, atol=1e-5, rtol=0)
        torch.testing.assert_close(mixed.targets[b].double(), label, atol=1e-6, rtol=0)


@BLOCKS
def test_an_image_mixed_with_itself_is_itself(name: str) -> None:
    world = World(name)
    rows = torch.arange(12)
    params = block_params(
        torch.stack([rows, rows], dim=1), draw_lam(12, 2.0, rng(), per_sample=True)
    )
    mixed = world.mix_batch(params)
    torch.testing.assert_close(mixed.images, world.images)
    torch.testing.assert_close(mixed.targets, world.targets)


@torch.no_grad()
def parts_by_hand(world: World, params: MixBlockParams) -> dict[str, float]:
    """All terms of both losses from copies of the networks, with masks from the block."""
    student, teacher = copy.deepcopy(world.student), copy.deepcopy(world.teacher)
    maps = teacher.features(world.images, 1).tap
    mixes = []
    for perm, lam in (params.classifier, params.generator):
        masks = world.method.generator(maps, perm, lam, (16, 16))
        images = torch.einsum("bnhw,bnchw->bchw", masks, world.images[perm])
        mixes.append((images, torch.einsum("bn,bnk->bk", lam, world.targets[perm]), masks))
    (features, label, _), (generator_mix, generator_label, masks) = mixes
    first, settings = masks[:, 0].double(), world.method.settings
    excess = abs(first.mean().item() - params.generator_lam[:, 0].double().mean().item())
    variance = first.var(correction=0).item()
    return {
        "clean": cross_entropy(student(world.images), world.targets),
        "mixed": cross_entropy(student(features, head="mixed"), label),
        "generator_teacher": cross_entropy(teacher(generator_mix, head="mixed"), generator_label),
        "generator_mask": max(excess - settings.mask_margin, 0)
        - settings.variance_weight * variance,
    }


@BLOCKS
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("seed", [4, 5])
def test_loss_is_the_sum_of_its_parts(name: str, per_sample: bool, seed: int) -> None:
    settings: Any = {"mask_weight": 0.7, "mask_margin": 0.01, "lam_margin": 0, "mask_adjust": 0}
    world = World(name, per_sample=per_sample, **settings)
    params = world.method.make_params(world.images.shape, rng(seed), 0)
    expected = parts_by_hand(world, params)
    losses = world.compute_loss(params)
    weights = {"generator_mask": 0.7}
    loss = sum(weights.get(part, 1) * value for part, value in expected.items())
    assert losses["loss"].item() == pytest.approx(loss, abs=2e-5)
    for part, value in expected.items():
        assert losses[part].item() == pytest.approx(value, abs=1e-5), part
    assert abs(expected["generator_mask"]) > 1e-4


@BLOCKS
def test_exchanging_lam_within_the_batch_changes_the_loss(name: str) -> None:
    world = World(name, per_sample=True, lam_margin=0, mask_adjust=0)
    params = world.make_params()
    moved = MixBlockParams(
        params.classifier_perm,
        params.classifier_lam.roll(1, 0),
        params.generator_perm,
        params.generator_lam.roll(1, 0),
        params.adjusted,
    )
    one, other = world.compute_loss(params), world.compute_loss(moved)
    for part in ("mixed", "generator_teacher"):
        assert abs(one[part] - other[part]) > 1e-3


@BLOCKS
def test_student_sees_clean_images_and_the_mixes(name: str) -> None:
    world = World(name)
    features: list[Tensor] = []
    world.student.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    params = world.make_params()
    world.compute_loss(params)
    assert torch.equal(features[0], world.images)
    assert torch.equal(features[1], world.mix_batch(params).images)
    assert not features[1].requires_grad


# ---------------------------------------------------------------------- gradients


@BLOCKS
def test_block_loss_gives_the_student_no_gradient(name: str) -> None:
    both, resting = (World(name, generator_every=2) for _ in range(2))
    both.compute_loss(both.make_params(step=0))["loss"].backward()
    resting.compute_loss(resting.make_params(step=1))["loss"].backward()
    assert all(gradient is None for gradient in gradients_of(resting.method).values())
    expected = gradients_of(resting.student)
    for weight, gradient in gradients_of(both.student).items():
        assert gradient is not None
        assert gradient.abs().max() > 0, weight
        assert torch.equal(gradient, expected[weight]), weight  # type: ignore[arg-type]
    assert all(p.grad is None for p in both.teacher.parameters())


@BLOCKS
def test_student_loss_gives_the_block_no_gradient(name: str) -> None:
    both, alone = World(name), World(name)
    both.compute_loss()["loss"].backward()
    params = alone.make_params()
    alone.method.block_loss(alone.sources(params), alone.teacher, params)[0].backward()
    assert all(gradient is None for gradient in gradients_of(alone.student).values())
    expected = gradients_of(alone.method)
    for weight, gradient in gradients_of(both.method).items():
        assert gradient is not None
        assert torch.equal(gradient, expected[weight]), weight  # type: ignore[arg-type]
    assert gradients_of(both.method)["generator.query.weight"].abs().max() > 0  # type: ignore[union-attr]


@BLOCKS
@pytest.mark.parametrize(("buffers", "passes"), [("own", 2), ("average", 0)])
def test_updates_of_batch_norm_statistics(name: str, buffers: Any, passes: int) -> None:
    """Two batches update the student's; a clean and a mixed one update the teacher's own."""
    world = World(name)
    world.teacher = Teacher(tiny_classifier(seed=1), buffers).model
    world.compute_loss()
    assert int(world.student.bn2.num_batches_tracked) == 2
    assert int(world.teacher.bn2.num_batches_tracked) == passes


@BLOCKS
def test_taps_are_stages_of_the_network(name: str) -> None:
    model = build_model("resnet18", CLASSES, stem="cifar", width=0.125, image_size=16)
    images, labels = toy_images(6)
    for tap, used, channels in ((None, 3, 32), (1, 1, 8)):
        method = make(name, model, tap=tap)
        assert method.tap == used
        assert method.generator.query.weight.shape[1] == channels * (1 if name == "automix" else 2)
        method.losses(images, labels, model, Teacher(model).model, 0)["loss"].backward()
        assert gradients_of(method)["generator.query.weight"] is not None


# ---------------------------------------------------------------------- what the players learn


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Any]:
    """A student trained on the toy classes with both heads, and its moving average."""
    return trained_networks()


@torch.no_grad()
def judge(method: Any, teacher: Any, params: MixBlockParams) -> dict[str, float]:
    """The teacher's loss on the block's mixes and the masks, computed without the method."""
    images, labels = toy_images(40, seed=2)
    perm, lam = params.generator
    masks = method.generator(teacher.features(images, 1).tap, perm, lam, (16, 16))
    mix = torch.einsum("bnhw,bnchw->bchw", masks, images[perm])
    label = torch.einsum("bn,bnk->bk", lam, soft_targets(labels, CLASSES)[perm])
    first = masks[:, 0]
    return {
        "teacher": cross_entropy(teacher(mix, head="mixed"), label),
        "off": (first.mean() - lam[0, 0]).abs().item(),
        "variance": first.var().item(),
    }


def train_block(
    name: str, networks: tuple[Any, Any], **settings: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Losses before and after 25 steps of the block alone, on one batch of mixes."""
    student, teacher = (copy.deepcopy(network) for network in networks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cls = METHODS[name]
        method = cls(cls.Settings(**settings), num_classes=CLASSES, model=student)
    images, labels = toy_images(40, seed=2)
    targets = soft_targets(labels, CLASSES)
    params = method.make_params(images.shape, rng(11), step=0)
    before = judge(method, teacher, params)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.03)
    for _ in range(25):
        sources = method.prepare(images, targets, student, teacher, params)
        loss, _ = method.block_loss(sources, teacher, params)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, judge(method, teacher, params)


@BLOCKS
def test_the_block_helps_the_teacher(name: str, trained: tuple[Any, Any]) -> None:
    before, after = train_block(name, trained, mask_weight=0)
    assert after["teacher"] < before["teacher"] - 0.02


@BLOCKS
def test_the_masks_loss_draws_their_mean_to_lam(name: str, trained: tuple[Any, Any]) -> None:
    heavy = {"mask_weight": 100, "mask_margin": 0.05, "variance_weight": 0}
    before, after = train_block(name, trained, **heavy)
    assert before["off"] > 0.1
    assert after["off"] < 0.08


@pytest.mark.slow
def test_variance_is_rewarded(trained: tuple[Any, Any]) -> None:
    before, after = train_block("samix", trained, mask_weight=10)
    _, without = train_block("samix", trained, mask_weight=10, variance_weight=0)
    assert after["variance"] > before["variance"] + 0.04
    assert after["variance"] > without["variance"] + 0.03


# ---------------------------------------------------------------------- DADA: the generator


def test_the_generators_shape_is_the_published_one() -> None:
    """For images of 32 pixels and ten classes."""
    generator: Any = ImageGenerator(10, 100, 32)
    shapes = [tuple(p.shape) for p in generator.parameters()]
    assert (8192, 110) in shapes
    assert (522, 256, 5, 5) in shapes
    assert (266, 128, 5, 5) in shapes
    assert (138, 3, 5, 5) in shapes
    assert [norm.bias.shape[0] for norm in generator.norms] == [8192, 256, 128]
    assert generator.size == 32
    images = generator(torch.rand(4, 100), torch.eye(10)[:4], (32, 32))
    assert images.shape == (4, 3, 32, 32)
    assert images.abs().max() <= 1


@pytest.mark.parametrize(
    ("size", "layers", "most"), [(8, 1, 8), (16, 2, 16), (28, 3, 32), (64, 4, 64), (65, 5, 128)]
)
def test_generators_of_other_sizes(size: int, layers: int, most: int) -> None:
    generator = ImageGenerator(3, 5, size)
    assert len(generator.layers) + 1 == layers
    assert generator.size == most
    images = generator(torch.rand(2, 5), torch.eye(3)[:2], (size, size - 1))
    assert images.shape == (2, 3, size, size - 1)


def deconvolved(maps: Tensor, weight: Tensor) -> Tensor:
    """A transposed convolution, 5×5, stride 2, that doubles the side: tap by tap, in float64."""
    batch, _, side, _ = maps.shape
    out = torch.zeros(batch, weight.shape[1], 2 * side + 4, 2 * side + 4, dtype=torch.float64)
    for y in range(side):
        for x in range(side):
            patch = torch.einsum("bc,cdij->bdij", maps[:, :, y, x], weight)
            out[:, :, 2 * y : 2 * y + 5, 2 * x : 2 * x + 5] += patch
    return out[:, :, 2 : 2 + 2 * side, 2 : 2 + 2 * side]


def normed(maps: Tensor, bias: Tensor) -> Tensor:
    mean = maps.mean(dim=(0, 2, 3), keepdim=True)
    var = ((maps - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    return ((maps - mean) / (var + 1e-6).sqrt() + bias.double()[:, None, None]).clamp_min(0)


@torch.no_grad()
def test_the_generator_by_hand() -> None:
    generator: Any = ImageGenerator(3, 5, 16)
    for bias in (*(norm.bias for norm in generator.norms), generator.last.bias):
        nn.init.normal_(bias, generator=rng(7))
    noise, targets = torch.rand(4, 5, generator=rng()), torch.eye(3)[[0, 1, 2, 1]]
    planes = targets.double()[:, :, None, None]
    flat = torch.cat([noise, targets], 1).double() @ generator.stem.weight.double().T
    maps = normed(flat[:, :, None, None], generator.norms[0].bias).reshape(4, 512, 4, 4)
    maps = torch.cat([maps, planes.expand(-1, -1, 4, 4)], 1)
    maps = normed(deconvolved(maps, generator.layers[0].weight.double()), generator.norms[1].bias)
    maps = torch.cat([maps, planes.expand(-1, -1, 8, 8)], 1)
    direction, gain = generator.last.direction.double(), generator.last.gain.double()
    assert torch.equal(gain, torch.ones(1, 3, 1, 1, dtype=torch.float64))
    weight = gain * direction / direction.pow(2).sum((0, 2, 3), keepdim=True).sqrt()
    images = (deconvolved(maps, weight) + generator.last.bias.double()[:, None, None]).tanh()
    made = generator(noise, targets, (16, 16))
    torch.testing.assert_close(made.double(), images, atol=1e-4, rtol=0)


def test_made_images_have_the_range_of_the_pixels() -> None:
    world = World("dada")
    extreme = torch.zeros(12, 3, 16, 16)
    extreme[3, 0, 2, 2], extreme[5, 1, 1, 1] = -4, 7
    low = torch.tensor([-1.0, 0.25, -1])
    world.method.generator.forward = lambda noise, targets, size, split: low[:, None, None].expand(
        len(noise), 3, *size
    )
    mixed = world.method.mix(extreme, world.targets, world.make_params())
    assert mixed.images[0, :, 0, 0].tolist() == pytest.approx([-4, 0.625 * 7, 0])


def test_images_larger_than_the_generators_are_refused() -> None:
    with pytest.raises(UsageError, match="images of up to 32 pixels per side and the batch has 40"):
        make("dada").make_params((4, 3, 32, 40), rng(), 0)


@pytest.mark.slow
def test_the_generator_suits_the_networks_images() -> None:
    for size, most in ((16, 16), (48, 64)):
        model = build_model("resnet18", CLASSES, width=0.125, image_size=size)
        assert make("dada", model).generator.size == most


# ---------------------------------------------------------------------- DADA: the losses, by hand


STAGES: dict[str, tuple[int | None, int, set[str]]] = {
    "both": (None, 0, {"play", "classify"}),
    "first": (3, 2, {"play"}),
    "second": (3, 3, {"classify"}),
}
PLAY = {"source", "source_made", "generator_source", "generator_features"}
CLASSIFY = {"class", "class_made"}


def two_k_by_hand(clean: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """The 2K outputs of the paper: a true k and a made k."""
    return (clean + source) / 2, (clean - source) / 2


@torch.no_grad()
def dada_by_hand(world: World, params: DADAParams) -> dict[str, float]:
    """Every part from the 2K outputs, image by image, from copies of the networks."""
    student, method = copy.deepcopy(world.student), world.method
    low = world.images.amin((0, 2, 3), keepdim=True)
    high = world.images.amax((0, 2, 3), keepdim=True)

    def made(perm: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        targets = world.targets[perm[:, 0]]
        images = method.generator(noise, targets, (16, 16))
        return low + (images + 1) / 2 * (high - low), targets

    def outputs_of(images: Tensor, targets: Tensor) -> tuple[float, float, float, Tensor]:
        """Mean -log P(true), -log P(made) and cross-entropy of the classes; mean features."""
        pooled = student.features(images).pooled
        logits = [student.logits(pooled, head).double() for head in ("clean", "mixed")]
        true, fake = two_k_by_hand(*logits)
        losses = torch.zeros(3, dtype=torch.float64)
        for b, label in enumerate(targets.argmax(dim=1).tolist()):
            pair = torch.stack([true[b, label], fake[b, label]]).softmax(dim=0)
            classes = (true[b] + fake[b]).softmax(dim=0)
            losses -= torch.stack([pair[0], pair[1], classes[label]]).log()
        means = (losses / len(images)).tolist()
        return means[0], means[1], means[2], pooled.double().mean(dim=0)

    real = outputs_of(world.images, world.targets)
    generated = outputs_of(*made(params.perm, params.noise))
    generator_side = outputs_of(*made(params.generator_perm, params.generator_noise))
    return {
        "source": real[0],
        "source_made": generated[1],
        "class": real[2],
        "class_made": generated[2],
        "generator_source": generator_side[0],
        "generator_features": (real[3] - generator_side[3]).abs().mean().item(),
    }


@pytest.mark.parametrize("stage", STAGES)
def test_dadas_loss_is_the_sum_of_the_stages_parts(stage: str) -> None:
    play_steps, step, kinds = STAGES[stage]
    world = World("dada", play_steps=play_steps, feature_weight=0.3)
    params = world.make_params(step)
    expected = dada_by_hand(world, params)
    names = (PLAY if "play" in kinds else set()) | (CLASSIFY if "classify" in kinds else set())
    losses = world.compute_loss(params)
    assert losses.keys() == names | {"loss", "mixture_accuracy"}
    for name in names:
        assert losses[name].item() == pytest.approx(expected[name], abs=2e-5), name
    weights = {"generator_features": 0.3}
    loss = sum(weights.get(name, 1) * expected[name] for name in names)
    assert losses["loss"].item() == pytest.approx(loss, abs=5e-5)


def test_source_loss_reads_the_label_alone() -> None:
    logits = torch.tensor([[2.0, -30, 30], [40, 1, -40]])
    targets = torch.eye(3)[[0, 1]]
    expected = [-F.logsigmoid(torch.tensor([s * 2.0, s * 1.0])).mean().item() for s in (1, -1)]
    assert source_loss(logits, targets, true=True).item() == pytest.approx(expected[0])
    assert source_loss(logits, targets, true=False).item() == pytest.approx(expected[1])


def test_gradient_descent_on_the_two_k_outputs_is_that_on_the_heads() -> None:
    """Up to the factor of 2 in the learning rate that the module docstring states."""
    true, fake = (torch.randn(4, CLASSES, generator=rng(k), requires_grad=True) for k in (0, 1))
    probe = [torch.randn(4, CLASSES, generator=rng(k)) for k in (2, 3)]
    heads = [(true + fake).detach().requires_grad_(), (true - fake).detach().requires_grad_()]

    def loss(clean: Tensor, source: Tensor) -> Tensor:
        return ((clean * probe[0]).sin() + (source * probe[1]).cos()).sum()

    loss(true + fake, true - fake).backward()
    loss(*heads).backward()
    assert true.grad is not None
    assert fake.grad is not None
    steps = [head.grad for head in heads]
    torch.testing.assert_close(true.grad + fake.grad, 2 * steps[0])  # type: ignore[operator]
    torch.testing.assert_close(true.grad - fake.grad, 2 * steps[1])  # type: ignore[operator]


def dada_gradients(world: World, params: DADAParams) -> tuple[Any, Any]:
    world.compute_loss(params)["loss"].backward()
    return gradients_of(world.student), gradients_of(world.method)


def test_each_player_gets_its_own_gradient() -> None:
    """The student's is that of the first four terms, with generated images as constants."""
    world, other = World("dada"), World("dada")
    params = world.make_params()
    student, generator = dada_gradients(world, params)
    sources = other.sources(params)
    pooled = other.student.features(other.images).pooled
    parts = other.method.classifier_losses(sources, other.student, params, pooled, other.targets)
    torch.stack(list(parts.values())).sum().backward()
    assert all(gradient is None for gradient in gradients_of(other.method).values())
    expected = gradients_of(other.student)
    for name, gradient in student.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    alone = World("dada")
    bounds = alone.method.pixel_range.update(alone.images)
    true = alone.student.features(alone.images).pooled.detach()
    losses = alone.method.generator_losses(
        alone.sources(params), alone.student, params, true, bounds
    )
    (losses["generator_source"] + 0.5 * losses["generator_features"]).backward()
    assert all(gradient is None for gradient in gradients_of(alone.student).values())
    expected = gradients_of(alone.method)
    for name, gradient in generator.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_each_stage_trains_its_players() -> None:
    first = World("dada", play_steps=3)
    student, generator = dada_gradients(first, first.make_params(2))
    assert student["heads.mixed.weight"] is not None
    assert student["heads.clean.weight"] is None
    assert generator["generator.stem.weight"].abs().max() > 0
    second = World("dada", play_steps=3)
    student, generator = dada_gradients(second, second.make_params(3))
    assert student["heads.clean.weight"] is not None
    assert student["heads.mixed.weight"] is None
    assert all(gradient is None for gradient in generator.values())  # frozen


def test_dada_plays_for_the_first_third_as_its_authors_do() -> None:
    """100 of 300 epochs; both at every step where the length of training is unknown."""
    method = make("dada")
    assert method.stage(0) == method.stage(10**6) == (True, True)
    method.plan(300, MixSettings(), seed=0)
    assert [method.stage(step) for step in (0, 99, 100, 299)] == [(True, False)] * 2 + [
        (False, True)
    ] * 2
    method.plan(None, MixSettings(prob=0.5), seed=0)
    assert method.stage(0) == (True, True)
    for options, step, stage in (
        ({"play": 0.5}, 149, (True, False)),
        ({"play": 0.5, "play_steps": 20}, 20, (False, True)),
        ({"play": None}, 299, (True, True)),
    ):
        other = make("dada", **options)
        other.plan(300, MixSettings(), seed=0)
        assert other.stage(step) == stage


def test_dada_can_be_pickled() -> None:
    method = make("dada")
    restored = pickle.loads(pickle.dumps(method))
    assert state_of(restored).keys() == state_of(method).keys()
    assert all(
        torch.equal(value, state_of(restored)[name]) for name, value in state_of(method).items()
    )
    noise, targets = torch.rand(2, 200), torch.eye(CLASSES)[:2]
    made, again = (m.generator(noise, targets, (16, 16)) for m in (method, restored))
    assert torch.equal(made, again)


def test_dada_reads_checkpoints_of_the_parametrized_generator() -> None:
    method, other = make("dada"), make("dada")
    for parameter in method.parameters():
        nn.init.normal_(parameter, generator=rng(2))
    old = {
        "gain": "parametrizations.weight.original0",
        "direction": "parametrizations.weight.original1",
    }
    state = {
        ".".join([path, old.get(leaf, leaf)] if path.endswith("last") else [path, leaf]): value
        for name, value in state_of(method).items()
        for path, _, leaf in [name.rpartition(".")]
    }
    assert "generator.last.parametrizations.weight.original0" in state
    other.load_state_dict(state)
    assert all(
        torch.equal(value, state_of(other)[name]) for name, value in state_of(method).items()
    )


def test_statistics_are_those_of_real_images() -> None:
    world, plain = World("dada"), World("dada")
    world.compute_loss()
    plain.student(plain.images)
    for name, value in state_of(plain.student).items():
        assert torch.equal(world.student.state_dict()[name], value), name
    assert world.student.bn1.track_running_stats


def test_features_and_logits_of_a_fixed_network() -> None:
    student = tiny_classifier()
    before = state_of(student)
    images = toy_images(6)[0].requires_grad_()
    pooled, logits = fixed_features(student, images)
    reference = copy.deepcopy(student).features(images).pooled
    torch.testing.assert_close(pooled, reference)
    torch.testing.assert_close(logits, student.heads["mixed"](reference))
    (pooled.sum() + logits.sum()).backward()
    assert images.grad is not None
    assert all(p.grad is None for p in student.parameters())
    assert all(torch.equal(value, before[name]) for name, value in state_of(student).items())


def test_noise_is_uniform_and_fresh() -> None:
    params = make("dada", noise=40).make_params((50, 3, 16, 16), rng(), 0)
    for noise in (params.noise, params.generator_noise):
        assert noise.shape == (50, 40)
        assert scipy.stats.kstest(noise.flatten().numpy(), "uniform").pvalue > 0.001
    assert not torch.equal(params.noise, params.generator_noise)
    assert sorted(params.perm[:, 0].tolist()) == sorted(params.generator_perm[:, 0].tolist())


def dada_player(world: World, player: str, steps: int) -> dict[str, float]:
    """Train one player alone on fixed parameters; the losses on generated images afterwards."""
    weights = world.method if player == "generator" else world.student
    optimizer = torch.optim.Adam(weights.parameters(), lr=1e-2)
    params = world.make_params()
    for _ in range(steps):
        loss = world.compute_loss(params)["loss"]
        optimizer.zero_grad()
        world.student.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.item() for name, value in world.compute_loss(params).items()}


def test_the_generator_learns_to_fool_and_the_classifier_to_detect() -> None:
    before = {name: value.item() for name, value in World("dada").compute_loss().items()}
    fooled = dada_player(World("dada"), "generator", 10)
    assert fooled["generator_source"] < before["generator_source"] - 0.05
    assert fooled["generator_features"] < before["generator_features"]
    assert fooled["source"] == pytest.approx(before["source"], abs=1e-5)
    on_progress = dada_player(World("dada"), "classifier", 10)
    assert (
        on_progress["source"] + on_progress["source_made"]
        < before["source"] + before["source_made"] - 0.2
    )
    assert on_progress["class"] < before["class"] - 0.1
    assert (
        on_progress["generator_source"] > before["generator_source"] + 0.04
    )  # made images are seen through


# ---------------------------------------------------------------------- ME-ADA


def test_pixel_range_updates_its_buffers() -> None:
    pixel_range = PixelRange()
    one, other = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    one[0, 0, 1, 1], other[1, 0, 0, 0], other[0, 2, 3, 3] = 5, -2, 1
    assert [bound.flatten().tolist() for bound in pixel_range.update(one)] == [[0, 0, 0], [5, 0, 0]]
    low, high = pixel_range(other)
    assert [low.flatten().tolist(), high.flatten().tolist()] == [[-2, 0, 0], [5, 0, 1]]
    assert pixel_range.low.flatten().tolist() == [0, 0, 0]
    restored = PixelRange()
    restored.load_state_dict(pixel_range.state_dict())
    assert torch.equal(restored.high, pixel_range.high)


def objective_by_hand(
    student: Any, image: Tensor, target: Tensor, clean: Tensor, eta: float, gamma: float
) -> Tensor:
    """The objective of a single image, with a network in evaluation mode."""
    pooled = student.features(image[None]).pooled[0]
    anchor = student.features(clean[None]).pooled[0].detach()
    p = student.logits(pooled).softmax(dim=0)
    loss, entropy = -(target * p.log()).sum(), -(p * p.log()).sum()
    value: Tensor = loss + eta * entropy - gamma * ((pooled - anchor) ** 2).sum() / len(pooled)
    return value


def ascended_by_hand(world: World, image: Tensor, target: Tensor) -> Tensor:
    s = world.method.settings
    student = copy.deepcopy(world.student).double().eval()
    clean, moved = image.double(), image.double()
    for _ in range(s.ascents):
        moved = moved.detach().requires_grad_()
        value = objective_by_hand(
            student, moved, target.double(), clean, s.entropy_weight, s.distance_weight
        )
        (slope,) = torch.autograd.grad(value, moved)
        moved = moved + s.step_size * slope
    low, high = (bound[0] for bound in world.method.pixel_range(world.images))
    return torch.minimum(torch.maximum(moved.detach(), low.double()), high.double())


@pytest.mark.parametrize("settings", [{}, {"entropy_weight": 0}, {"distance_weight": 30.0}])
def test_copies_image_by_image(settings: dict[str, Any]) -> None:
    world = World("meada", images=5, ascents=4, **settings)
    world.student.train()
    world.student(world.images)  # statistics unlike those at the start
    world.targets = torch.rand(5, CLASSES, generator=rng(2)).softmax(dim=1)
    params = world.make_params()
    sample = world.mix_batch(params)
    for b, (row,) in enumerate(params.perm.tolist()):
        expected = ascended_by_hand(world, world.images[row], world.targets[row])
        torch.testing.assert_close(sample.images[b].double(), expected, atol=2e-4, rtol=0)
        assert torch.equal(sample.targets[b], world.targets[row])
        assert (sample.images[b] - world.images[row]).abs().max() > 0.001


def test_objective_by_hand() -> None:
    student = tiny_classifier().eval()
    images, labels = toy_images(4)
    targets, clean = soft_targets(labels, CLASSES), toy_images(4, seed=1)[0]
    anchor = student.features(clean).pooled
    values = objective(student, images, targets, anchor, 2.0, 3.0)
    expected = [
        objective_by_hand(student, *one, 2.0, 3.0).item()
        for one in zip(images, targets, clean, strict=True)
    ]
    assert values.tolist() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def seen_by(student: Any, images: Tensor, targets: Tensor) -> dict[str, float]:
    log_p = student(images).log_softmax(dim=1)
    return {
        "loss": -(targets * log_p).sum(dim=1).mean().item(),
        "entropy": -(log_p.exp() * log_p).sum(dim=1).mean().item(),
    }


def test_copies_are_harder_after_more_ascent_steps(trained: tuple[Any, Any]) -> None:
    student = copy.deepcopy(trained[0]).eval()
    images, labels = toy_images(20, seed=2)
    targets = soft_targets(labels, CLASSES)
    course = []
    for ascents in range(5):
        method = make("meada", student, ascents=ascents + 1, step_size=0.05, entropy_weight=1.0)
        moved = method.ascend(student, images, targets, method.pixel_range(images))
        course.append(seen_by(student, moved, targets)["loss"])
    course = [seen_by(student, images, targets)["loss"], *course]
    assert all(after > before for before, after in itertools.pairwise(course))
    assert course[-1] > course[0] + 0.05


def test_entropy_rises_with_its_weight(trained: tuple[Any, Any]) -> None:
    student = copy.deepcopy(trained[0]).eval()
    images, labels = toy_images(20, seed=2)
    targets = soft_targets(labels, CLASSES)
    entropies = [seen_by(student, images, targets)["entropy"]]
    for weight in (0.0, 1.0, 10.0):
        method = make("meada", student, ascents=5, step_size=0.1, entropy_weight=weight)
        moved = method.ascend(student, images, targets, method.pixel_range(images))
        entropies.append(seen_by(student, moved, targets)["entropy"])
    clean, without, some, much = entropies
    assert much > some > without
    assert much > clean + 0.2


def test_the_distance_term_keeps_copies_near_their_images(trained: tuple[Any, Any]) -> None:
    student = copy.deepcopy(trained[0]).eval()
    images, labels = toy_images(20, seed=2)
    distances = []
    for weight in (0.0, 20.0):
        method = make("meada", student, ascents=8, step_size=0.1, distance_weight=weight)
        moved = method.ascend(
            student, images, soft_targets(labels, CLASSES), method.pixel_range(images)
        )
        features = [student.features(x).pooled for x in (moved, images)]
        distances.append((features[0] - features[1]).square().mean().item())
    assert distances[1] < 0.7 * distances[0]


def test_the_ascent_does_not_change_the_student() -> None:
    student = tiny_classifier(dropout=0.5)
    student.bn1.eval()  # a mode of its own
    modes = [module.training for module in student.modules()]
    before = state_of(student)
    method = make("meada", student)
    images, labels = toy_images(6)
    targets = soft_targets(labels, CLASSES)
    moved = [method.ascend(student, images, targets, method.pixel_range(images)) for _ in range(2)]
    assert torch.equal(*moved)  # no dropout
    assert not moved[0].requires_grad
    assert [module.training for module in student.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in state_of(student).items())
    assert all(p.grad is None for p in student.parameters())


def test_copies_stay_within_the_range_of_the_pixels() -> None:
    world = World("meada", step_size=1e4)
    sample = world.mix_batch(world.make_params())
    low, high = world.images.amin((0, 2, 3)), world.images.amax((0, 2, 3))
    assert torch.equal(sample.images.amin((0, 2, 3)), low)
    assert torch.equal(sample.images.amax((0, 2, 3)), high)


@pytest.mark.parametrize(("every", "copies"), [(1, 12), (3, 4), (5, 3), (20, 1)])
def test_meadas_loss_is_the_mean_over_images_and_copies(every: int, copies: int) -> None:
    world = World("meada", every=every, ascents=2)
    params = world.make_params()
    sample = world.mix_batch(params)
    some = [sample.images[::every], sample.targets[::every]]
    assert len(some[0]) == copies
    student = copy.deepcopy(world.student)
    logits = student(torch.cat([world.images, some[0]]))
    losses = world.compute_loss(params)
    expected = cross_entropy(logits, torch.cat([world.targets, some[1]]))
    assert losses["loss"].item() == pytest.approx(expected, abs=1e-5)
    assert losses["clean"].item() == pytest.approx(
        cross_entropy(logits[:12], world.targets), abs=1e-5
    )
    assert losses["adversarial"].item() == pytest.approx(
        cross_entropy(logits[12:], some[1]), abs=1e-5
    )
    assert losses["adversarial"] > losses["clean"]
    assert int(world.student.bn1.num_batches_tracked) == 1


def test_before_start_step_meada_is_vanilla() -> None:
    world = World("meada", start_step=4)
    assert [world.make_params(step).copies for step in (3, 4)] == [False, True]
    losses = world.compute_loss(world.make_params(3))
    logits = copy.deepcopy(world.student).train()(world.images)
    assert losses["loss"].item() == pytest.approx(cross_entropy(logits, world.targets), abs=1e-5)
    assert "adversarial" not in losses


def test_which_images_are_copied_changes() -> None:
    method = make("meada")
    firsts = [method.params_for_step((40, 3, 16, 16), step).perm[:, 0] for step in range(2)]
    assert sorted(firsts[0].tolist()) == list(range(40))
    assert not torch.equal(*firsts)


def test_it_learns_on_transformers_too() -> None:
    """The gradient with respect to the images passes through attention too."""
    options = {"patch_size": 4, "depth": 2}
    model = build_model(
        "vit_tiny_patch16_224", CLASSES, width=0.25, image_size=16, drop_path=0.3, options=options
    )
    images, labels = toy_images(6)
    method = make("meada", model, ascents=2)
    losses = method.losses(images, labels, model, Teacher(model).model, 0)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    sample = method.mix_batch(
        images, soft_targets(labels, CLASSES), model, None, method.params_for_step(images.shape, 0)
    )
    assert (sample.images - images[sample.perm[:, 0]]).abs().max() > 0


# ---------------------------------------------------------------------- Swin's merged map


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adautomix", "automix", "samix"])
def test_the_map_after_patch_merging_feeds_the_generator(name: str) -> None:
    student = build_model("swin_tiny_patch4_window7_224", 5, width=0.125, image_size=64, seed=0)
    student.eval()  # without stochastic depth
    settings = {"merged_tap": True, "lam_margin": 0}
    method = build_method(name, settings, num_classes=5, model=student)
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    inputs: list[Tensor] = []
    # The input of the last stage's first block, which is what the merging puts out.
    student.backbone.layers[3].blocks[0].register_forward_pre_hook(
        lambda module, arguments: inputs.append(arguments[0])
    )
    student(images)
    wanted = F.layer_norm(inputs[0], inputs[0].shape[-1:]).movedim(-1, 1)
    params = method.params_for_step(images.shape, 0)
    sources = method.prepare(images, labels, student, student, params)
    channels, height, width = student.tap_shape(3)
    assert sources.features["features"].shape == (4, 2 * channels, height // 2, width // 2)
    torch.testing.assert_close(sources.features["features"], wanted)
    losses = method.losses(images, labels, student, student, 0)
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_networks_without_patch_merging() -> None:
    student = build_model("resnet18", 5, stem="cifar", width=0.125, image_size=32)
    with pytest.raises(UsageError, match="resnet18 merges no patches behind stage 3"):
        build_method("adautomix", {"merged_tap": True}, num_classes=5, model=student)
