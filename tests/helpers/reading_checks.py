"""Shared by fuzz targets: the count of inputs, damage to bytes, and what a reader may raise."""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck
from hypothesis import strategies as st

from adautomix.errors import AdAutoMixError
from adautomix.text import printable

TRIED: Counter[str] = Counter()

mutations = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat"]),
        st.floats(0, 1),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def only_our_errors(kind: str, read: Callable[[], Any]) -> None:
    """Call a reader; what it may raise is an `AdAutoMixError` of one printable line."""
    TRIED[kind] += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except AdAutoMixError as error:
        line = printable(" ".join(str(error).split()), None)
        if not line or len(line) > 5000:
            raise AssertionError(f"no line to print: {line[:200]!r}") from error


def mutate(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """Apply changes at positions from 0 (start) to 1 (end) of the content."""
    for kind, place, value in changes:
        position = int(place * len(content))
        head, tail = content[:position], content[position:]
        if kind == "flip" and tail:
            content = head + bytes([tail[0] ^ (value or 1)]) + tail[1:]
        elif kind == "cut":
            content = head
        elif kind == "insert":
            content = head + bytes([value]) * 3 + tail
        elif kind == "repeat":
            content = head + tail * 2
    return content


@dataclass(frozen=True)
class Target:
    """Something that reads, with strategies for its inputs."""

    inputs: tuple[st.SearchStrategy[Any], ...]
    read: Callable[..., None]

    def tried(self, inputs: int, seed: int | None = None) -> Callable[[], None]:
        """A function that tries so many inputs: always the same ones, or those of a seed."""
        options = hypothesis.settings(
            max_examples=inputs,
            deadline=None,
            database=None,
            derandomize=seed is None,
            suppress_health_check=list(HealthCheck),
        )

        def read(
            values: tuple[Any, ...],
        ) -> None:  # a new function, because Hypothesis marks what it calls
            self.read(*values)

        check = options(hypothesis.given(st.tuples(*self.inputs))(read))
        return check if seed is None else hypothesis.seed(seed)(check)


def target(*inputs: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Target]:
    """Decorator that makes a function of such inputs a target."""
    return lambda read: Target(inputs, read)
