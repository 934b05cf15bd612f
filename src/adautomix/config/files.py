"""Nested settings from YAML files, flags and packaged recipes, and how they are merged."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from adautomix.errors import UsageError, unknown_name


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings where those of `over` win."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            merge(below, value)
            if isinstance(below, Mapping) and isinstance(value, Mapping)
            else value
        )
    return merged


def nest(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names, with dashes or underscores, as nested settings; the text `none` is None.

    Raises:
        UsageError: a table of settings is not YAML.
    """
    nested: dict[str, Any] = {}
    for name, value in flags.items():
        *groups, last = name.replace("-", "_").split(".")
        inner: Any = None if value == "none" else value
        # Options of timm's have no types of ours: a number is a number and not text.
        if groups == ["model_options"] or str(value).startswith("{"):
            inner = read_value(name, str(inner))
        for group in [last, *reversed(groups)]:
            inner = {group: inner}
        nested = merge(nested, inner)
    return nested


def read_value(name: str, text: str) -> Any:
    """The value of a flag that is written as in a file, such as `{alpha: 0.2}` or `[2, 2]`.

    Raises:
        UsageError: it is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        message = f"{name} = {text}: not YAML; write it as in a file, say {{alpha: 0.2}}"
        raise UsageError(message) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Nested settings from a YAML file.

    Raises:
        UsageError: the file is missing or is no table of settings.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no settings: write lines like `epochs: 20`")
    return values


def list_packaged(kind: str) -> dict[str, str]:
    """The packaged "recipes" or "sweeps": name -> the first comment line of the file."""
    folder = resources.files("adautomix.config") / kind
    found = {}
    for group in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if group.is_dir():
            for file in sorted(group.iterdir(), key=lambda entry: entry.name):
                if file.name.endswith(".yaml"):
                    first = file.read_text(encoding="utf-8").splitlines()[0]
                    found[f"{group.name}/{file.name[:-5]}"] = first.lstrip("# ")
    return found


def read_packaged(kind: str, name: str) -> dict[str, Any]:
    """What one of the packaged "recipes" or "sweeps" holds.

    Raises:
        UsageError: there is none of that name; the nearest is named.
    """
    if name not in (known := list_packaged(kind)):
        listing = f"`adautomix {kind}` lists them all"
        raise UsageError(unknown_name(kind.removesuffix("s"), name, known, listing))
    with resources.as_file(resources.files("adautomix.config") / kind / f"{name}.yaml") as path:
        return read_yaml(path)
