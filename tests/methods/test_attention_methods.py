"""Methods guided by a vision transformer's attention, recomputed sample by sample."""

import copy
import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from adautomix.ema import Teacher
from adautomix.errors import UsageError
from adautomix.methods import tokenmixup
from adautomix.methods.base import MixInputs
from adautomix.methods.base_attention import (
    AttentionMethod,
    eval_with_attention,
    forward_with_attention,
    fraction_inside,
    patches_to_pixels,
    pixels_to_patches,
)
from adautomix.methods.mixpro import MixPro, MixProParams, choose_cells, draw_cells
from adautomix.methods.smmix import SMMix, SMMixParams, divergence, find_squares
from adautomix.methods.tokenmix import TokenMix, TokenMixParams, draw_blocks, partner_tokens
from adautomix.methods.tokenmixup import TokenMixup, assign, exchange, find_swap, gains
from adautomix.methods.transmix import TransMix, TransMixParams
from adautomix.mixing.boxes import box_mask
from adautomix.mixing.ops import Mixed, soft_targets
from adautomix.models import Classifier, build_model

CLASSES = 6
SIZE, PATCH, SIDE = 32, 8, 4
VIT = "vit_tiny_patch16_224"

ALL: dict[str, type[AttentionMethod]] = {
    method.name: method for method in (TransMix, MixPro, TokenMix, SMMix, TokenMixup)
}
EVERY = pytest.mark.parametrize("name", ALL)
# Settings with which each method mixes at every step, and most images count as easy.
MIXING: dict[str, dict[str, Any]] = {
    **{name: {"switch": 1.0} for name in ALL},
    "tokenmixup": {"tau": 1.0, "rho": 1e-4},
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vit(name: str = VIT, seed: int = 1, **options: Any) -> Classifier:
    """A transformer of width 48 with 4×4 patches whose attention is far from uniform."""
    usual: dict[str, Any] = {"patch_size": PATCH, "depth": 3}
    return copy.deepcopy(built_vit(name, seed, tuple((usual | options).items())))


@functools.cache
def built_vit(name: str, seed: int, options: tuple[tuple[str, Any], ...]) -> Classifier:
    net = build_model(
        name,
        CLASSES,
        width=0.25,
        image_size=SIZE,
        heads=("clean",),
        options=dict(options),
        seed=seed,
    )
    with torch.no_grad():
        for block in net.backbone.blocks:
            block.attn.qkv.weight.normal_(std=0.5, generator=rng(seed))
        net.get_parameter("heads.clean.weight").normal_(std=0.3, generator=rng(seed))
    return net


def batch(count: int = 6, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Random images, and a label that no other image has (of up to six)."""
    images = torch.rand(count, 3, size, size, generator=rng(1))
    return images, soft_targets(torch.arange(count) % CLASSES, CLASSES)


def soft_batch(count: int = 6) -> tuple[Tensor, Tensor]:
    images, _ = batch(count)
    return images, torch.rand(count, CLASSES, generator=rng(2)).softmax(dim=1)


def make(name: str, model: nn.Module | None, **settings: Any) -> Any:
    cls = ALL[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return cls(cls.Settings(**settings), num_classes=CLASSES, seed=3, model=model)


class Bench:
    """A method, its networks and a batch."""

    def __init__(
        self, name: str, count: int = 6, *, soft: bool = False, depth: int = 3, **settings: Any
    ) -> None:
        self.student = vit(depth=depth).eval()
        self.teacher: Any = Teacher(vit(seed=2, depth=depth)).model
        self.method: Any = make(name, self.student, **(MIXING[name] | settings))
        self.images, self.targets = soft_batch(count) if soft else batch(count)

    def make_params(self, step: int = 0) -> Any:
        return self.method.params_for_step(self.images.shape, step)

    def sources(self, params: Any) -> MixInputs:
        return self.method.prepare(  # type: ignore[no-any-return]
            self.images, self.targets, self.student, self.teacher, params
        )

    def mix_batch(self, params: Any) -> Mixed:
        return self.method.mix_batch(  # type: ignore[no-any-return]
            self.images, self.targets, self.student, self.teacher, params
        )

    def compute_loss(self, params: Any) -> dict[str, Tensor]:
        return self.method.compute_loss(  # type: ignore[no-any-return]
            self.sources(params), self.student, self.teacher, params
        )


def same_params(one: Any, other: Any) -> bool:
    values = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in values)


def cross_entropy_by_hand(logits: Tensor, targets: Tensor) -> float:
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    total = 0.0
    for row, label in rows:
        normalizer = math.log(sum(math.exp(value) for value in row))
        total += sum(share * (normalizer - value) for value, share in zip(row, label, strict=True))
    return total / len(logits)


# ---------------------------------------------------------------------- reading attention

NETS: dict[str, Callable[[], Classifier]] = {
    "class token": vit,
    "registers": lambda: vit(reg_tokens=2),
    "distilled": lambda: vit("deit_tiny_distilled_patch16_224"),
    "mean of patches": lambda: vit(global_pool="avg", class_token=False),
    "mean beside a class token": lambda: vit(global_pool="avg"),
    "normalized queries": lambda: vit(qk_norm=True, init_values=0.5),
    "no bias": lambda: vit(qkv_bias=False),
    "any image size": lambda: vit(dynamic_img_size=True),
}
each_net = pytest.mark.parametrize("kind", NETS)


def timms_attention(net: Classifier, images: Tensor, block: int) -> Tensor:
    """Attention of a block computed by timm's unfused code, `[B, heads, T, T]`."""
    weights: list[Tensor] = []
    attention = net.backbone.blocks[block - 1].attn
    attention.fused_attn = False
    hook = attention.attn_drop.register_forward_hook(lambda _m, _i, out: weights.append(out))
    net(images)
    hook.remove()
    attention.fused_attn = True
    return weights[0]


@each_net
def test_attention_is_timms(kind: str) -> None:
    net = NETS[kind]().eval()
    images, _ = batch(4)
    blocks = net.blocks()
    prefix = net.backbone.num_prefix_tokens
    for block in range(1, 4):
        theirs = timms_attention(net, images, block).detach()[:, :, :, prefix:]
        tokens = blocks.forward_to(images, block)
        rows = theirs[:, :, prefix:].mean(dim=2)
        by_class = rows if kind.startswith("mean") else theirs[:, :, 0]
        torch.testing.assert_close(blocks.attention(tokens, block, "patches"), rows)
        torch.testing.assert_close(blocks.attention(tokens, block), by_class)
        assert blocks.attention(tokens, block).shape == (4, 3, SIDE * SIDE)
        assert not blocks.attention(tokens, block).requires_grad
        assert by_class.mean(dim=1).std(dim=1).max() > 0.01, "otherwise nothing is tested"


@each_net
def test_entering_and_leaving_at_a_block_is_a_forward_pass(kind: str) -> None:
    net = NETS[kind]().eval()
    images, _ = batch(4)
    expected = net.features(images).pooled
    last = net.backbone.forward_features(images)[:, net.backbone.num_prefix_tokens :]
    blocks = net.blocks()
    for block in range(1, blocks.depth + 1):
        pooled, patches = blocks.forward_from(blocks.forward_to(images, block), block)
        torch.testing.assert_close(pooled, expected)
        torch.testing.assert_close(patches, net.backbone.fc_norm(last))
    features = forward_with_attention(net, images)
    torch.testing.assert_close(features.pooled, expected)
    torch.testing.assert_close(features.patches, net.backbone.fc_norm(last))


def test_attention_under_autocast_is_close() -> None:
    net, (images, _) = vit().eval(), batch(4)
    full = forward_with_attention(net, images).attention
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = forward_with_attention(net, images).attention
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.02, rtol=0)


def test_reading_attention_changes_nothing() -> None:
    net, (images, _) = vit(drop_path_rate=0.5, pos_drop_rate=0.5).train(), batch(4)
    net.backbone.blocks[1].eval()
    modes = [module.training for module in net.modules()]
    before = torch.get_rng_state()
    one, other = eval_with_attention(net, images), eval_with_attention(net, images)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.attention, other.attention)
    assert not one.pooled.requires_grad
    assert modes == [module.training for module in net.modules()]


