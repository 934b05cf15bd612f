"""Merge settings from recipes, YAML files and flags, and check the result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adautomix.config.files import merge, read_yaml, unflatten
from adautomix.config.recipes import read_recipe
from adautomix.config.schema import TrainConfig, make_config
from adautomix.config.settings import method_settings, run_settings


def list_settings() -> list[tuple[str, str, str]]:
    """Return every setting as (dotted name, default, description), those of methods last."""
    from adautomix.methods import METHODS

    settings = run_settings()
    for name in METHODS:
        settings += method_settings(name)
    return [(setting.name, setting.default, setting.description) for setting in settings]


def merge_sources(
    *, recipe: str | None = None, file: Path | None = None, flags: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the nested settings of a recipe, a YAML file and flags, not yet checked.

    Flags override the file, and the file overrides the recipe. The arguments are those of
    `load_config`.

    Raises:
        UsageError: There is no such recipe, or the file cannot be read.
    """
    values: dict[str, Any] = read_recipe(recipe) if recipe else {}
    if file:
        values = merge(values, read_yaml(file))
    return merge(values, unflatten(flags or {}))


def load_config(
    *, recipe: str | None = None, file: Path | None = None, flags: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Return the configuration given by a recipe, a YAML file and flags.

    Args:
        recipe: Name of a packaged recipe.
        file: YAML file with nested settings; it overrides the recipe.
        flags: Dotted names and their values, converted or as text, such as
            `{"adautomix.beta": "0.3"}`; they override the file.

    Raises:
        UsageError: A name is unknown (the message suggests the nearest), or a value is out of
            range.
    """
    return make_config(merge_sources(recipe=recipe, file=file, flags=flags))
