"""Thin out a sequence evenly."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def subsample(items: Sequence[T], limit: int) -> list[T]:
    """Return at most `limit` evenly spaced items in their order, always with the last one.

    The first item is kept as well if `limit` is at least 2.
    """
    if len(items) <= limit:
        return list(items)
    if limit == 1:
        return [items[-1]]
    stride = (len(items) - 1) / (limit - 1)
    return [items[round(i * stride)] for i in range(limit)]
