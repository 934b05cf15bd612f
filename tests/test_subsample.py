"""Evenly spaced items of a sequence."""

import pytest

from adautomix.subsample import subsample


@pytest.mark.parametrize(("length", "limit"), [(0, 5), (5, 5), (6, 5), (1000, 60), (7, 1)])
def test_the_last_item_and_at_most_limit_items_are_kept(length: int, limit: int) -> None:
    items = subsample(range(length), limit)
    assert len(items) == min(length, limit) == len(set(items))
    assert items == sorted(items)
    assert items[-1:] == list(range(length))[-1:]
