"""Fuzz targets for settings whose inputs are drawn so fast that a million take minutes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from reading_checks import only_our_errors

from adautomix.config import load_config, make_config, unflatten
from adautomix.config.schema import TrainConfig
from adautomix.methods import METHODS

PER_TURN = 25
"""Inputs of a quick target for each input of the others."""

TOP = [name for name in TrainConfig.model_fields if name not in METHODS]
NAMES = [
    *TOP,
    *METHODS,
    *(f"{group}.{name}" for group in METHODS for name in METHODS[group].Settings.model_fields),
    *("mix.stop", "mix.prob", "model_options.layers", "model_options.x", "adautomix", "", "a.b.c"),
]
SCALARS: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 10**9, -(10**30), 0.0, 0.5, -0.5, 1e-320, 1e308),
    *(float("nan"), float("inf"), "", "auto", "none", "true", "1e9", "0x10", "-1", "1_0", "½"),
    *("2024-13-45", "2024-01-01", "[1, 2", "{a: *b}", "&a [*a]", "!!python/name:os.system"),
    *("[/b]", "../x", "/dev/zero", "\ud800", "a\0b", "\x1b[2J", "\u202e", "=1+1", "x" * 300),
    *("mixup", "cutmix", "adautomix", "resnet18", "hf-hub:x", "digits", "cuda", "bf16", "student"),
]


@dataclass(frozen=True)
class QuickTarget:
    """Something that reads, and how to draw an input for it."""

    draw: Callable[[Random], Any]
    read: Callable[[Any], None]

    def tried(self, inputs: int, seed: int | None = None) -> Callable[[], None]:
        """A function that tries `PER_TURN` times so many inputs, those of a seed."""

        def check() -> None:
            random = Random(seed or 0)
            for _ in range(PER_TURN * inputs):
                drawn = self.draw(random)
                try:
                    self.read(drawn)
                except Exception as error:
                    raise AssertionError(f"{drawn!r}: {type(error).__name__}: {error}") from error

        return check


def draw_value(random: Random, depth: int = 0) -> Any:
    """Draw a scalar, or a list or table of values."""
    kind = random.random() + 0.15 * depth
    if kind > 0.3:
        return random.choice(SCALARS)
    if kind > 0.15:
        return [draw_value(random, depth + 1) for _ in range(random.randrange(4))]
    keys: list[Any] = random.choices([*TOP, "alpha", "prob", "x", 1, None], k=random.randrange(4))
    return {key: draw_value(random, depth + 1) for key in keys}


def draw_settings(random: Random) -> dict[str, Any]:
    """Draw nested settings, mostly of one or two names, so that errors do not hide one another."""
    count = random.choice((1, 1, 1, 2, 2, 3, 5))
    drawn: dict[str, Any] = {}
    for name in random.choices(NAMES, k=count):
        group, dot, inner = name.partition(".")
        drawn[group] = {inner: draw_value(random, 1)} if dot else draw_value(random)
    return drawn


def draw_flags(random: Random) -> dict[str, str]:
    """Draw dotted names with texts."""
    names = random.choices(NAMES, k=random.choice((1, 1, 2, 3)))
    return {name: draw_text(random) for name in names}


def draw_text(random: Random) -> str:
    """Draw the text of a value: a known one, characters of YAML, or a value as JSON."""
    kind = random.randrange(3)
    if kind == 0:
        return str(random.choice(SCALARS))
    if kind == 1:
        return "".join(random.choices("[]{}:,&*!#|>%@`'\"- \n\t0e1.x~?", k=random.randrange(12)))
    return json.dumps(draw_value(random), default=str)


def quick_targets(scratch: Path) -> dict[str, QuickTarget]:
    """The quick targets by name."""
    path = scratch / "quick.yaml"

    def read_file(text: str) -> None:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        only_our_errors("quick files", lambda: load_config(file=path))

    def draw_file(random: Random) -> str:
        lines = [f"{name}: {draw_text(random)}" for name in draw_flags(random)]
        return "\n".join(line.replace("\n", " ") for line in lines)

    return {
        "quick settings": QuickTarget(
            draw_settings,
            lambda drawn: only_our_errors("quick settings", lambda: make_config(drawn)),
        ),
        "quick flags": QuickTarget(
            draw_flags,
            lambda drawn: only_our_errors("quick flags", lambda: make_config(unflatten(drawn))),
        ),
        "quick files": QuickTarget(draw_file, read_file),
    }
