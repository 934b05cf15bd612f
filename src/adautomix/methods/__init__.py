"""The table of methods: a new method is one file and one line here."""

import difflib
from typing import Any

from adautomix.errors import UsageError
from adautomix.methods.adautomix import AdAutoMix
from adautomix.methods.base import Draw, InputMixing, Method, MethodSettings, Mixed, Sources
from adautomix.methods.cutmix import CutMix
from adautomix.methods.mixup import Mixup
from adautomix.methods.vanilla import Vanilla

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Vanilla,
        Mixup,
        CutMix,
        AdAutoMix,
    )
}


def find_method(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UsageError: no method of that name.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"unknown method {name!r}: {hint}`adautomix methods` lists them all")


def build_method(name: str, options: dict[str, Any] | None = None, **common: Any) -> Method:
    """A method from its name, its own settings and what all methods share (see `Method`)."""
    cls = find_method(name)
    return cls(cls.Settings(**(options or {})), **common)


__all__ = [
    "METHODS",
    "Draw",
    "InputMixing",
    "Method",
    "MethodSettings",
    "Mixed",
    "Sources",
    "build_method",
    "find_method",
]
