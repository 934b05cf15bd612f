"""The layout holds: modules import downward only, and never in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "adautomix"

# Each layer imports only from layers before it, or from its own folder.
LAYERS = [
    {"version", "errors"},
    {"rng", "validation", "files", "subsample", "commit"},
    {"distributed"},
    {"device"},
    {"models", "inputs"},
    {"data"},
    {"mixing"},
    {"metrics"},
    {"methods"},
    {"config"},
    {"ema"},
    {"functional", "mix_loss"},
    {"runs"},
    {"pictures"},
    {"training"},
    {"evaluation"},
    {"checks", "bench"},
    {"reporting"},
    {"tables"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in ROOT.rglob("*.py") if "templates" not in path.parts}


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adautomix"):
            base = (node.module or "").removeprefix("adautomix").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                yield inner if inner in MODULES else base or "__init__"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "adautomix":
                    yield alias.name.removeprefix("adautomix").removeprefix(".") or "__init__"


GRAPH = {name: set(imports(path)) - {name} for name, path in MODULES.items()}


def top(module: str) -> str:
    return module.split(".")[0]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other."""
    reached = {node: reachable(graph, node) for node in graph}
    return [
        sorted({node, *(other for other in reached[node] if node in reached.get(other, set()))})
        for node in graph
        if node in reached[node]
    ]


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph.get(start, ()))
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += graph.get(node, ())
    return seen


def test_every_module_has_a_layer() -> None:
    assert {top(name) for name in MODULES} - set(LEVEL) == set()


def test_no_file_imports_itself_through_others() -> None:
    assert circles(GRAPH) == []


def test_no_folder_imports_itself_through_others() -> None:
    folders: dict[str, set[str]] = {top(name): set() for name in GRAPH}
    for name, targets in GRAPH.items():
        folders[top(name)] |= {top(target) for target in targets} - {top(name)}
    assert circles(folders) == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_downward(name: str) -> None:
    own = LEVEL[top(name)]
    upward = [t for t in GRAPH[name] if top(t) != top(name) and LEVEL[top(t)] >= own]
    assert upward == []