@EVERY
@pytest.mark.parametrize(
    "network",
    [
        lambda: build_model("resnet18", CLASSES, stem="cifar", width=0.125, image_size=SIZE),
        lambda: build_model("swin_tiny_patch4_window7_224", CLASSES, width=0.25, image_size=SIZE),
        lambda: vit(patch_drop_rate=0.25),
    ],
)
def test_networks_without_such_attention_are_refused(
    name: str, network: Callable[[], Classifier]
) -> None:
    with pytest.raises(UsageError, match=r"no attention between all patches.*deit_small") as raised:
        make(name, network())
    assert "\n" not in str(raised.value)


@EVERY
def test_other_networks_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} looks inside.*build_model"):
        make(name, nn.Linear(3, 3))
    with pytest.raises(UsageError, match=rf"{name} looks inside.*build_model"):
        make(name, None)


@EVERY
def test_images_without_whole_patches_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"whole patches of 8×8 pixels.*not 36×32"):
        make(name, vit()).make_params((4, 3, 36, 32), rng(), 0)


def test_masks_of_patches_and_of_pixels() -> None:
    patches = torch.rand(3, 2, 4, generator=rng()) < 0.5
    pixels = patches_to_pixels(patches, (3, 5))
    assert pixels.shape == (3, 6, 20)
    for m in range(3):
        for y in range(6):
            for x in range(20):
                assert pixels[m, y, x] == patches[m, y // 3, x // 5]
    assert torch.equal(pixels_to_patches(pixels, (3, 5)), patches.flatten(1))
    by_torch = F.interpolate(
        torch.rand(2, 1, 32, 32, generator=rng(1)), size=(4, 4), mode="nearest"
    )
    large = torch.rand(2, 1, 32, 32, generator=rng(1))[:, 0]
    assert torch.equal(pixels_to_patches(large, (8, 8)), by_torch.flatten(1))


def test_fraction_inside_by_hand() -> None:
    attention = torch.tensor([[0.1, 0.2, 0.1], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]])
    inside = torch.tensor([[True, False, True], [True, False, False], [True, True, True]])
    assert fraction_inside(attention, inside).tolist() == pytest.approx([0.5, 0.0, 0.0])


# ------------------------------------------------------------------- properties of all five methods


@EVERY
def test_parameters_depend_on_seed_and_step_alone(name: str) -> None:
    one, other = Bench(name, 12), Bench(name, 12)
    params = one.make_params(4)
    torch.rand(3)  # somebody else draws
    before = torch.get_rng_state()
    assert same_params(params, other.make_params(4))
    assert torch.equal(before, torch.get_rng_state())
    if name != "tokenmixup":  # which draws nothing
        assert not same_params(params, one.make_params(6))
        one.method.seed = 4
        assert not same_params(params, one.make_params(4))


@EVERY
def test_features_of_an_image_do_not_depend_on_the_batch(name: str) -> None:
    bench = Bench(name)
    params = bench.make_params()
    bench.student.train()
    whole = bench.sources(params).features
    bench.images, bench.targets = bench.images[2:4], bench.targets[2:4]
    for key, value in bench.sources(params).features.items():
        assert len(whole[key]) == 6
        assert not value.requires_grad
        torch.testing.assert_close(value, whole[key][2:4])
    assert bool(whole) == (name in ("tokenmix", "smmix", "tokenmixup"))


@pytest.mark.parametrize("name", ["tokenmix", "smmix", "tokenmixup"])
def test_dropout_is_off_while_extracting_features(name: str) -> None:
    guide: dict[str, Any] = {"guide": "student"} if name == "tokenmix" else {}
    bench = Bench(name, **guide)
    params = bench.make_params()
    calm = bench.sources(params).features
    bench.student = vit(drop_path_rate=0.8, proj_drop_rate=0.5).train()
    for key, value in bench.sources(params).features.items():
        torch.testing.assert_close(value, calm[key])


@EVERY
def test_a_part_of_the_mixes_equals_rows_of_all(name: str) -> None:
    bench = Bench(name, per_sample=True) if name != "tokenmixup" else Bench(name)
    params = bench.make_params()
    whole, some = bench.mix_batch(params), bench.mix_batch(params.rows(slice(1, 4)))
    for name in ("images", "targets", "lam", "perm", "masks"):
        value, part = getattr(whole, name), getattr(some, name)
        torch.testing.assert_close(part, value[1:4], msg=name)


