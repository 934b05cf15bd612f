"""Load the user's own code by its address: `my_mix.py:make_mixer`, `timm.data:Mixup`."""

import ast
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
    """Load the object with the address `path.py:name` or `module:name`.

    Args:
        address: a Python file or an importable module, a colon, and the name of a top-level object.
        default: the name to use if the address has none.

    Raises:
        UsageError: there is no such file, module or name.
    """
    place, _, name = address.partition(":")
    name = name or default
    if not name:
        raise UsageError(f"{address!r} names no attribute: write path.py:name or module:name")
    if default and name == default and place.endswith(".py"):
        check_defines(Path(place), default)
    module = load_file(Path(place)) if place.endswith(".py") else load_module(place)
    if not hasattr(module, name):
        raise UsageError(f"{place} has no {name!r}: define it at the top level of the file")
    return getattr(module, name)


def check_defines(path: Path, name: str) -> None:
    """Check, without running anything, that a Python file defines a name at its top level.

    Raises:
        UsageError: it does not, and imports nothing that could; the message says what to write.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # reported when the file is run
    bound = {one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.ClassDef)}
    bound |= {one.id for one in ast.walk(tree) if isinstance(one, ast.Name)}
    bound |= {one.asname or one.name for one in ast.walk(tree) if isinstance(one, ast.alias)}
    if name not in bound and "*" not in bound:
        raise UsageError(
            f"{path} has no {name!r}: write `def {name}():` that returns an "
            "adautomix.checks.doctor.Loop, as docs/doctor.md shows, or name another function, "
            f"{path}:NAME; nothing was run"
        )


def load_file(path: Path) -> ModuleType:
    """Execute a Python file as a module; it can import its neighbors, as when Python runs it.

    Raises:
        UsageError: there is no such file.
    """
    if not path.is_file():
        raise UsageError(f"no file {path}: write path.py:name")
    name = f"{path.stem.replace('.', '_')}_script"
    spec = spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look up their module there
    make_importable(path.resolve().parent)
    spec.loader.exec_module(module)
    return module


def load_module(name: str) -> ModuleType:
    """Import a module, also from the current folder.

    Raises:
        UsageError: the module, or one that it imports, is not installed.
    """
    make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"no module {error.name!r}: install it, or write path.py:name for a file"
        ) from error


def make_importable(folder: Path) -> None:
    """Add a folder to the import path."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def address_of(function: Callable[..., Any]) -> str:
    """The address with which another process can load a function.

    Raises:
        UsageError: the function is not defined at the top level of a file.
    """
    name = getattr(function, "__qualname__", "<nameless>")
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    if file is None or not name.isidentifier():
        raise UsageError(
            f"{name} is not at the top level of a file: other processes cannot find it"
        )
    # A file of a package may use relative imports, which need the module's name.
    module = function.__module__
    return f"{module if '.' in module else file}:{name}"
