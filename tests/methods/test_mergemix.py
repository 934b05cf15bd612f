"""MergeMix and its token merging recomputed token by token."""

import math

import pytest
import torch
import torch.nn.functional as F
from given import make, network, rng
from tiny import CLASSES
from torch import Tensor

from adautomix.methods.base import MixInputs
from adautomix.methods.mergemix import MergeMix, kept_patches, merged_scores, redraw
from adautomix.mixing.token_merging import merge_tokens, merging_schedule

VIT = "vit_tiny_patch16_224"
IMAGES = torch.rand(5, 3, 16, 16, generator=rng(1))
TARGETS = torch.rand(5, CLASSES, generator=rng(2)).softmax(dim=1)


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.hypot(*one) / math.hypot(*other)


def merge_by_hand(
    tokens: list[list[float]], sizes: list[float], keys: list[list[float]], count: int
) -> tuple[list[list[float]], list[float], list[int]]:
    """Bipartite matching of one image as token merging and openmixup define it."""
    even, odd = range(0, len(tokens), 2), list(range(1, len(tokens), 2))
    best = {i: max(odd, key=lambda j: cosine(keys[i], keys[j])) for i in even if i > 0}
    order = sorted(best, key=lambda i: -cosine(keys[i], keys[best[i]]))
    merging = order[:count]
    groups = [[i] for i in even if i not in merging]
    groups += [[j] + [i for i in merging if best[i] == j] for j in odd]
    means, totals, place = [], [], [0] * len(tokens)
    for number, group in enumerate(groups):
        total = sum(sizes[i] for i in group)
        columns = range(len(tokens[0]))
        means.append([sum(sizes[i] * tokens[i][c] for i in group) / total for c in columns])
        totals.append(total)
        for i in group:
            place[i] = number
    return means, totals, place


@pytest.mark.parametrize(("total", "count"), [(9, 3), (8, 2), (7, 3), (6, 0)])
def test_merging_by_hand(total: int, count: int) -> None:
    tokens, keys = (torch.randn(4, total, 3, generator=rng(seed)) for seed in (3, 4))
    size = torch.randint(1, 4, (4, total, 1), generator=rng(5)).float()
    merged = merge_tokens(tokens, size, keys, count)
    for b in range(4):
        means, totals, place = merge_by_hand(
            tokens[b].tolist(), size[b, :, 0].tolist(), keys[b].tolist(), count
        )
        torch.testing.assert_close(merged.tokens[b], torch.tensor(means), atol=1e-5, rtol=0)
        assert merged.size[b, :, 0].tolist() == totals
        assert merged.place[b].tolist() == place
        assert place[0] == 0


def test_the_schedule_is_that_of_openmixup() -> None:
    """In 12 blocks, 13 falling to 5 is 5 more than 98, and 6 falling to 2 is 6 less than 49."""
    assert merging_schedule(98, 12) == [8, 12, 11, 10, 10, 9, 8, 7, 7, 6, 5, 5]
    assert merging_schedule(49, 12) == [12, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2]
    for total in (0, 1, 8, 49, 147):
        for blocks in (1, 2, 12):
            counts = merging_schedule(total, blocks)
            assert sum(counts) == total
            assert len(counts) == blocks
            assert min(counts) >= 0


def test_without_merging_scores_are_the_attention_of_the_network() -> None:
    net = network(VIT).eval()
    scores = merged_scores(net, IMAGES, 0.0)
    blocks = net.blocks()
    tokens = blocks.forward_to(IMAGES, blocks.depth)
    layer = net.backbone.blocks[-1]
    heads, size = layer.attn.num_heads, layer.attn.head_dim
    qkv = layer.attn.qkv(layer.norm1(tokens)).unflatten(2, (3, heads, size))
    query, key, _ = qkv.permute(2, 0, 3, 1, 4)
    weights = (query @ key.mT / size**0.5).softmax(dim=3)
    torch.testing.assert_close(scores, weights[:, :, 1:, 0].sum(dim=1))


