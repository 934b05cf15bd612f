"""The methods and settings that `adautomix tune` searches, as choices by dotted setting."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adautomix.config import unflatten

Choices = Mapping[str, Sequence[Any]]
Pick = Callable[[str, Sequence[Any]], Any]
"""Called with a setting and its choices; returns one of them."""

PLAIN = "vanilla"
SCHEDULE: Choices = {"mix.stop": (0.75, 0.5, 0.9, 1.0), "mix.prob": (1.0, 0.5)}
"""When every method mixes. The first choice of each setting is tried first."""

METHODS: Mapping[str, Choices] = {
    "mixup": {"mixup.alpha": (0.2, 0.5, 1.0)},
    "cutmix": {"cutmix.alpha": (1.0, 0.5, 0.2)},
    "adautomix": {
        "adautomix.views": ("split", "full"),
        "adautomix.n": (2, 3),
        "adautomix.lam_embedding": (True, False),
        "adautomix.alpha": (0.0, 0.5),
        "adautomix.generator_init": ("scaled", "released"),
    },
    "automix": {
        "automix.views": ("split", "full"),
        "automix.generator_init": ("scaled", "released"),
    },
}
"""Further choices of some methods; the others vary when they mix and nothing else."""


def choices_of(method: str) -> dict[str, Sequence[Any]]:
    """Return what is searched for a method; nothing for plain training."""
    return {} if method == PLAIN else {**SCHEDULE, **METHODS.get(method, {})}


def first_choices(method: str) -> dict[str, Any]:
    """Return the flat settings that are tried first for a method."""
    return {"method": method, **{name: some[0] for name, some in choices_of(method).items()}}


def suggest(methods: Sequence[str], pick: Pick) -> dict[str, Any]:
    """Return flat settings, a method and its own, each picked from its choices."""
    method = pick("method", methods)
    return {
        "method": method,
        **{name: pick(name, some) for name, some in choices_of(method).items()},
    }


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat settings as nested ones, for `make_config`."""
    return unflatten(settings)
