"""Describe settings for help texts, listings and shell completion, from their pydantic models."""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from adautomix.config.schema import TrainConfig

_TYPE_NAMES = {bool: "BOOL", int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Setting:
    """One setting, as help shows it.

    Attributes:
        name: Dotted name, such as `teacher.momentum`.
        group: Title of the group that help lists it in.
        type: Name of the type, such as `INT`, or the choices joined by "|".
        choices: The accepted words, if there are few.
        bounds: Accepted range, such as `x>=1`; "" if there is none.
        default: Default value as text; "none" for None.
        description: What the setting controls.
    """

    name: str
    group: str
    type: str
    choices: tuple[str, ...]
    bounds: str
    default: str
    description: str

    @property
    def is_switch(self) -> bool:
        """Whether the setting is a boolean."""
        return self.type == "BOOL"

    @property
    def is_table(self) -> bool:
        """Whether the setting holds further settings of arbitrary names."""
        return self.type == "YAML"


def run_settings() -> list[Setting]:
    """The settings that every run has, in the order of their groups."""
    return list(_describe("", TrainConfig))


def method_settings(name: str) -> list[Setting]:
    """The settings of one method; imports PyTorch.

    Raises:
        UsageError: There is no such method.
    """
    from adautomix.methods import find_method

    return list(_describe(f"{name}.", find_method(name).Settings, f"Method {name}"))


def model_settings(name: str, model: type[BaseModel], group: str) -> list[Setting]:
    """The settings of any model, as the group `name` under the title `group`."""
    return list(_describe(f"{name}.", model, group))


def _describe(prefix: str, model: type[BaseModel], group: str = "") -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from _describe(f"{prefix}{name}.", type(field.default), group)
            continue
        typed = _without_none(field.annotation)
        yield Setting(
            name=prefix + name,
            group=group or _title_of(model, name),
            type=_type_name(typed),
            choices=get_args(typed) if get_origin(typed) is Literal else (),
            bounds=_bounds(field),
            default=_default_text(field.default),
            description=field.description or "",
        )


def _title_of(model: type[BaseModel], name: str) -> str:
    """Title of the class that declares a field: of `model` itself or of one of its bases."""
    models = [cls for cls in reversed(model.__mro__) if issubclass(cls, BaseModel)]
    declaring = next(cls for cls in models if name in cls.model_fields)
    return declaring.model_config.get("title") or ""


def _default_text(value: Any) -> str:
    """A default as it would be written on the command line."""
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def _without_none(annotation: Any) -> Any:
    """`X` for `X | None`, and any other annotation as it is."""
    if get_origin(annotation) in (types.UnionType, Union):
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return f"{_type_name(get_args(annotation)[0])},…"
    return _TYPE_NAMES.get(annotation, "YAML")


def _bounds(field: FieldInfo) -> str:
    """The accepted range as click writes it, `0<x<=1` or `x>=1`; "" if there is none."""
    limits = {
        key: f"{getattr(limit, key):g}"
        for limit in field.metadata
        for key in ("gt", "ge", "lt", "le")
        if hasattr(limit, key)
    }
    upper = "".join(
        sign + limits[key] for key, sign in (("lt", "<"), ("le", "<=")) if key in limits
    )
    if upper:
        lower = [limits[key] + sign for key, sign in (("gt", "<"), ("ge", "<=")) if key in limits]
    else:
        lower = []
        upper = "".join(
            sign + limits[key] for key, sign in (("gt", ">"), ("ge", ">=")) if key in limits
        )
    return "".join(lower) + "x" + upper if upper else ""
