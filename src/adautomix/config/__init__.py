"""Settings of a run: their schema, and how they are read from recipes, files and flags."""

from adautomix.config.files import list_packaged, merge, nest, read_packaged, read_yaml
from adautomix.config.loading import (
    list_recipes,
    list_settings,
    load_config,
    read_recipe,
)
from adautomix.config.schema import TrainConfig, architecture_of, make_config
from adautomix.ema import TeacherSettings
from adautomix.validation import field_rows

__all__ = [
    "TeacherSettings",
    "TrainConfig",
    "architecture_of",
    "field_rows",
    "list_packaged",
    "list_recipes",
    "list_settings",
    "load_config",
    "make_config",
    "merge",
    "nest",
    "read_packaged",
    "read_recipe",
    "read_yaml",
]
