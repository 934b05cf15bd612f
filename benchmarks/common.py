"""What the benchmark scripts share: settings on their command lines."""

import argparse
from collections.abc import Sequence
from typing import Any

import yaml

from adautomix.config import merge


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Accept settings of `adautomix train` as `name=value` words, such as `width=0.25`."""
    parser.add_argument(
        "settings", nargs="*", metavar="NAME=VALUE", help="settings of `adautomix train`"
    )


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """Nested settings from `name=value` words; values are YAML and dots open groups.

    Raises:
        SystemExit: a word has no `=`.
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise SystemExit(f"{word}: write settings as name=value, for example width=0.25")
        value = yaml.safe_load(text)
        for part in reversed(name.split(".")):
            value = {part: value}
        settings = merge(settings, value)
    return settings