@EVERY
def test_the_loss_of_all_is_the_mean_over_parts(name: str) -> None:
    bench = Bench(name)
    params = bench.make_params()
    sources = bench.sources(params)
    whole = bench.method.compute_loss(sources, bench.student, bench.teacher, params)
    parts = [
        bench.method.compute_loss(
            dataclasses.replace(sources, own=own), bench.student, bench.teacher, params.rows(own)
        )
        for own in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    for key, value in whole.items():
        mean = sum(part[key] for part in parts) / 3
        torch.testing.assert_close(mean, value, msg=key)
    gradients = gradients_of_loss(bench, whole["loss"])
    of_parts = gradients_of_loss(bench, sum(part["loss"] for part in parts) / 3)
    assert gradients
    for key, gradient in gradients.items():
        torch.testing.assert_close(of_parts[key], gradient, atol=1e-5, rtol=1e-3, msg=key)


def gradients_of_loss(bench: Bench, loss: Any) -> dict[str, Tensor]:
    both = nn.ModuleList([bench.student, bench.method])
    both.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in both.named_parameters() if p.grad is not None}


@EVERY
@pytest.mark.parametrize("soft", [False, True])
def test_labels_follow_the_sources(name: str, soft: bool) -> None:
    bench = Bench(name, soft=soft)
    for step in range(4):
        mixed = bench.mix_batch(bench.make_params(step))
        labels = torch.einsum("bn,bnk->bk", mixed.lam, bench.targets[mixed.perm])
        torch.testing.assert_close(mixed.targets, labels)
        torch.testing.assert_close(mixed.lam.sum(dim=1), torch.ones(6))
        torch.testing.assert_close(mixed.targets.sum(dim=1), torch.ones(6))
        assert mixed.lam.min() >= 0
        assert mixed.masks is not None
        assert torch.equal(mixed.masks.sum(dim=1), torch.ones(6, SIZE, SIZE))


@EVERY
def test_weights_belong_to_their_own_mix(name: str) -> None:
    """The loss is not the mean λ times the mean cross-entropy."""
    bench = Bench(name, per_sample=True) if name == "smmix" else Bench(name)
    mixed = bench.mix_batch(bench.make_params(2))
    assert len({round(share, 5) for share in mixed.lam[:, 1].tolist()}) > 1
    logits = bench.student(mixed.images)
    lam = mixed.lam.roll(1, dims=0)
    others = torch.einsum("bn,bnk->bk", lam, bench.targets[mixed.perm])
    right = bench.method.cross_entropy(logits, mixed.targets).item()
    assert right != pytest.approx(bench.method.cross_entropy(logits, others).item(), rel=1e-4)
    torch.testing.assert_close(others.sum(), mixed.targets.sum())


@EVERY
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_small_and_odd_batches(name: str, count: int) -> None:
    bench = Bench(name, count)
    params = bench.make_params()
    losses = bench.compute_loss(params)
    losses["loss"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    mixed = bench.mix_batch(params)
    assert mixed.images.shape == bench.images.shape
    if count == 1:
        torch.testing.assert_close(mixed.targets, bench.targets)
        if name != "smmix":  # which moves what it takes
            assert torch.equal(mixed.images, bench.images)


@EVERY
def test_inputs_and_memory_format_are_kept(name: str) -> None:
    bench = Bench(name, count=5)
    for layout in (torch.contiguous_format, torch.channels_last):
        bench.images = bench.images.contiguous(memory_format=layout)
        kept = bench.images.clone(), bench.targets.clone()
        mixed = bench.mix_batch(bench.make_params())
        assert mixed.images.is_contiguous(memory_format=layout)
        mixed.images.mul_(2)
        mixed.targets.mul_(2)
        assert torch.equal(bench.images, kept[0])
        assert torch.equal(bench.targets, kept[1])


@EVERY
def test_bfloat16_images(name: str) -> None:
    bench = Bench(name)
    params = bench.make_params()
    sources = bench.sources(params)
    full = bench.method.mix(bench.images, bench.targets, params, **sources.features)
    half = bench.method.mix(bench.images.bfloat16(), bench.targets, params, **sources.features)
    assert half.images.dtype == torch.bfloat16
    torch.testing.assert_close(half.images.float(), full.images, atol=0.01, rtol=0)
    assert torch.equal(half.targets, full.targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bench.compute_loss(params)["loss"].dtype == torch.float32


@EVERY
def test_label_smoothing_and_multi_label_rows(name: str) -> None:
    bench = Bench(name)
    params = bench.make_params()
    plain = bench.compute_loss(params)["loss"].item()
    bench.method.label_smoothing = 0.1
    assert bench.compute_loss(params)["loss"].item() != pytest.approx(plain, rel=1e-4)
    bench.targets = (torch.rand(6, CLASSES, generator=rng(8)) < 0.5).float()
    assert torch.isfinite(bench.compute_loss(params)["loss"])


@EVERY
def test_only_the_student_and_the_method_learn(name: str) -> None:
    bench = Bench(name)
    bench.compute_loss(bench.make_params())["loss"].backward()
    assert all(p.grad is None for p in bench.teacher.parameters())
    assert all(p.grad is not None for p in bench.student.parameters())
    learned = [p.grad for p in bench.method.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in learned)
    assert bool(learned) == (name in ("smmix", "tokenmixup"))


@pytest.mark.slow
@EVERY
def test_mixing_can_be_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenmixup, "BIDS", 3)  # tracing takes as long as there are rounds
    monkeypatch.setattr(tokenmixup, "EXCHANGES", 2)
    bench = Bench(name, depth=1)
    params = bench.make_params()
    features = bench.sources(params).features
    mix: Any = torch.compile(bench.method.mix, fullgraph=True, backend="eager")
    mixed = mix(bench.images, bench.targets, params, **features)
    expected = bench.method.mix(bench.images, bench.targets, params, **features)
    assert torch.equal(mixed.images, expected.images)
    assert torch.equal(mixed.targets, expected.targets)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transmix", "tokenmixup"])
def test_features_and_loss_can_be_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenmixup, "BIDS", 3)
    monkeypatch.setattr(tokenmixup, "EXCHANGES", 2)
    bench = Bench(name, depth=1)
    params = bench.make_params()
    bench.student.train()
    prepare: Any = torch.compile(bench.method.prepare, backend="eager")
    sources = prepare(bench.images, bench.targets, bench.student, bench.teacher, params)
    assert all(module.training for module in bench.student.modules())
    for key, value in bench.sources(params).features.items():
        torch.testing.assert_close(sources.features[key], value)
    compute_loss: Any = torch.compile(bench.method.compute_loss, fullgraph=True, backend="eager")
    losses = compute_loss(sources, bench.student, bench.teacher, params)
    torch.testing.assert_close(losses["loss"], bench.compute_loss(params)["loss"])