def test_scores_with_merging_by_hand() -> None:
    net = network(VIT).eval()
    blocks, depth = net.blocks(), 3
    counts = merging_schedule(8, depth - 1)  # half of 16 patches, in two of three blocks
    for b in range(2):
        tokens = blocks.forward_to(IMAGES[b : b + 1], 1)
        sizes, place = [1.0] * tokens.shape[1], list(range(tokens.shape[1]))
        for block, count in enumerate(counts, start=1):
            keys = blocks.mean_keys(tokens, block)[0].tolist()
            attended = blocks.attend(tokens, block)[0].tolist()
            means, sizes, moved = merge_by_hand(attended, sizes, keys, count)
            place = [moved[i] for i in place]
            tokens = blocks.feed_forward(torch.tensor([means]), block)
        attention = blocks.attention_to_first(tokens, depth)[0]
        expected = torch.stack([attention[i] for i in place[1:]])
        scores = merged_scores(net, IMAGES[b : b + 1], 0.5)[0]
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)
        assert len(scores.unique()) <= 16 - 8 + 1


def test_both_halves_of_a_block_are_the_block() -> None:
    net = network(VIT).eval()
    blocks = net.blocks()
    tokens = blocks.forward_to(IMAGES, 2)
    whole = blocks.feed_forward(blocks.attend(tokens, 2), 2)
    torch.testing.assert_close(whole, blocks.forward_to(IMAGES, 3))


@pytest.mark.parametrize("label", ["area", "redrawn"])
def test_the_mix_patch_by_patch(label: str) -> None:
    method = make(MergeMix, network(VIT), label=label, per_sample=True)
    params = method.make_params(IMAGES.shape, rng(6), 0)
    scores = torch.rand(5, 16, generator=rng(7))
    mixed = method.mix(IMAGES, TARGETS, params, scores=scores)
    for b, (one, other) in enumerate(params.perm.tolist()):
        assert one == b
        assert other != b
        kept = math.floor(float(params.lam[b, 0]) * 16)
        best = sorted(range(16), key=lambda p: -float(scores[b, p]))[:kept]
        for patch in range(16):
            top, left = 4 * (patch // 4), 4 * (patch % 4)
            window = (slice(None), slice(top, top + 4), slice(left, left + 4))
            source = IMAGES[one if patch in best else other]
            assert torch.equal(mixed.images[b][window], source[window])
        lam = kept / 16 if label == "area" else float(params.redrawn[b])
        expected = lam * TARGETS[one] + (1 - lam) * TARGETS[other]
        torch.testing.assert_close(mixed.targets[b], expected)


def test_ties_keep_exactly_the_stated_number() -> None:
    kept = kept_patches(torch.ones(3, 10), torch.tensor([0.0, 0.55, 1.0]))
    assert kept.sum(dim=1).tolist() == [0, 5, 10]


def test_redrawn_weights_span_zero_to_one() -> None:
    kept = torch.full((64,), 0.3)
    drawn = redraw(kept, 0.5, rng(1))
    noise = 0.5 + 0.3 * torch.randn(64, generator=rng(1))
    expected = (noise - noise.min()) / (noise.max() - noise.min() + 1e-5)
    torch.testing.assert_close(drawn, expected)
    assert drawn.min() == 0
    assert drawn.max().item() == pytest.approx(1, abs=1e-4)


def test_the_loss_adds_that_of_mixup() -> None:
    net = network(VIT).eval()
    method = make(MergeMix, net, mixup_weight=0.5)
    params = method.make_params(IMAGES.shape, rng(3), 0)
    scores = method.extract_features(IMAGES, TARGETS, net, None, params)
    losses = method.compute_loss(MixInputs(IMAGES, TARGETS, scores), net, None, params)
    mixed = method.mix(IMAGES, TARGETS, params, **scores)
    weights: Tensor = params.plain.lam[:, :, None, None, None]
    pairs = IMAGES[params.plain.perm]
    images, labels = (weights * pairs).sum(dim=1), TARGETS[params.plain.perm]
    labels = (params.plain.lam[:, :, None] * labels).sum(dim=1)
    expected = F.cross_entropy(net(mixed.images), mixed.targets)
    expected = expected + 0.5 * F.cross_entropy(net(images), labels)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
