"""Benchmark results as rows of data: one line of JSON per measurement, with its origin.

A row names the processor, library versions, commit and command. It never names the machine: no host
name, no user, no folder.
"""

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from adautomix.bench.workload import Row
from adautomix.commit import commit
from adautomix.device import versions
from adautomix.errors import UsageError


def append(
    path: Path,
    kind: str,
    figures: Sequence[Mapping[str, Any]],
    *,
    device: torch.device,
    libraries: Sequence[str] = (),
    stated: Mapping[str, Any] | None = None,
) -> Row:
    """Add a measurement to a file of rows, and return it.

    Args:
        path: the file, one JSON object per line; created if it does not exist.
        kind: what was measured: "steps", "phases", "growth" …
        figures: flat records; times in seconds, memory in MiB, work in floating-point operations.
        device: the device that was measured.
        libraries: other libraries that were measured; their versions join the row.
        stated: further fields, which also replace those found here, such as the commit and the
            command of runs that were trained earlier.
    """
    row = {
        "kind": kind,
        "figures": [dict(record) for record in figures],
        "machine": machine(device),
        "versions": versions() | {library: version(library) for library in libraries},
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": command_line(sys.argv),
        **(stated or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return row


def read(path: Path) -> list[Row]:
    """The rows of a file, the oldest first.

    Raises:
        UsageError: it cannot be read, or a line is no row.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise UsageError(f"{path}, line {number} is not JSON: correct or remove it") from None
    return rows


def machine(device: torch.device) -> dict[str, Any]:
    """Model of the processor, threads, and model of the GPU where one was measured."""
    on_gpu = device.type == "cuda"
    return {
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
    }


def processor() -> str:
    """Model of the processor, as far as the system tells."""
    table = Path("/proc/cpuinfo")
    for line in table.read_text().splitlines() if table.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def command_line(words: Sequence[str]) -> str:
    """The command as typed, with the mere name of any file that was given by its full path."""
    script = Path(words[0])
    is_script = script.suffix == ".py" and script.name != "__main__.py"
    program = ["python", f"benchmarks/{script.name}"] if is_script else ["adautomix"]
    return shlex.join([*program, *(without_folder(word) for word in words[1:])])


def without_folder(word: str) -> str:
    """A word of a command, a full path in it cut down to its name."""
    flag, equals, value = word.rpartition("=")
    return f"{flag}{equals}{Path(value).name}" if Path(value).is_absolute() else word
