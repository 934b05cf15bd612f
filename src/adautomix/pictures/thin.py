"""Thin out a sequence evenly."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def thin(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` ≥ 1 items, evenly spread, the last always among them."""
    if len(items) <= limit:
        return list(items)
    if limit == 1:
        return [items[-1]]
    stride = (len(items) - 1) / (limit - 1)
    return [items[round(i * stride)] for i in range(limit)]
