"""Settings from recipes, YAML files and flags, merged and checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adautomix.config.files import list_packaged, merge, nest, read_packaged, read_yaml
from adautomix.config.schema import TrainConfig, make_config
from adautomix.methods import METHODS
from adautomix.validation import field_rows


def list_settings() -> list[tuple[str, str, str]]:
    """Every setting as (dotted name, default, description); methods' groups come last."""
    rows = field_rows("", TrainConfig)
    for name, cls in METHODS.items():
        rows += field_rows(f"{name}.", cls.Settings)
    return rows


def list_recipes() -> dict[str, str]:
    """Packaged recipes: name -> the first comment line of the file."""
    return list_packaged("recipes")


def read_recipe(name: str) -> dict[str, Any]:
    """The settings of a packaged recipe.

    Raises:
        UsageError: no recipe of that name; the nearest is named.
    """
    return read_packaged("recipes", name)


def load_config(
    *, recipe: str | None = None, file: Path | None = None, flags: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Settings from a recipe, a YAML file and flags, each winning over the one before.

    Args:
        recipe: name of a packaged recipe.
        file: YAML file with nested settings.
        flags: dotted names with values as typed, such as `{"adautomix.beta": "0.3"}`.

    Raises:
        UsageError: unknown names (with the nearest known one) and values out of range.
    """
    values: dict[str, Any] = read_recipe(recipe) if recipe else {}
    if file:
        values = merge(values, read_yaml(file))
    return make_config(merge(values, nest(flags or {})))
