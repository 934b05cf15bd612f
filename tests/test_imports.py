"""Import statements of the package: no cycles, and no import of a higher layer."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import adautomix

PACKAGE = Path(adautomix.__file__).parent
NAME = adautomix.__name__
# Programs that are copied to users and import nothing of the package.
NOT_IMPORTED = PACKAGE / "runs" / "templates"

LAYERS = (
    ("version", "errors", "text", "decoder"),
    ("rng", "validation", "files", "subsample", "commit"),
    ("distributed",),
    ("device",),
    ("models", "inputs"),
    ("data",),
    ("mixing",),
    ("metrics", "class_results"),
    ("methods",),
    ("config",),
    ("ema",),
    ("functional", "mix_loss"),
    ("runs",),
    ("pictures",),
    ("training",),
    ("evaluation",),
    ("checks", "bench"),
    ("reporting",),
    ("tables",),
    ("cli",),
    ("__init__", "__main__"),
)
"""Modules and packages from the lowest layer to the highest.

A file may import from lower layers and from its own package, but not from its neighbors in a layer.
"""

Graph = Mapping[str, set[str]]


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    parts = (NAME, *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def top_level(module: str) -> str:
    """Return the module or package directly below `adautomix` that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield what a file imports, also inside functions: modules, or names of modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used in this package"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str, modules: Graph | set[str]) -> str | None:
    """Return the module that a dotted name is, or is defined in; None for other packages."""
    while name not in modules:
        name, _, last = name.rpartition(".")
        if not last:
            return None
    return name


@pytest.fixture(scope="module")
def imports() -> Graph:
    """The modules of the package that each module imports."""
    files = [path for path in PACKAGE.rglob("*.py") if NOT_IMPORTED not in path.parents]
    modules = {module_name(path): path for path in files}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = imported_names(ast.parse(path.read_text(encoding="utf-8")))
        targets = {module_of(name, set(modules)) for name in names}
        graph[module] = {target for target in targets if target is not None} - {module}
    return graph


def packages(imports: Graph) -> Graph:
    """Return which top-level modules and packages import each other."""
    graph: defaultdict[str, set[str]] = defaultdict(set)
    for module, targets in imports.items():
        graph[top_level(module)] |= {top_level(target) for target in targets}
    return {package: targets - {package} for package, targets in graph.items()}


def find_cycle(graph: Graph) -> list[str]:
    """Return the nodes of a cycle in order, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_files_import_each_other_without_cycles(imports: Graph) -> None:
    assert find_cycle(imports) == []


def test_packages_import_each_other_without_cycles(imports: Graph) -> None:
    assert find_cycle(packages(imports)) == []


def test_files_import_only_lower_layers(imports: Graph) -> None:
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    upward = [
        f"{module} imports {target}"
        for module, targets in imports.items()
        for target in targets
        if top_level(target) != top_level(module)
        and layer[top_level(target)] >= layer[top_level(module)]
    ]
    assert upward == []


def test_every_module_has_a_layer(imports: Graph) -> None:
    names = [name for names in LAYERS for name in names]
    assert len(names) == len(set(names))
    assert set(names) == {top_level(module) for module in imports}


def test_imports_are_found_at_top_level_and_inside_functions() -> None:
    code = "import a.b\nfrom c import d as e\ndef f():\n    from g.h import (i, j)\n"
    assert list(imported_names(ast.parse(code))) == ["a.b", "c.d", "g.h.i", "g.h.j"]
    assert module_of("a.b.name", {"a", "a.b"}) == "a.b"
    assert module_of("torch.nn", {"a", "a.b"}) is None
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}