ALTERNATING = [name for name in ALL if name != "tokenmixup"]


@pytest.mark.parametrize("name", ALTERNATING)
def test_steps_alternate_with_mixup(name: str) -> None:
    bench = Bench(name, switch=0.7)
    draws = [bench.make_params(step) for step in range(400)]
    assert sum(params.plain for params in draws) / 400 == pytest.approx(0.3, abs=0.07)
    lam = torch.stack([params.lam[0, 0] for params in draws])
    assert scipy.stats.kstest(lam.numpy(), scipy.stats.beta(0.8, 0.8).cdf).pvalue > 0.001
    always = Bench(name, switch=1.0)
    assert not any(always.make_params(step).plain for step in range(50))


@pytest.mark.parametrize("name", ALTERNATING)
def test_a_step_of_mixup_is_mixup(name: str) -> None:
    never: dict[str, Any] = {"cutmix_share": 0.0} if name == "mixpro" else {}
    bench = Bench(name, switch=0.0, **never)
    params = bench.make_params()
    assert params.plain
    assert bench.sources(params).features == {}
    mixed = bench.mix_batch(params)
    lam = float(params.lam[0, 0])
    for b in range(6):
        partner = int(params.perm[b, 1])
        image = lam * bench.images[b] + (1 - lam) * bench.images[partner]
        torch.testing.assert_close(mixed.images[b], image)
        label = lam * bench.targets[b] + (1 - lam) * bench.targets[partner]
        torch.testing.assert_close(mixed.targets[b], label)
    expected = cross_entropy_by_hand(bench.student(mixed.images), mixed.targets)
    assert bench.compute_loss(params)["loss"].item() == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------- TransMix

BOXES = [[0, 8, 0, 8], [3, 21, 9, 32], [0, 32, 0, 32], [5, 5, 1, 7], [8, 24, 0, 16], [9, 15, 9, 15]]


