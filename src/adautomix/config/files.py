"""Read nested settings from YAML files and packaged recipes, and merge them."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from adautomix.errors import UsageError, unknown_name
from adautomix.files import read_text

MAX_YAML_BYTES = 2**20
MAX_YAML_DEPTH = 40
MAX_YAML_NODES = 20_000


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
        return load_yaml(text)
    except ValueError:
        message = f"{name} = {text}: not YAML; write it as in a file, say {{alpha: 0.2}}"
        raise UsageError(message) from None


def read_yaml(path: Path, remedy: str = "write lines like `epochs: 20`") -> dict[str, Any]:
    """Return the nested settings of a YAML file.

    Args:
        path: The file, which may have been written by somebody else.
        remedy: What to do about a damaged file, for the message of an error.

    Raises:
        UsageError: The file is missing or does not hold a table of settings.
    """
    text = read_text(path, remedy, max_bytes=MAX_YAML_BYTES)
    try:
        values = load_yaml(text)
    except ValueError as error:
        raise UsageError(f"{path} is not YAML: {error}: {remedy}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no settings: {remedy}")
    return values


def load_yaml(text: str) -> Any:
    """Return the plain values in a YAML text.

    Raises:
        ValueError: The text is not valid YAML, or stands for more values than settings have.
    """
    try:
        return yaml.load(text, BoundedLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    except (ValueError, OverflowError, RecursionError) as error:  # such as the date 2024-13-45
        raise ValueError(str(error)) from None


class BoundedLoader(yaml.SafeLoader):
    """Reads plain values, and refuses a text that grows out of all proportion.

    An alias (`*name`) stands for a whole subtree, so that nested ones can multiply a few lines into
    billions of values.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.count = 0
        self.depth = 0
        self.counts: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read one node, counting the nodes that it stands for."""
        before, self.depth = self.count, self.depth + 1
        is_alias = self.check_event(yaml.AliasEvent)
        if self.depth > MAX_YAML_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MAX_YAML_DEPTH} levels deep")
        node: yaml.Node | None = super().compose_node(parent, index)
        # A subtree is only counted once it is complete: one that contains itself never is.
        self.count += self.counts.get(id(node), MAX_YAML_NODES + 1) if is_alias else 1
        if self.count > MAX_YAML_NODES:
            raise yaml.YAMLError(f"it stands for more than {MAX_YAML_NODES} values")
        self.counts[id(node)] = self.count - before
        self.depth -= 1
        return node


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
