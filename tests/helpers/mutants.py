"""Mutation testing: change one operator, constant or condition at a time; do the tests fail?

    make mutants COUNT=100

A mutant that no test notices is a gap in the tests, or a change that changes nothing. Every mutant
runs in a fork of a process that has imported PyTorch already, and against the tests named beside
its file only, which makes the score a lower bound. The sample depends on the seed alone.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import random
import signal
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNCHANGED = -1  # index of a mutant without a change, whose tests must pass
SECONDS = 240  # after which a mutant counts as noticed: it made a test hang

TESTS = {
    "methods/mixup.py": ("methods/test_methods.py", "methods/test_mask_labels.py"),
    "methods/cutmix.py": ("methods/test_methods.py", "methods/test_mask_labels.py"),
    "methods/resizemix.py": ("methods/test_resizemix.py", "methods/test_mask_labels.py"),
    "methods/gridmix.py": ("methods/test_gridmix.py", "methods/test_mask_labels.py"),
    "methods/smoothmix.py": ("methods/test_smoothmix.py", "methods/test_mask_labels.py"),
    "methods/fmix.py": ("methods/test_fmix.py", "methods/test_mask_labels.py"),
    "methods/cutout.py": ("methods/test_cutout.py", "methods/test_mask_labels.py"),
    "mixing/boxes.py": ("methods/test_methods.py", "methods/test_resizemix.py"),
    "runs/checkpoint.py": ("runs/test_checkpoint.py",),
    "files.py": ("test_files.py", "runs/test_checkpoint.py"),
    "data/partition.py": ("data/test_data.py",),
    "data/balance.py": ("data/test_balance.py",),
    "data/erasing.py": ("data/test_erasing.py",),
    "data/augment.py": ("data/test_augment.py",),
    "decoder/reading.py": ("decoder/test_untrusted_files.py", "decoder/test_crops.py"),
    "decoder/files.py": ("decoder/test_untrusted_files.py",),
}
"""The tests of each file, below `tests/`; files are below `src/adautomix/`."""

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: the file, below `src/adautomix/`.
        index: number of the change among those of the file.
        line: the line that changes.
        before: its expression in source code, and `after` the changed one.
    """

    file: str
    index: int
    line: int
    before: str
    after: str


# ---------------------------------------------------------------------- changes


def changes(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield each expression or statement that can change, with what replaces it."""
    for node in living(tree):
        if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
            yield node, changed(node, op=SWAPS[type(node.op)]())
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield node, changed(node, ops=[SWAPS[type(node.ops[0])](), *node.ops[1:]])
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield node, node.operand
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            other = not node.value if isinstance(node.value, bool) else node.value + 1
            yield node, ast.Constant(other)
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            yield node.test, ast.UnaryOp(ast.Not(), node.test)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield node, ast.Pass()
        elif isinstance(node, ast.Return) and node.value is not None:
            yield node, ast.Return(ast.Constant(None))


def living(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below one, without annotations, docstrings and what is raised."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "exc", "msg", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield child
                yield from living(child)


def changed(node: ast.AST, **fields: object) -> ast.AST:
    """A copy of a node with other fields."""
    found = copy.copy(node)
    for name, value in fields.items():
        setattr(found, name, value)
    return found


class Replace(ast.NodeTransformer):
    """Replaces one node."""

    def __init__(self, node: ast.AST, other: ast.AST) -> None:
        self.node, self.other = node, other

    def visit(self, node: ast.AST) -> ast.AST:
        """Replace the node, or look below it."""
        return self.other if node is self.node else self.generic_visit(node)


def mutants_of(file: str) -> list[Mutant]:
    """List all changes of a file."""
    tree = ast.parse((ROOT / "src" / "adautomix" / file).read_text(encoding="utf-8"))
    return [
        Mutant(file, index, getattr(node, "lineno", 0), short(node), short(other))
        for index, (node, other) in enumerate(changes(tree))
    ]


def short(node: ast.AST) -> str:
    """The first line of a node's source code."""
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).splitlines()[0][:70]


def mutated(mutant: Mutant) -> types.CodeType:
    """The code of a changed file."""
    path = ROOT / "src" / "adautomix" / mutant.file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if mutant.index == UNCHANGED:
        return compile(tree, str(path), "exec")
    node, other = list(changes(tree))[mutant.index]
    ast.copy_location(other, node)
    Replace(node, other).visit(tree)
    return compile(ast.fix_missing_locations(tree), str(path), "exec")


# ---------------------------------------------------------------------- tests


def noticed(mutant: Mutant) -> bool:
    """Whether the tests of a file fail with the change; in a fork, which it leaves no trace in."""
    child = os.fork()
    if child == 0:
        status = 0
        try:
            status = run_tests(mutant)
        except BaseException:
            status = 1
        os._exit(status != 0)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def run_tests(mutant: Mutant) -> int:
    """Run the tests of a file in this process, whose module is changed first; 0 if they pass."""
    name = "adautomix." + mutant.file.removesuffix(".py").replace("/", ".")
    sys.meta_path.insert(0, Finder(name, mutated(mutant)))
    forget()  # pytest imports the tests, and they us, after the change
    tests = [str(ROOT / "tests" / test) for test in TESTS[mutant.file]]
    quiet = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return int(pytest.main([*quiet, f"--rootdir={ROOT}", *tests]))


def forget() -> None:
    """Forget the package's modules, so that all of them see the changed one."""
    for known in [known for known in sys.modules if known.partition(".")[0] == "adautomix"]:
        del sys.modules[known]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from changed code."""

    def __init__(self, name: str, code: types.CodeType) -> None:
        self.name, self.code = name, code

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the changed module only."""
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.code.co_filename, loader=self)

    def exec_module(self, module: types.ModuleType) -> None:
        """Run the changed code."""
        exec(self.code, module.__dict__)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=100, help="how many mutants to try")
    parser.add_argument("--seed", type=int, default=0, help="which ones are drawn")
    parser.add_argument("--minutes", type=float, default=1e9, help="when to stop")
    parser.add_argument("--files", help="files below src/adautomix, comma-separated; none: all")
    options = parser.parse_args()
    started = time.monotonic()
    files = options.files.split(",") if options.files else list(TESTS)
    importlib.import_module("adautomix.training.run")  # PyTorch, timm and all of us, once
    everything = [mutant for file in files for mutant in mutants_of(file)]
    drawn = random.Random(options.seed).sample(everything, min(options.count, len(everything)))
    tried = killed = 0
    passing: dict[str, bool] = {}
    for mutant in drawn:
        if time.monotonic() - started > 60 * options.minutes:
            break
        if mutant.file not in passing:
            passing[mutant.file] = not noticed(Mutant(mutant.file, UNCHANGED, 0, "", ""))
        if not passing[mutant.file]:
            print(f"left out: the tests of {mutant.file} fail without a change", flush=True)
            continue
        tried += 1
        if noticed(mutant):
            killed += 1
        else:
            place = f"{mutant.file}:{mutant.line}"
            print(f"survived: {place}: {mutant.before}  →  {mutant.after}", flush=True)
        if tried % 10 == 0:
            print(f"{tried} tried, {killed} noticed", flush=True)
    minutes = (time.monotonic() - started) / 60
    share = 100 * killed / max(1, tried)
    print(
        f"{tried} of {len(everything)} mutants in {len(files)} files, seed {options.seed}: "
        f"{killed} noticed, {share:.0f} %, {minutes:.1f} minutes"
    )


if __name__ == "__main__":
    main()