def transmix_params(boxes: list[list[int]]) -> TransMixParams:
    perm = torch.tensor([[b, (b + 1) % len(boxes)] for b in range(len(boxes))])
    lam = torch.full((len(boxes), 2), 0.5)
    return TransMixParams(perm, lam, False, torch.tensor(boxes), shared=False)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_transmix_sample_by_sample(weight: float) -> None:
    bench = Bench("transmix", attention_weight=weight)
    params = transmix_params(BOXES)
    mixed = bench.mix_batch(params)
    attention = timms_attention(bench.student, mixed.images, 3).detach().mean(dim=1)[:, 0, 1:]
    for b, (top, bottom, left, right) in enumerate(BOXES):
        partner = (b + 1) % 6
        image = bench.images[b].clone()
        image[:, top:bottom, left:right] = bench.images[partner][:, top:bottom, left:right]
        assert torch.equal(mixed.images[b], image)
        area = (bottom - top) * (right - left) / SIZE**2
        attended = total = 0.0
        for p, share in enumerate(attention[b].tolist()):
            y, x = PATCH * (p // SIDE), PATCH * (p % SIDE)
            attended += share * (top <= y < bottom and left <= x < right)
            total += share
        second = (1 - weight) * area + weight * attended / total
        assert mixed.lam[b].tolist() == pytest.approx([1 - second, second], abs=1e-5)
        label = [0.0] * CLASSES
        label[b] += 1 - second
        label[partner] += second
        assert mixed.targets[b].tolist() == pytest.approx(label, abs=1e-5)
    expected = cross_entropy_by_hand(bench.student(mixed.images), mixed.targets)
    assert bench.compute_loss(params)["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_uniform_attention_gives_the_area() -> None:
    bench = Bench("transmix")
    params = transmix_params([[0, 8, 0, 8], [8, 24, 16, 32]])
    images, targets = bench.images[:2], bench.targets[:2]
    mixed = bench.method.mix(images, targets, params)
    uniform = torch.full((2, SIDE * SIDE), 0.03)
    again = bench.method.relabel(mixed, targets, uniform, None)
    torch.testing.assert_close(again.lam, mixed.lam)
    assert again.lam[:, 1].tolist() == pytest.approx([1 / 16, 4 / 16])


@pytest.mark.parametrize("name", ["transmix", "mixpro"])
def test_labels_have_no_gradient_and_cost_no_forward_pass(name: str) -> None:
    bench = Bench(name)
    params = bench.make_params(2)
    runs: list[int] = []
    bench.student.backbone.patch_embed.register_forward_hook(lambda *_: runs.append(1))
    gradients = gradients_of_loss(bench, bench.compute_loss(params)["loss"])
    assert len(runs) == 1
    mixed = bench.mix_batch(params)
    fixed = bench.method.cross_entropy(bench.student(mixed.images), mixed.targets)
    expected = gradients_of_loss(bench, fixed)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[key], msg=key)


def test_transmix_boxes_are_those_of_cutmix() -> None:
    bench = Bench("transmix", alpha=0.3)
    shared = bench.make_params(3)
    assert shared.shared
    assert len(shared.box.unique(dim=0)) == 1
    each = Bench("transmix", per_sample=True).make_params(3)
    assert len(each.box.unique(dim=0)) > 3
    assert not each.shared
    mixed = bench.method.mix(bench.images, bench.targets, shared)
    inside = box_mask(shared.box, SIZE, SIZE).float()
    assert torch.equal(mixed.masks[:, 1], inside)
    torch.testing.assert_close(mixed.lam[:, 1], inside.mean(dim=(1, 2)))
    assert Bench("transmix").method.settings.switch == 1.0
    assert TransMix.Settings().switch == 0.8


# ---------------------------------------------------------------------- MixPro


def mixpro_params(partner: Tensor, perm: Tensor) -> MixProParams:
    count = len(perm)
    half, box = torch.full((count, 2), 0.5), torch.zeros(count, 4, dtype=torch.long)
    return MixProParams(perm, half, False, partner, box, boxed=False)


@pytest.mark.parametrize("cells", [2, 4])
def test_mixpro_sample_by_sample(cells: int) -> None:
    bench = Bench("mixpro", cells=cells)
    bench.method.label_smoothing = 0.1
    params = bench.make_params(5)
    mixed = bench.mix_batch(params)
    logits = bench.student(mixed.images).detach()
    attention = timms_attention(bench.student, mixed.images, 3).detach().mean(dim=1)[:, 0, 1:]
    assert params.partner.shape == (6, cells, cells)
    for b in range(6):
        partner, patches = int(params.perm[b, 1]), torch.zeros(SIDE, SIDE)
        for y in range(SIZE):
            for x in range(SIZE):
                second = bool(params.partner[b, y * cells // SIZE, x * cells // SIZE])
                source = bench.images[partner if second else b]
                assert torch.equal(mixed.images[b, :, y, x], source[:, y, x])
                patches[y // PATCH, x // PATCH] = second
        area = 1 - params.partner[b].double().mean().item()
        own = (attention[b] * (1 - patches.flatten())).sum() / attention[b].sum()
        by_area = area * bench.targets[b] + (1 - area) * bench.targets[partner]
        smooth = 0.9 * by_area + 0.1 / CLASSES
        predicted = logits[b].softmax(dim=0)
        trust = float(smooth @ predicted / smooth.norm() / predicted.norm())
        lam = trust * float(own) + (1 - trust) * area
        assert mixed.lam[b].tolist() == pytest.approx([lam, 1 - lam], abs=1e-5)


def test_mixpro_trusts_attention_as_predictions_are_right() -> None:
    bench = Bench("mixpro")
    perm = torch.tensor([[0, 1], [2, 3]])
    params = mixpro_params(torch.tensor([[[False, True], [True, True]]] * 2), perm)
    mixed = bench.method.mix(bench.images, bench.targets, params)
    attention = torch.zeros(2, 16)
    attention[:, 0] = 0.5  # on the first image's cell alone
    wrong = torch.full((2, CLASSES), -50.0)
    wrong[:, 4] = 50.0
    right = (mixed.targets + 1e-12).log()
    by_area = bench.method.relabel(mixed, bench.targets, attention, wrong)
    torch.testing.assert_close(by_area.lam, torch.tensor([[0.25, 0.75]] * 2))
    by_attention = bench.method.relabel(mixed, bench.targets, attention, right)
    torch.testing.assert_close(by_attention.lam, torch.tensor([[1.0, 0.0]] * 2))
    torch.testing.assert_close(by_attention.targets, bench.targets[[0, 2]])


def test_cells_are_counted_and_uniform() -> None:
    share = torch.rand(4000, generator=rng(3))
    share[:2] = torch.tensor([1.0, 1e-9])
    partner = draw_cells(share, 4, rng(4))
    own = 16 - partner.sum(dim=(1, 2))
    assert own.tolist() == [math.ceil(16 * value) for value in share.tolist()]
    frequency = partner.double().mean(dim=0)
    assert frequency.sub(frequency.mean()).abs().max() < 0.03


def test_one_ratio_per_batch_but_cells_per_mix() -> None:
    bench = Bench("mixpro", count=6)
    draws = [bench.make_params(step).partner for step in range(300)]
    assert all(len(cells.sum(dim=(1, 2)).unique()) == 1 for cells in draws)
    assert sum(len(cells.unique(dim=0)) > 1 for cells in draws) > 200
    own = torch.tensor([16 - int(cells[0].sum()) for cells in draws])
    counts = own.bincount(minlength=17)[1:]  # ⌈16 u⌉ of a uniform u
    assert own.min() >= 1
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.001
    each = Bench("mixpro", per_sample=True).make_params().partner.sum(dim=(1, 2))
    assert len(each.unique()) > 2


def test_cells_are_whole_patches() -> None:
    assert [choose_cells((n, n), None) for n in (16, 14, 8, 4, 2, 1, 7)] == [4, 7, 4, 4, 2, 1, 7]
    assert choose_cells((12, 8), None) == 4
    assert choose_cells((14, 14), 2) == 2
    with pytest.raises(
        UsageError, match="cells = 4: 14×14 patches can be divided into 1, 2, 7, 14"
    ):
        choose_cells((14, 14), 4)
    with pytest.raises(UsageError, match="cells = 3"):
        Bench("mixpro", cells=3).make_params()


def test_mixpro_alternates_with_cutmix_too() -> None:
    bench = Bench("mixpro", switch=0.5)
    kinds = Counter((d.plain, d.plain and d.boxed) for d in map(bench.make_params, range(600)))
    assert kinds[False, False] / 600 == pytest.approx(0.5, abs=0.06)
    assert kinds[True, True] / 600 == pytest.approx(0.25, abs=0.05)
    params = next(d for d in map(bench.make_params, range(40)) if d.plain and d.boxed)
    mixed = bench.mix_batch(params)
    inside = box_mask(params.box, SIZE, SIZE)
    for b in range(6):
        image = torch.where(inside[b], bench.images[params.perm[b, 1]], bench.images[b])
        assert torch.equal(mixed.images[b], image)
    torch.testing.assert_close(mixed.lam[:, 1], inside.float().mean(dim=(1, 2)))


def test_maskmix_alone_needs_no_attention() -> None:
    model = build_model("resnet18", CLASSES, stem="cifar", width=0.125, image_size=SIZE)
    method = make("mixpro", model, attention_labels=False, switch=1.0)
    images, targets = batch()
    params = method.make_params(images.shape, rng(), 0)
    mixed = method.mix_batch(images, targets, model, None, params)
    assert params.partner.shape == (6, 4, 4)
    torch.testing.assert_close(mixed.lam[:, 1], params.partner.float().mean(dim=(1, 2)))
    losses = method.compute_loss(MixInputs(images, targets, {}), model, None, params)
    expected = method.cross_entropy(model(mixed.images), mixed.targets)
    torch.testing.assert_close(losses["loss"], expected)


# ---------------------------------------------------------------------- TokenMix


def beit_mask(side: int, tokens: int, random: Any) -> Tensor:
    """One mask, drawn rectangle by rectangle in plain Python."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    while int(mask.sum()) < tokens:
        room = tokens - int(mask.sum())
        for _attempt in range(10):
            area = random.uniform(1, room)
            aspect = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (height < side and width < side):
                continue
            top, left = random.randint(0, side - height), random.randint(0, side - width)
            grown = mask.clone()
            grown[top : top + height, left : left + width] = True
            if 0 < int(grown.sum()) - int(mask.sum()) <= room:
                mask = grown
                break
        else:
            return mask
    return mask


def edges(masks: Tensor) -> Tensor:
    """Number of neighboring patches that differ in each mask."""
    down = (masks[:, 1:] != masks[:, :-1]).sum(dim=(1, 2))
    return down + (masks[:, :, 1:] != masks[:, :, :-1]).sum(dim=(1, 2))


def test_blocks_are_drawn_as_beits() -> None:
    import random

    ours = draw_blocks(1500, (8, 8), 37, rng())
    theirs = torch.stack([beit_mask(8, 37, random.Random(seed)) for seed in range(500)])
    assert int(ours.sum(dim=(1, 2)).max()) == 37
    for measure in (lambda m: m.sum(dim=(1, 2)), edges, lambda m: m[:, 0].sum(dim=1)):
        one, other = measure(ours).double(), measure(theirs).double()
        error = math.sqrt(one.var() / len(one) + other.var() / len(other))
        assert abs(one.mean() - other.mean()) < 4 * error
        assert one.std().item() == pytest.approx(other.std().item(), rel=0.15)
    # Portrait as often as landscape: both axes are treated alike.
    rows, columns = ours.any(dim=2).sum(dim=1), ours.any(dim=1).sum(dim=1)
    assert (rows - columns).double().mean().abs() < 0.15


@pytest.mark.parametrize("tokens", [0, 1, 16])
def test_blocks_of_no_one_and_all_patches(tokens: int) -> None:
    masks = draw_blocks(20, (4, 4), tokens, rng())
    counts = masks.sum(dim=(1, 2))
    assert counts.max() <= tokens
    assert counts.min() >= min(tokens, 1)


def test_the_partners_patches_are_those_of_the_paper() -> None:
    settings = TokenMix.Settings()
    assert [partner_tokens((n, n), settings) for n in (14, 4, 8)] == [112, 9, 37]
    assert partner_tokens((14, 14), TokenMix.Settings(share=0.9, extra_tokens=40)) == 196
    counts = draw_blocks(300, (14, 14), 112, rng()).sum(dim=(1, 2))
    assert counts.max() == 112
    assert (counts == 112).double().mean() > 0.5, "some give up early, as the released code does"


def tokenmix_params(partner: Tensor, perm: Tensor) -> TokenMixParams:
    return TokenMixParams(perm, torch.full((len(perm), 2), 0.5), False, partner)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("guide", ["teacher", "student"])
def test_tokenmix_sample_by_sample(guide: str, normalize: bool) -> None:
    bench = Bench("tokenmix", per_sample=True, guide=guide, normalize=normalize)
    params = bench.make_params(1)
    mixed = bench.mix_batch(params)
    network = bench.teacher if guide == "teacher" else bench.student
    maps = timms_attention(network, bench.images, 3).detach().mean(dim=1)[:, 0, 1:].double()
    maps = maps / maps.sum(dim=1, keepdim=True)
    for b in range(6):
        partner = int(params.perm[b, 1])
        weights = [0.0, 0.0]
        for p in range(16):
            y, x = divmod(p, SIDE)
            second = bool(params.partner[b, y, x])
            weights[second] += maps[partner if second else b, p].item()
            cut = (slice(None), slice(8 * y, 8 * y + 8), slice(8 * x, 8 * x + 8))
            assert torch.equal(mixed.images[b][cut], bench.images[partner if second else b][cut])
        if normalize:
            weights = [weight / sum(weights) for weight in weights]
        assert mixed.lam[b].tolist() == pytest.approx(weights, abs=1e-5)
        label = weights[0] * bench.targets[b] + weights[1] * bench.targets[partner]
        torch.testing.assert_close(mixed.targets[b], label)
    losses = bench.compute_loss(params)
    expected = cross_entropy_by_hand(bench.student(mixed.images), mixed.targets)
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_a_fully_visible_image_gets_the_whole_label() -> None:
    """Checks the orientation of the mask."""
    bench = Bench("tokenmix")
    perm = torch.tensor([[0, 1], [0, 1]])
    params = tokenmix_params(torch.tensor([False, True])[:, None, None].expand(2, 4, 4), perm)
    mixed = bench.mix_batch(params)
    torch.testing.assert_close(mixed.lam, torch.eye(2))
    assert torch.equal(mixed.images, bench.images[:2])
    assert torch.equal(mixed.targets, bench.targets[:2])


# ---------------------------------------------------------------------- SMMix


def smmix_params(side: list[int], perm: Tensor) -> SMMixParams:
    return SMMixParams(perm, torch.full((len(perm), 2), 0.5), False, torch.tensor(side))


@pytest.mark.parametrize("grid", [(4, 4), (14, 14), (5, 9)])
def test_squares_by_brute_force(grid: tuple[int, int]) -> None:
    height, width = grid
    maps = torch.randn(12, height, width, generator=rng(2)).softmax(dim=1)
    side = torch.randint(1, min(grid) + 1, (12,), generator=rng(3))
    low, high = (find_squares(maps, side, largest=largest) for largest in (False, True))
    for m in range(12):
        k = int(side[m])
        sums = {
            (y, x): maps[m, y : y + k, x : x + k].double().sum().item()
            for y in range(height - k + 1)
            for x in range(width - k + 1)
        }
        assert tuple(low[m].tolist()) == min(sums, key=lambda place: sums[place])
        assert tuple(high[m].tolist()) == max(sums, key=lambda place: sums[place])


@pytest.mark.parametrize("patch", [8, (4, 8)])
def test_smmix_sample_by_sample(patch: Any) -> None:
    bench = Bench("smmix", per_sample=True)
    bench.student = vit(patch_size=patch).eval()
    bench.method = make("smmix", bench.student, switch=1.0)
    tall, wide = (patch, patch) if isinstance(patch, int) else patch
    rows, columns = SIZE // tall, SIZE // wide
    side = [1, 2, 3, 2, 1, 4]
    params = smmix_params(side, torch.tensor([[b, (b + 2) % 6] for b in range(6)]))
    mixed = bench.mix_batch(params)
    weights = timms_attention(bench.student, bench.images, 3).detach()
    maps = weights[:, :, 1:, 1:].mean(dim=(1, 2)).view(6, rows, columns)
    for b, k in enumerate(side):
        partner = (b + 2) % 6
        places = [(y, x) for y in range(rows - k + 1) for x in range(columns - k + 1)]

        def attended(image: int, place: tuple[int, int], k: int = k) -> float:
            y, x = place
            return float(maps[image, y : y + k, x : x + k].double().sum())

        y, x = min(places, key=lambda place: attended(b, place))
        top, left = max(places, key=lambda place: attended(partner, place))
        image, mask = bench.images[b].clone(), torch.zeros(SIZE, SIZE)
        onto = (slice(y * tall, (y + k) * tall), slice(x * wide, (x + k) * wide))
        origin = (slice(top * tall, (top + k) * tall), slice(left * wide, (left + k) * wide))
        image[:, *onto] = bench.images[partner][:, *origin]
        mask[onto] = 1
        assert torch.equal(mixed.images[b], image)
        assert mixed.masks is not None
        assert torch.equal(mixed.masks[b, 1], mask)
        second = k * k / (rows * columns)
        assert mixed.lam[b].tolist() == pytest.approx([1 - second, second])
        label = (1 - second) * bench.targets[b] + second * bench.targets[partner]
        torch.testing.assert_close(mixed.targets[b], label)


def test_smmix_loss_by_hand() -> None:
    bench = Bench("smmix")
    params = smmix_params([1, 2, 3, 2, 1, 2], torch.tensor([[b, (b + 1) % 6] for b in range(6)]))
    losses = bench.compute_loss(params)
    mixed = bench.mix_batch(params)
    assert mixed.masks is not None
    logits, clean = bench.student(mixed.images).detach(), bench.student(bench.images).detach()
    last = bench.student.backbone.forward_features(mixed.images).detach()[:, 1:]
    fine = consistency = 0.0
    for b in range(6):
        for n in range(2):
            visible = mixed.masks[b, n, ::8, ::8].flatten().bool()
            scores = bench.method.token_head(last[b][visible].mean(dim=0)).detach()
            label = bench.targets[mixed.perm[b, n]]
            fine += cross_entropy_by_hand(scores[None], label[None]) / 12
        lam = mixed.lam[b, 0]
        expected = (lam * clean[b] + (1 - lam) * clean[(b + 1) % 6]).double().softmax(dim=0)
        predicted = logits[b].double().softmax(dim=0)
        consistency += float((expected * (expected / predicted).log()).sum()) / 6
    main = cross_entropy_by_hand(logits, mixed.targets)
    assert losses["fine"].item() == pytest.approx(fine, rel=1e-4)
    assert losses["consistency"].item() == pytest.approx(consistency, rel=1e-3)
    assert losses["loss"].item() == pytest.approx(main + fine + consistency, rel=1e-4)
    bench.method.settings = SMMix.Settings(fine_weight=0, consistency_weight=0)
    assert bench.compute_loss(params)["loss"].item() == pytest.approx(main, rel=1e-5)


def test_divergence_from_itself_is_zero() -> None:
    clean = torch.randn(3, CLASSES, generator=rng(1))
    perm, lam = torch.tensor([[0, 0], [1, 1], [2, 2]]), torch.tensor([[0.3, 0.7]] * 3)
    mixed = Mixed(clean, clean, lam, perm)
    assert divergence(clean, mixed, clean).item() == pytest.approx(0, abs=1e-6)
    assert divergence(clean.roll(1, 0), mixed, clean).item() > 0.1


def test_sides_are_uniform_from_a_quarter_to_three_quarters() -> None:
    bench = Bench("smmix")
    net = build_model("vit_tiny_patch16_224", CLASSES, width=0.25, options={"depth": 1})
    method = make("smmix", net)
    sides = [method.make_params((2, 3, 224, 224), rng(seed), 0).side for seed in range(800)]
    assert all(int(side[0]) == int(side[1]) for side in sides)
    _, counts = torch.stack(sides)[:, 0].unique(return_counts=True)
    assert int(torch.stack(sides).min()) == 3
    assert int(torch.stack(sides).max()) == 10
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.001
    assert {int(bench.make_params(step).side[0]) for step in range(60)} == {1, 2, 3}


# ---------------------------------------------------------------------- TokenMixup


def saliencies(count: int, patches: int, kind: str, seed: int = 0) -> Tensor:
    """Attention that is nearly uniform, peaked, or concentrated in one spot per image."""
    noise = torch.randn(count, patches, generator=rng(seed))
    if kind == "flat":
        return (0.3 * noise).softmax(dim=1)
    if kind == "peaked":
        return (1.5 * noise).softmax(dim=1)
    side = math.isqrt(patches)
    spots = side * torch.rand(count, 2, 1, generator=rng(seed + 1))
    lines = (-((torch.arange(side) - spots) ** 2) / (side / 2) ** 2).exp()
    return (
        (2 * lines[:, 0, :, None] * lines[:, 1, None] + 0.2 * noise.view(-1, side, side))
        .flatten(1)
        .softmax(dim=1)
    )


def test_gains_by_hand() -> None:
    saliency = saliencies(9, 16, "peaked")
    ours = gains(saliency, 0.02)
    for i in range(9):
        for j in range(9):
            differences = (saliency[j] - saliency[i]).tolist()
            by_hand = sum(max(0.0, difference - 0.02) for difference in differences)
            assert ours[i, j].item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("kind", ["flat", "peaked", "spots"])
@pytest.mark.parametrize(("count", "patches"), [(2, 4), (3, 9), (13, 16), (64, 64), (128, 196)])
@pytest.mark.parametrize("easy_share", [0.25, 1.0])
def test_pairs_are_nearly_as_good_as_scipys(
    kind: str, count: int, patches: int, easy_share: float
) -> None:
    for seed in range(3):
        worth = gains(saliencies(count, patches, kind, seed), 0.005)
        easy = torch.rand(count, generator=rng(seed + 5)) < easy_share
        partner = assign(worth, easy)
        assert sorted(partner.tolist()) == list(range(count)), "distinct partners"
        wanted = worth[easy].double()
        best = wanted.numpy()[linear_sum_assignment(-wanted.numpy())].sum()
        reached = wanted.gather(1, partner[easy][:, None]).sum().item()
        assert reached >= 0.97 * best - 1e-6
        assert reached <= best + 1e-6


def test_pairs_of_images_that_gain_nothing() -> None:
    for worth in (torch.zeros(7, 7), torch.ones(7, 7), torch.eye(7)):
        for easy in (torch.ones(7, dtype=torch.bool), torch.zeros(7, dtype=torch.bool)):
            assert sorted(assign(worth, easy).tolist()) == list(range(7))
    partner = assign(torch.eye(7).roll(2, dims=1), torch.ones(7, dtype=torch.bool))
    assert partner.tolist() == [2, 3, 4, 5, 6, 0, 1]


def test_no_two_images_gain_by_swapping_partners() -> None:
    for seed in range(5):
        worth = gains(saliencies(12, 16, "peaked", seed), 0.005)
        before = torch.arange(12).roll(1)
        partner = exchange(worth, before)
        assert sorted(partner.tolist()) == list(range(12))
        rows = torch.arange(12)
        assert worth[rows, partner].sum() > 1.03 * worth[rows, before].sum()
        for i in range(12):
            for j in range(i):
                swapped = worth[i, partner[j]] + worth[j, partner[i]]
                assert swapped <= worth[i, partner[i]] + worth[j, partner[j]] + 1e-6


def test_a_swap_by_hand() -> None:
    saliency = saliencies(8, 16, "peaked")
    easy = torch.tensor([True, True, False, True, True, False, True, True])
    rho = 0.01
    swap = find_swap(saliency, easy, torch.arange(8), rho)
    partners = swap.perm[:, 1]
    assert len(set(partners[easy].tolist())) == 6
    for i in range(8):
        j = int(partners[i])
        kept = received = 0.0
        for p in range(16):
            takes = bool(easy[i]) and saliency[j, p].item() - saliency[i, p].item() > rho
            assert bool(swap.taken[i, p]) == takes
            kept += 0.0 if takes else saliency[i, p].item()
            received += saliency[j, p].item() if takes else 0.0
        lam = kept / (kept + received)
        assert swap.lam[i].tolist() == pytest.approx([lam, 1 - lam], abs=1e-6)
        if not easy[i]:
            assert j == i
            assert lam == 1
    some = find_swap(saliency, easy, torch.tensor([3, 6]), rho)
    assert torch.equal(some.perm, swap.perm[[3, 6]])
    assert torch.equal(some.taken, swap.taken[[3, 6]])


def test_tokenmixup_reads_the_attention_of_its_block() -> None:
    bench = Bench("tokenmixup")
    assert bench.method.block == 2, "one of three blocks comes before"
    features = bench.sources(bench.make_params()).features
    weights = timms_attention(bench.student, bench.images, 2).detach()
    torch.testing.assert_close(features["saliency"], weights.mean(dim=1)[:, 0, 1:])
    tokens = bench.student.blocks().forward_to(bench.images, 2)
    scores = bench.method.scorenet(tokens[:, 0]).detach()
    for b in range(6):
        by_hand = 0.1 * cross_entropy_by_hand(scores[b : b + 1], bench.targets[b : b + 1])
        assert features["difficulty"][b].item() == pytest.approx(by_hand, rel=1e-4)


def test_default_layers_are_the_papers() -> None:
    for depth, layer in ((12, 3), (7, 2), (2, 1), (1, 0)):
        assert make("tokenmixup", vit(depth=depth)).block == layer + 1
    with pytest.raises(UsageError, match=r"tokenmixup\.layer = 3: the network has 3 blocks"):
        make("tokenmixup", vit(), layer=3)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_tokenmixup_token_by_token(layer: int) -> None:
    bench = Bench("tokenmixup", layer=layer, scorenet_weight=0.5, rho=1e-3)
    params = bench.make_params()
    losses, mixed = bench.compute_loss(params), bench.mix_batch(params)
    blocks = bench.student.backbone.blocks
    net = bench.student.backbone
    tokens = net._pos_embed(net.patch_embed(bench.images))
    tokens = blocks[:layer](tokens).detach()
    rows: list[Tensor] = []
    for b in range(6):
        row = tokens[b].clone()
        assert mixed.masks is not None
        taken = mixed.masks[b, 1, ::8, ::8].flatten().bool()
        assert taken.any()
        row[1:][taken] = tokens[int(mixed.perm[b, 1])][1:][taken]
        rows.append(row)
    last = net.norm(blocks[layer:](torch.stack(rows)))[:, 0]
    main = cross_entropy_by_hand(bench.student.logits(last), mixed.targets)
    scores = bench.method.scorenet(tokens[:, 0])
    score_loss = cross_entropy_by_hand(scores, bench.targets)
    assert losses["scorenet"].item() == pytest.approx(score_loss, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(main + 0.5 * score_loss, rel=1e-4)


def test_no_image_is_easy_at_first() -> None:
    """τ = 0 mixes nothing: the loss is that of the clean images."""
    bench = Bench("tokenmixup", tau=0.0)
    losses = bench.compute_loss(bench.make_params())
    assert losses["swapped"] == 0
    clean = bench.method.cross_entropy(bench.student(bench.images), bench.targets)
    torch.testing.assert_close(losses["loss"], clean + 0.001 * losses["scorenet"])
    mixed = bench.mix_batch(bench.make_params())
    assert torch.equal(mixed.images, bench.images)
    assert torch.equal(mixed.targets, bench.targets)


def test_easy_images_are_separated_from_difficult_ones() -> None:
    bench = Bench("tokenmixup")
    difficulty = bench.sources(bench.make_params()).features["difficulty"]
    middle = difficulty.sort().values[2:4].mean().item()
    bench.method.settings = TokenMixup.Settings(tau=middle, rho=1e-4)
    mixed = bench.mix_batch(bench.make_params())
    swapped = (mixed.perm[:, 1] != torch.arange(6)) & (mixed.lam[:, 1] > 0)
    assert torch.equal(swapped, difficulty <= middle)


def test_gradients_reach_both_sources_of_a_token() -> None:
    bench = Bench("tokenmixup")
    params = bench.make_params().rows(slice(2, 3))
    sources = bench.sources(params)
    images = bench.images.clone().requires_grad_()
    sources = dataclasses.replace(sources, images=images)
    swap = bench.method.swap(params, sources.features)
    bench.method.compute_loss(sources, bench.student, None, params)["loss"].backward()
    assert images.grad is not None
    touched = images.grad.flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert touched == sorted(swap.perm[0].tolist())
    assert len(touched) == 2


@pytest.mark.parametrize("stop", [False, True])
def test_scorenet_trains_the_network_unless_stopped(stop: bool) -> None:
    bench = Bench("tokenmixup", stop_gradient=stop, scorenet_weight=1.0)
    with_score = gradients_of_loss(bench, bench.compute_loss(bench.make_params())["loss"])
    bench.method.settings = bench.method.settings.model_copy(update={"scorenet_weight": 0.0})
    without = gradients_of_loss(bench, bench.compute_loss(bench.make_params())["loss"])
    embedding = "0.backbone.patch_embed.proj.weight"
    assert torch.allclose(with_score[embedding], without[embedding], rtol=1e-4, atol=1e-7) == stop
    assert with_score["1.scorenet.weight"].any()
    assert not without["1.scorenet.weight"].any()
