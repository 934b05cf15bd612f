"""Sweeps: named variants of the settings of a run, to be trained with the same seeds.

A file of its own or a packaged one, such as `adautomix/n`, holds

    # what is varied, on the first line
    common: {method: adautomix}         # settings of all variants, if any
    variants:
      N=2: {adautomix: {n: 2}}
      N=3: {adautomix: {n: 3}}

The settings of a variant win over the common ones, and those over recipe, file and flags.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from adautomix.config import list_packaged, merge, read_packaged, read_yaml
from adautomix.errors import UsageError

Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.,=+-]*$")]
"""Of a variant: it names the run folders, too."""


class Sweep(BaseModel):
    """What a file of a sweep holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    common: dict[str, Any] = {}
    variants: dict[Name, dict[str, Any]] = Field(min_length=1)


def read_sweep(name: str) -> dict[str, dict[str, Any]]:
    """The variants of a sweep by name, each with all its settings and labeled by its name.

    Args:
        name: of a packaged sweep, or the path of a YAML file.

    Raises:
        UsageError: there is none of that name, and the nearest is told; or the file is no sweep.
    """
    own = Path(name).suffix in (".yaml", ".yml")
    sweep = check_sweep(name, read_yaml(Path(name)) if own else read_packaged("sweeps", name))
    return {
        variant: merge(merge(sweep.common, settings), {"label": variant})
        for variant, settings in sweep.variants.items()
    }


def check_sweep(name: str, values: dict[str, Any]) -> Sweep:
    """What a file holds, as a sweep.

    Raises:
        UsageError: it is none; the place and what is wrong there are told.
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
    """Packaged sweeps as (name, what is varied, names of the variants)."""
    return [
        (name, summary, ", ".join(read_sweep(name)))
        for name, summary in list_packaged("sweeps").items()
    ]
