"""Random erasing beside timm's."""

import random
from typing import Any

import pytest
import torch
from scipy.stats import ks_2samp, kstest
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from adautomix.data.erasing import draw_erasing, erase, hashed_normal
from adautomix.rng import generator_at


def test_boxes_are_distributed_as_timms() -> None:
    count, size = 3000, 32
    params = draw_erasing(count, size, 0.25, generator_at(0, 0, "erasing"))
    random.seed(0)
    transform: Any = RandomErasing(0.25, mode="const", device="cpu")  # type: ignore[no-untyped-call]
    theirs = transform(torch.ones(count, 1, size, size))[:, 0]
    mine = erase(torch.ones(count, 1, size, size), params, "const")[:, 0]

    def facts(images: Tensor) -> Tensor:
        """Area, first row and first column of what is erased, where something is."""
        gone = images == 0
        gone = gone[gone.flatten(1).any(1)]
        rows, columns = gone.any(2).int().argmax(1), gone.any(1).int().argmax(1)
        return torch.stack([gone.sum((1, 2)), rows, columns], 1)

    ours, expected = facts(mine), facts(theirs)
    assert abs(len(ours) - len(expected)) < 4 * (2 * count * 0.25 * 0.75) ** 0.5
    for column in range(3):
        assert ks_2samp(ours[:, column], expected[:, column]).pvalue > 1e-3


@pytest.mark.parametrize("fill", ["const", "rand", "pixel"])
def test_only_the_box_changes(fill: str) -> None:
    images = torch.full((8, 3, 16, 16), 7.0)
    params = draw_erasing(8, 16, 1.0, generator_at(1, 0, "erasing"))
    out = erase(images, params, fill)  # type: ignore[arg-type]
    for k in range(8):
        top, left = int(params.top[k]), int(params.left[k])
        bottom, right = top + int(params.height[k]), left + int(params.width[k])
        inside = out[k, :, top:bottom, left:right]
        assert int((out[k] != 7).sum()) == inside.numel() > 0
        if fill == "const":
            assert not inside.any()
        elif fill == "rand":
            assert torch.equal(inside, inside[:, :1, :1].expand_as(inside))
        else:
            assert len(inside.unique()) == inside.numel()
    assert torch.equal(out, erase(images, params, fill))  # type: ignore[arg-type]


def test_a_share_of_the_batch_is_erased_as_in_the_whole() -> None:
    images = torch.zeros(6, 3, 12, 12)
    params = draw_erasing(6, 12, 1.0, generator_at(1, 0, "erasing"))
    whole = erase(images, params, "pixel")
    assert torch.equal(erase(images[2:4], params.rows(slice(2, 4)), "pixel"), whole[2:4])


def test_hashed_values_are_normal_and_independent() -> None:
    values = hashed_normal(torch.arange(40), (3, 40, 40))
    assert kstest(values.flatten().numpy(), "norm").pvalue > 1e-3
    rows = torch.corrcoef(values.flatten(1))
    assert (rows - torch.eye(40)).abs().max() < 0.08
    for shifted in (values[:, :, :, 1:] * values[:, :, :, :-1], values[:, 1:] * values[:, :-1]):
        assert abs(float(shifted.mean())) < 4 / shifted.numel() ** 0.5
