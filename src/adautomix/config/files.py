"""Read nested settings from YAML files and packaged recipes, and merge them."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from adautomix.errors import UsageError, unknown_name


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings in which those of `over` override those of `base`."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            merge(below, value)
            if isinstance(below, Mapping) and isinstance(value, Mapping)
            else value
        )
    return merged


def unflatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted settings as nested ones: `{"adautomix.beta": 0.3}` as `{"adautomix": …}`.

    Names may use dashes for underscores. Text is left for pydantic to convert, with two
    exceptions: `none` becomes None, and tables (`{alpha: 0.2}`) as well as the options of timm,
    which have no types here, are read as YAML.

    Raises:
        UsageError: A table is not valid YAML.
    """
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        *groups, last = name.replace("-", "_").split(".")
        inner: Any = None if value == "none" else value
        if groups == ["model_options"] or str(value).startswith("{"):
            inner = parse_yaml(name, str(inner))
        for group in [last, *reversed(groups)]:
            inner = {group: inner}
        nested = merge(nested, inner)
    return nested


def parse_yaml(name: str, text: str) -> Any:
    """Return the value of a setting that is written in YAML, such as `{alpha: 0.2}` or `[2, 2]`.

    Raises:
        UsageError: The text is not valid YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        message = f"{name} = {text}: not YAML; write it as in a file, say {{alpha: 0.2}}"
        raise UsageError(message) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the nested settings of a YAML file.

    Raises:
        UsageError: The file is missing or does not hold a table of settings.
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
    """Return the packaged YAML files of a kind as name -> first comment line of the file.

    Args:
        kind: A folder of this package, such as "sweeps"; files are in folders below it.
    """
    folder = resources.files("adautomix.config") / kind
    summaries = {}
    for group in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if group.is_dir():
            for file in sorted(group.iterdir(), key=lambda entry: entry.name):
                if file.name.endswith(".yaml"):
                    first = file.read_text(encoding="utf-8").splitlines()[0]
                    summaries[f"{group.name}/{file.name[:-5]}"] = first.lstrip("# ")
    return summaries


def read_packaged(kind: str, name: str) -> dict[str, Any]:
    """Return the content of a packaged YAML file of a kind, such as "sweeps".

    Raises:
        UsageError: There is none of that name; the message suggests the nearest.
    """
    if name not in (known := list_packaged(kind)):
        listing = f"`adautomix {kind}` lists them all"
        raise UsageError(unknown_name(kind.removesuffix("s"), name, known, listing))
    with resources.as_file(resources.files("adautomix.config") / kind / f"{name}.yaml") as path:
        return read_yaml(path)
