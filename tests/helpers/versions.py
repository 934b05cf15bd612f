"""Test the lowest and the newest supported libraries with each supported Python.

    python tests/helpers/versions.py --resolve-only
    python tests/helpers/versions.py --pythons 3.11 --resolutions lowest-direct

Each environment takes up to 6 GB in a temporary folder, which is deleted before the next one is
made. A Python that uv neither finds nor can fetch, and libraries without wheels for it, are named
and left out. Needs uv on the PATH.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
RESOLUTIONS = ("lowest-direct", "highest")
SHOWN = ("torch", "torchvision", "timm", "numpy", "pillow", "pydantic")
TESTED = (
    "tests/test_public_api.py",
    "tests/test_functional.py",
    "tests/test_files.py",
    "tests/config/test_config.py",
    "tests/decoder/test_untrusted_files.py",
    "tests/methods/test_golden.py",
    "tests/models/test_arguments.py",
    "tests/runs/test_checkpoint.py",
    "tests/runs/test_old_runs.py",
)
"""Tests that touch every library, and read the run folders of released versions."""


@dataclass(frozen=True)
class Environment:
    """Libraries to test.

    Attributes:
        python: version of Python.
        resolution: "lowest-direct", the lowest version that each dependency allows; or "highest".
    """

    python: str
    resolution: str

    def __str__(self) -> str:
        return f"Python {self.python}, {self.resolution}"


def resolve(one: Environment) -> dict[str, str]:
    """Return the version of each library, without installing any.

    Raises:
        subprocess.CalledProcessError: there are none that fit one another.
    """
    words = ["pip", "compile", "pyproject.toml", "--quiet", "--no-header", "--no-annotate"]
    words += ["--python-version", one.python, "--resolution", one.resolution]
    found = re.findall(r"^([\w-]+)==(\S+)", uv(*words), re.MULTILINE)
    return dict(found)


def tested_in(one: Environment, folder: Path) -> str:
    """Install an environment, run the tests in it, and return the last line that pytest prints.

    Raises:
        subprocess.CalledProcessError: it cannot be installed, or a test fails.
    """
    uv("venv", "--quiet", "--python", one.python, str(folder))
    python = folder / "bin" / "python"
    install = ("pip", "install", "--quiet", "--python", str(python), "--resolution", one.resolution)
    uv(*install, "--editable", ".")
    uv(*install[:-1], "highest", "pytest", "hypothesis")
    quiet = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow")
    done = subprocess.run(
        [python, "-m", "pytest", *quiet, *TESTED],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def uv(*words: str) -> str:
    """Run uv in the root of the repository and return what it prints."""
    done = subprocess.run(["uv", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def reason(error: subprocess.CalledProcessError) -> str:
    """Return why a command failed, in one line."""
    lines = ((error.stderr or "") + (error.stdout or "")).strip().splitlines() or [str(error)]
    return " ".join(line.strip() for line in lines[-3:])


def constraints_fit() -> list[str]:
    """Return the pins of constraints.txt that pyproject.toml does not allow; none is expected."""
    from packaging.requirements import Requirement

    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(one) for one in project["dependencies"]]
    return [
        f"{one} is pinned to {pins[one.name]}"
        for one in wanted
        if one.name in pins and pins[one.name] not in one.specifier
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pythons", default=",".join(PYTHONS))
    parser.add_argument("--resolutions", default=",".join(RESOLUTIONS))
    parser.add_argument("--resolve-only", action="store_true", help="install and test nothing")
    options = parser.parse_args(arguments)
    failures = constraints_fit()
    for line in failures:
        print(line)
    for python in options.pythons.split(","):
        for resolution in options.resolutions.split(","):
            one = Environment(python, resolution)
            folder = Path(tempfile.mkdtemp()) / "env"
            try:
                found = resolve(one)
                versions = ", ".join(f"{name} {found[name]}" for name in SHOWN)
                result = "" if options.resolve_only else tested_in(one, folder)
                print(f"{one}: {versions} {result}", flush=True)
            except subprocess.CalledProcessError as error:
                failures.append(str(one))
                print(f"{one}: {reason(error)}", flush=True)
            finally:
                shutil.rmtree(folder.parent, ignore_errors=True)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
