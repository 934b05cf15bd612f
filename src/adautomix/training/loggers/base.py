"""What a logger is, and what all loggers share."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from adautomix.errors import UsageError
from adautomix.files import atomic_write, read_json
from adautomix.runs.folder import LOGGER_IDS
from adautomix.runs.schema import Row

_ID = re.compile(r"[\w-]{1,128}")


class Logger(Protocol):
    """Receives the rows of a run, in the main process."""

    def add(self, row: Row) -> None:
        """Log one row of `metrics.jsonl`."""

    def close(self, *, finished: bool) -> None:
        """Write what is left; `finished` is whether the run came to its end."""


def numbers(row: Row) -> dict[str, float]:
    """Return every number of a row, named by its kind and path, such as "epoch/teacher/top1"."""
    fields = row.model_dump(exclude={"schema_version", "kind", "step"})
    return {f"{row.kind}/{name}": value for name, value in scalars(fields)}


def scalars(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested dictionaries, each with its path."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted names, such as "teacher.momentum"."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def known_id(run: Path, logger: str) -> str | None:
    """Return the name that a service gave to this run when it started; None if it knows none."""
    path = run / LOGGER_IDS
    if not path.is_file():
        return None
    known = read_json(path, "delete the file, and the services log a new run")
    found = known.get(logger) if isinstance(known, dict) else None
    if found is not None and not (isinstance(found, str) and _ID.fullmatch(found)):
        raise UsageError(f"{path} has a wrong {logger}: delete the file")
    return found


def remember_id(run: Path, logger: str, name: str) -> None:
    """Write down the name that a service gave to this run, for `resume`."""
    path = run / LOGGER_IDS
    known = read_json(path, "delete the file") if path.is_file() else {}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({**known, logger: name}) + "\n", encoding="utf-8")
