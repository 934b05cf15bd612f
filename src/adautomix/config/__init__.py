"""Settings of a run: their schema, and how they are read from recipes, files and flags."""

from adautomix.config.files import list_packaged, merge, read_packaged, read_yaml, unflatten
from adautomix.config.loading import list_settings, load_config, merge_sources
from adautomix.config.recipes import list_recipes, read_recipe
from adautomix.config.schema import TeacherSettings, TrainConfig, architecture_of, make_config

__all__ = [
    "TeacherSettings",
    "TrainConfig",
    "architecture_of",
    "list_packaged",
    "list_recipes",
    "list_settings",
    "load_config",
    "make_config",
    "merge",
    "merge_sources",
    "read_packaged",
    "read_recipe",
    "read_yaml",
    "unflatten",
]
