"""Walk every write of a command: let it fail there, repeat the command, and compare the result.

    make faults

Each point is one operation that changes a file and one kind of fault (`faulty_files.py`). After it,
the user types the same command again, or `adautomix resume` if it says that there is a run to
resume. The result must be that of an undisturbed run, bit for bit, and nothing may be left over.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import write_photos
from faulty_files import FAULTS, Fault, FaultyFiles, Killed
from safetensors.torch import load_file

from adautomix.config import TrainConfig, load_config
from adautomix.data import load_data
from adautomix.errors import AdAutoMixError, RunError, UsageError
from adautomix.evaluation.api import evaluate
from adautomix.reporting.comparison import compare_runs
from adautomix.reporting.page import write_page
from adautomix.runs.api import export
from adautomix.runs.checkpoint import read_manifest
from adautomix.runs.folder import RunFolder
from adautomix.runs.records import read_runs
from adautomix.training.api import compare
from adautomix.training.run import resume, train

NO_SPACE = re.compile("no space left to write .*: free some, then .*")
CHANGING = {"seconds", "images_per_second", "peak_memory_mib", "command"}
"""Fields that depend on the clock and the machine."""


@dataclass(frozen=True)
class Scenario:
    """A command whose writes are walked.

    Attributes:
        prepare: makes what the command starts from, in an empty folder.
        act: the command.
        again: what the user types after a fault.
    """

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    again: Callable[[Path], None]


def settings(images: Path, out: Path, **changes: Any) -> TrainConfig:
    """Two epochs of two steps of a very small network, with every kind of checkpoint."""
    small = {"model": "resnet18", "stem": "cifar", "width": 0.02, "workers": 1, "method": "mixup"}
    options = {"model_options.layers": "[1, 1, 1, 1]", "log_every": 1, "keep_every": 2}
    usual = {"data": str(images), "out": str(out), "epochs": 2, "batch_size": 12}
    return load_config(flags=small | options | usual | changes)


def train_again(config: TrainConfig) -> None:
    """Type the command again; resume if it says that there is a run to resume."""
    assert config.out is not None
    try:
        train(config, quiet=True)
    except UsageError as error:
        if "adautomix resume" not in str(error):
            raise
        resume(config.out, quiet=True)


def scenarios(images: Path) -> dict[str, Scenario]:
    """The commands that write files."""

    def nothing(root: Path) -> None:
        """Start from an empty folder."""

    def started(root: Path) -> None:
        """A run that was stopped after its first epoch."""
        from adautomix.training.loop import Trainer

        config = settings(images, root / "run")
        save = Trainer.save

        def save_and_die(self: Trainer, **options: Any) -> None:
            save(self, **options)
            raise Killed

        Trainer.save = save_and_die  # type: ignore[method-assign]
        try:
            train(config, quiet=True)
        except Killed:
            pass
        finally:
            Trainer.save = save  # type: ignore[method-assign]

    def finished(root: Path) -> None:
        train(settings(images, root / "run"), quiet=True)

    def compare_two(root: Path) -> None:
        values = settings(images, root / "unused").model_dump(
            mode="json", exclude_unset=True, exclude={"out", "method", "seed"}
        )
        compare(values, ["vanilla", "mixup"], seeds=[0], out=root / "runs", jobs=1, quiet=True)

    def evaluate_run(root: Path) -> None:
        evaluate(root / "run", ["accuracy", "calibration"])

    def export_run(root: Path) -> None:
        export(root / "run", root / "exported")

    def report_run(root: Path) -> None:
        write_page(compare_runs(read_runs([root / "run"])), root / "report.html")

    return {
        "train": Scenario(
            nothing,
            lambda root: void(train(settings(images, root / "run"), quiet=True)),
            lambda root: train_again(settings(images, root / "run")),
        ),
        "resume": Scenario(started, *twice(lambda root: void(resume(root / "run", quiet=True)))),
        "compare": Scenario(nothing, *twice(compare_two)),
        "evaluate": Scenario(finished, *twice(evaluate_run)),
        "export": Scenario(finished, *twice(export_run)),
        "report": Scenario(finished, *twice(report_run)),
    }


def twice(act: Callable[[Path], None]) -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """The same command again."""
    return act, act


def void(result: object) -> None:
    """Drop a result."""


# ---------------------------------------------------------------------- one point


def fail_at(scenario: Scenario, root: Path, at: int, fault: Fault) -> bool:
    """Run the command with a fault, then again; return whether the fault was reached.

    Raises:
        Exception: a full disk was not reported in one line that says what to do.
    """
    scenario.prepare(root)
    with FaultyFiles(root, at, fault) as files:
        try:
            scenario.act(root)
        except Killed:
            pass
        except RunError as error:
            if not files.full or not NO_SPACE.fullmatch(str(error)):
                raise
    reached = files.killed or files.full
    if reached:
        scenario.again(root)
    return reached


def content(root: Path) -> dict[str, Any]:
    """What a folder holds, file by file, without what depends on the clock and the machine."""
    return {
        str(path.relative_to(root)): file_content(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def file_content(path: Path) -> Any:
    """The content of a file in a form that is equal for equal results."""
    if path.name == "state.pt":
        return read_manifest(path.parent)["step"]  # it also holds the seconds so far
    if path.name == "manifest.json":
        manifest = read_manifest(path.parent)
        return {**manifest, "sha256": manifest["sha256"]["weights.safetensors"]}
    if path.name == "metrics.jsonl":
        return [row.without_timing() for row in RunFolder(path.parent).rows()]
    if path.suffix == ".safetensors":
        return {name: hash_of(t.numpy().tobytes()) for name, t in load_file(path).items()}
    if path.name in ("summary.json", "parts.jsonl", "evaluation.json"):
        return stable(path.read_text(encoding="utf-8"))
    if path.suffix == ".html":
        return None  # shows seconds and memory
    return hash_of(path.read_bytes())


def stable(text: str) -> list[Any]:
    """JSON values without the fields that depend on the clock."""
    try:
        values = [json.loads(text)]
    except ValueError:
        values = [json.loads(line) for line in text.splitlines()]
    for value in values:
        for name in {*CHANGING, "checksum"} & value.keys():
            del value[name]
    return values


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---------------------------------------------------------------------- all points


def count_operations(scenario: Scenario, root: Path) -> int:
    """How many operations the command does when nothing happens."""
    scenario.prepare(root)
    with FaultyFiles(root) as files:
        scenario.act(root)
    return len(files.operations)


@dataclass(frozen=True)
class Point:
    """One fault at one operation of one command."""

    command: str
    at: int
    fault: Fault


def walk(
    images: Path, scratch: Path, names: list[str], points: int | None, skip: int = 0
) -> Iterator[tuple[Point, str]]:
    """Try points, evenly spread over all there are; yield each with what went wrong, "" if nothing.

    Args:
        images: a folder of photographs.
        scratch: a folder for the runs.
        names: the commands to walk.
        points: how many to try at most; None: all.
        skip: the first point to try, to try others the next time.
    """
    known = scenarios(images)
    everything: list[Point] = []
    expected: dict[str, dict[str, Any]] = {}
    for name in names:
        root = new_folder(scratch)
        count = count_operations(known[name], root)
        expected[name] = content(root)
        everything += [Point(name, at, fault) for at in range(count) for fault in FAULTS]
    step = 1 if points is None else max(1, len(everything) // points)
    for point in everything[skip % step :: step][:points]:
        yield point, try_point(known[point.command], new_folder(scratch), point, expected)


def try_point(
    scenario: Scenario, root: Path, point: Point, expected: dict[str, dict[str, Any]]
) -> str:
    """What went wrong at a point; "" if nothing did."""
    try:
        if not fail_at(scenario, root, point.at, point.fault):
            return "the command did not get there"
    except (Exception, Killed) as error:
        return f"{type(error).__name__}: {error}"
    found = content(root)
    different = [
        name
        for name in found.keys() | expected[point.command].keys()
        if found.get(name, "missing") != expected[point.command].get(name, "missing")
    ]
    return f"different: {', '.join(sorted(different))}" if different else ""


def new_folder(scratch: Path) -> Path:
    """An empty folder of one name, so that paths in records are equal."""
    folder = scratch / "point"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--points", type=int, help="how many to try; none: all")
    parser.add_argument("--commands", help="commands to walk, comma-separated; none: all")
    parser.add_argument("--skip", type=int, default=0, help="the first point to try")
    options = parser.parse_args()
    started = time.perf_counter()
    tried: dict[str, int] = {}
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADAUTOMIX_CACHE"] = str(Path(folder) / "cache")
        images = write_photos(Path(folder) / "pets")
        load_data(str(images), workers=1, progress=False)
        names = options.commands.split(",") if options.commands else list(scenarios(images))
        for point, problem in walk(images, Path(folder), names, options.points, options.skip):
            tried[point.command] = tried.get(point.command, 0) + 1
            if problem:
                failures += 1
                print(f"{point}: {problem}", flush=True)
    for name, count in tried.items():
        print(f"{name}: {count} points")
    minutes = (time.perf_counter() - started) / 60
    print(f"{sum(tried.values())} points, {failures} failures, {minutes:.1f} minutes")
    sys.exit(bool(failures))


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main()
    except AdAutoMixError as error:
        sys.exit(str(error))
