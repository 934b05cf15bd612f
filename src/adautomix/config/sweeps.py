"""Sweeps: named variants of the settings of a run, trained with the same seeds.

A sweep is a YAML file, packaged (such as `adautomix/n`) or your own:

    # what is varied, on the first line
    common: {method: adautomix}         # settings of all variants, if any
    variants:
      N=2: {adautomix: {n: 2}}
      N=3: {adautomix: {n: 3}}

The settings of a variant override the common ones, and those override recipe, file and flags.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from adautomix.config import list_packaged, merge, read_packaged, read_yaml
from adautomix.errors import UsageError

Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.,=+-]*$")]
"""Name of a variant. It becomes part of the names of run folders."""


class Sweep(BaseModel):
    """The content of a sweep file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    common: dict[str, Any] = {}
    variants: dict[Name, dict[str, Any]] = Field(min_length=1)


def read_sweep(name: str) -> dict[str, dict[str, Any]]:
    """Return the variants of a sweep by name, each with all its settings and its name as label.

    Args:
        name: Name of a packaged sweep, or path of a YAML file.

    Raises:
        UsageError: There is no sweep of that name (the message suggests the nearest), or the file
            is not a sweep.
    """
    is_file = Path(name).suffix in (".yaml", ".yml")
    sweep = check_sweep(name, read_yaml(Path(name)) if is_file else read_packaged("sweeps", name))
    return {
        variant: merge(merge(sweep.common, settings), {"label": variant})
        for variant, settings in sweep.variants.items()
    }


def check_sweep(name: str, values: dict[str, Any]) -> Sweep:
    """Return the content of a file as a sweep.

    Raises:
        UsageError: It is not a sweep; the message names the place and the problem.
    """
    try:
        return Sweep.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"] if part != "[key]")
        raise UsageError(
            f"{name}, {place}: {problem['msg'].lower()}; write `variants:` and below it a line "
            "for each, such as `N=2: {adautomix: {n: 2}}`"
        ) from None


def list_sweeps() -> list[tuple[str, str, str]]:
    """Return the packaged sweeps as (name, what is varied, names of the variants)."""
    return [
        (name, summary, ", ".join(read_sweep(name)))
        for name, summary in list_packaged("sweeps").items()
    ]
