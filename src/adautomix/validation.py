"""Turn failed validation into one line that names the setting and the remedy."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ValidationError

from adautomix.errors import UsageError, unknown_name
from adautomix.text import printable

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4000


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Error message for an unknown setting, with the nearest known one as a suggestion."""
    listing = "`adautomix settings` lists them all"
    return unknown_name("setting", name, known, listing, quote=False)


def split_commas(value: Any) -> Any:
    """Return comma-separated values as a tuple of strings; others are left to pydantic."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def check_path(name: str, value: object) -> None:
    """Check that a path is one that a file system can hold.

    Args:
        name: the setting, for the message of an error.
        value: the path.

    Raises:
        UsageError: it holds a NUL byte, or is longer than Linux, macOS and Windows allow.
    """
    parts = str(value).encode("utf-8", "surrogatepass").split(b"/")
    longest = max(len(part) for part in parts)
    if (
        longest > MAX_NAME_BYTES
        or sum(map(len, parts)) > MAX_PATH_BYTES
        or b"\0" in b"".join(parts)
    ):
        raise UsageError(f"{name} = {printable(repr(str(value)))}: no file has such a name")


@contextmanager
def one_line_errors(group: str = "", known: Callable[[], Iterable[str]] = tuple) -> Iterator[None]:
    """Turn a failed validation into one line with the setting's name as its flag has it.

    Args:
        group: prefix of the settings that are validated.
        known: returns the names of all settings, to suggest the nearest one.

    Raises:
        UsageError: the validation failed.
    """
    try:
        yield
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join([*([group] if group else []), *map(str, problem["loc"])])
        if problem["type"] == "extra_forbidden":
            raise UsageError(unknown_setting(name, known())) from None
        message = problem["msg"][0].lower() + problem["msg"][1:]
        raise UsageError(f"{name} = {printable(repr(problem['input']))}: {message}") from None


def field_rows(prefix: str, model: type[BaseModel]) -> list[tuple[str, str, str]]:
    """The settings of one model as (dotted name, default, description), groups unfolded."""
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            rows += field_rows(f"{prefix}{name}.", type(field.default))
        else:
            default = "none" if field.default is None else str(field.default)
            rows.append((prefix + name, default, field.description or ""))
    return rows


def setting_names(prefix: str, model: type[BaseModel]) -> list[str]:
    """Dotted names of the settings of one model."""
    return [row[0] for row in field_rows(prefix, model)]
