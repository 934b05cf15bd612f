"""The user's own code by its address: `my_mix.py:make_mixer`, `timm.data:Mixup`."""

import importlib
import inspect
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from adautomix.errors import UsageError


def load_named(address: str, default: str = "") -> Any:
    """What `path.py:name` or `module:name` names.

    Args:
        address: a file or an importable module, a colon, a name at its top.
        default: the name where none is given.

    Raises:
        UsageError: there is no such file, module or name.
    """
    place, _, name = address.partition(":")
    name = name or default
    if not name:
        raise UsageError(f"{address!r} names no attribute: write path.py:name or module:name")
    module = load_file(Path(place)) if place.endswith(".py") else load_module(place)
    if not hasattr(module, name):
        raise UsageError(f"{place} has no {name!r}: write it at the top of the file")
    return getattr(module, name)


def load_file(path: Path) -> ModuleType:
    """Run a file as a module; what lies beside it can be imported, as when Python runs it."""
    if not path.is_file():
        raise UsageError(f"no file {path}: write path.py:name")
    name = f"{path.stem.replace('.', '_')}_script"
    spec = spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    make_importable(path.resolve().parent)
    spec.loader.exec_module(module)
    return module


def load_module(name: str) -> ModuleType:
    """Import a module, also from the present folder."""
    make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"no module {error.name!r}: install it, or write path.py:name for a file"
        ) from error


def make_importable(folder: Path) -> None:
    """Let the modules of a folder be imported."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def address_of(function: Callable[..., Any]) -> str:
    """The address under which another process finds a function.

    Raises:
        UsageError: it is not at the top of a file.
    """
    name = getattr(function, "__qualname__", "<nameless>")
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    if file is None or not name.isidentifier():
        raise UsageError(f"{name} is not at the top of a file: other processes cannot find it")
    # A file in a package may import from beside it, which only its module name allows.
    module = function.__module__
    return f"{module if '.' in module else file}:{name}"
