"""Presets: which method to mix with, when and how. docs/findings.md says what supports them.

A preset is a set of settings of the mixing schedule and of methods, and a method for those who name
none. Everything that is set explicitly overrides it. `published` changes nothing: every method then
works as its paper says, and so it does if only a method is named.
"""

from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal, get_args

from adautomix.config.files import merge, read_yaml

Preset = Literal["auto", "finetune", "scratch", "published"]


def apply_preset(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return nested settings over those of the preset that they name, or of "auto".

    Args:
        values: nested settings. `preset` may be absent, or a name that validation will reject; it
            is "auto" if there is no method either.
    """
    if not {"method", "preset"} & values.keys():
        values = {"preset": "auto", **values}
    name = values.get("preset")
    if name == "auto":
        name = "finetune" if starts_pretrained(values) else "scratch"
    if name not in get_args(Preset) or name == "published":
        return values
    with resources.as_file(resources.files(__package__) / "presets" / f"{name}.yaml") as path:
        return merge(read_yaml(path), values)


def starts_pretrained(values: Mapping[str, Any]) -> bool:
    """Whether training starts from given weights; values may be text from a command line."""
    pretrained = str(values.get("pretrained", False)).lower()
    return bool(values.get("init")) or pretrained in ("true", "1", "yes", "on", "t", "y")
