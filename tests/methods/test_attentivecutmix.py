"""Attentive CutMix, cell by cell."""

from typing import Any

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from given import make, rng, telling_network, toys
from tiny import state_of

from adautomix.ema import Teacher
from adautomix.methods import attentivecutmix as attentivecutmix_module
from adautomix.methods.attentivecutmix import AttentiveCutMix, AttentiveCutMixParams, largest_cells
from adautomix.mixing.ops import cells_to_pixels
from adautomix.mixing.params import draw_partners
from adautomix.models import build_model


@pytest.fixture(scope="module")
def student() -> Any:
    return telling_network()


@pytest.fixture(scope="module")
def teacher(student: Any) -> Any:
    return Teacher(student).model


def test_attentivecutmix_cell_by_cell(teacher: Any) -> None:
    """Images of 28 pixels have 7 × 7 cells of 4 × 4 pixels."""
    images, targets = torch.rand(5, 3, 28, 28, generator=rng()), torch.eye(5)
    method = make(AttentiveCutMix, telling_network(), patches=6)
    params = AttentiveCutMixParams(draw_partners(5, rng(1)), torch.tensor([6, 1, 49, 13, 6]))
    mixed = method.mix_batch(images, targets, None, teacher, params)
    attention = method.extract_features(images, targets, None, teacher, params)["attention"]
    for b in range(5):
        own, partner = params.perm[b].tolist()
        count = int(params.count[b])
        order = sorted(range(49), key=lambda cell: -attention[partner].flatten()[cell].item())
        chosen = set(order[:count])
        for cell in range(49):
            y, x = 4 * (cell // 7), 4 * (cell % 7)
            source = images[partner if cell in chosen else own]
            tile = (b, slice(None), slice(y, y + 4), slice(x, x + 4))
            assert torch.equal(mixed.images[tile], source[tile[1:]])
        assert mixed.lam[b].tolist() == pytest.approx([1 - count / 49, count / 49])
        label = (1 - count / 49) * targets[own] + count / 49 * targets[partner]
        torch.testing.assert_close(mixed.targets[b], label)


def test_attention_is_the_mean_of_the_last_map(student: Any) -> None:
    images, targets = toys()
    teacher = Teacher(student).model.eval()
    features = make(AttentiveCutMix, student, grid=2, patches=1).extract_features(
        images, targets, None, teacher, None
    )
    with torch.no_grad():
        last = teacher.backbone.forward_features(images)
    assert last.shape[2:] == (2, 2)
    torch.testing.assert_close(features["attention"], last.mean(dim=1))


def test_attentivecutmix_does_not_change_the_teacher(student: Any) -> None:
    teacher = Teacher(student, "own").model
    kept, modes = state_of(teacher), [module.training for module in teacher.modules()]
    images, targets = toys()
    make(AttentiveCutMix, student).extract_features(images, targets, None, teacher, None)
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())
    assert [module.training for module in teacher.modules()] == modes


def test_exactly_that_many_cells_even_with_ties() -> None:
    chosen = largest_cells(torch.zeros(4, 7, 7), torch.tensor([1, 6, 30, 49]))
    assert chosen.flatten(1).sum(dim=1).tolist() == [1, 6, 30, 49]


def test_cells_cover_sizes_that_they_do_not_divide() -> None:
    cells = torch.arange(9).view(1, 3, 3)
    pixels = cells_to_pixels(cells, 7, 5)
    for y in range(7):
        for x in range(5):
            assert pixels[0, y, x] == cells[0, 3 * y // 7, 3 * x // 5]


def test_attentivemix_counts_follow_beta() -> None:
    method = make(AttentiveCutMix, telling_network(), alpha=2.0)
    counts = [int(method.make_params((4, 3, 8, 8), rng(k), 0).count[0]) for k in range(600)]
    assert min(counts) >= 1
    beta = scipy.stats.beta(2, 2)
    for k in (7, 16, 25, 37):
        below = sum(count < k for count in counts) / 600
        assert below == pytest.approx(beta.cdf(k / 49), abs=0.06)
    fixed = make(AttentiveCutMix, telling_network()).make_params((4, 3, 8, 8), rng(), 0)
    assert fixed.count.tolist() == [6] * 4


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Build pretrained networks with random weights."""
    asked: list[str] = []

    def untrained(name: str, classes: int, *, pretrained: bool, **options: Any) -> Any:
        asked.append(f"{name} {pretrained}")
        return build_model(name, classes, **options)

    monkeypatch.setattr(attentivecutmix_module, "build_model", untrained)
    return asked


def test_a_pretrained_network_gives_the_attention(no_downloads: list[str]) -> None:
    images, targets = toys()
    before = torch.get_rng_state()
    method = make(AttentiveCutMix, None, network="resnet18", network_size=64, grid=2, patches=1)
    assert torch.equal(before, torch.get_rng_state())
    assert no_downloads == ["resnet18 True"]
    attention = method.extract_features(images, targets, None, None, None)["attention"]
    large = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    own = method._network[0]
    with torch.no_grad():
        expected = own.backbone.forward_features(large).mean(dim=1)
    torch.testing.assert_close(attention, expected, atol=1e-5, rtol=1e-4)
    assert not list(method.parameters())
    assert not method.state_dict()
    assert not any(weight.requires_grad for weight in own.parameters())
    method.train()
    assert not own.training
    method.to(torch.float64)
    assert next(own.parameters()).dtype == torch.float64, "it moves with the method"
