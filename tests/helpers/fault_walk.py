"""Walk every write of a command: let it fail there, repeat the command, and compare the result.

    make faults

Each point is one operation that changes a file and one kind of fault (`faulty_files.py`). After it,
the user types the same command again, or `adautomix resume` if it says that there is a run to
resume. The result must be that of an undisturbed run, bit for bit, and nothing may be left over.
"""

import argparse
import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import optuna
import torch
from conftest import write_photos
from faulty_files import FAULTS, Fault, FaultyFiles, Killed
from safetensors.torch import load_file

from adautomix.cli import main as command_line
from adautomix.config import TrainConfig, load_config
from adautomix.data import load_data
from adautomix.errors import AdAutoMixError, RunError, UsageError
from adautomix.runs.api import export
from adautomix.runs.checkpoint import read_manifest
from adautomix.runs.folder import RunFolder
from adautomix.runs.lock import LOCK
from adautomix.training.api import compare
from adautomix.training.run import resume, train
from adautomix.training.tune import JOURNAL, STUDY, Search, counted, storage_in, tune

NO_SPACE = re.compile("no space left to write .*: free some, then .*")
BROKEN = re.compile(re.escape(os.strerror(errno.EIO)))
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
        typed("evaluate", root / "run", "--suites", "accuracy,calibration")

    def predict_images(root: Path) -> None:
        typed("predict", root / "run", images / "test", "--csv", root / "table.csv")

    def search(root: Path) -> None:
        values = settings(images, root / "unused").model_dump(
            mode="json", exclude_unset=True, exclude={"out", "method", "seed"}
        )
        search = Search(values, ["mixup"], root / "search", 1e9, final_seeds=1, trials=2)
        tune(search, quiet=True)

    def export_run(root: Path) -> None:
        export(root / "run", root / "exported")

    def export_again(root: Path) -> None:
        """Export, unless the folder is there already: it is only ever put in place whole."""
        if not (root / "exported").exists():
            export_run(root)

    def report_run(root: Path) -> None:
        typed("report", root / "run", "--out", root / "report.html")

    return {
        "train": Scenario(
            nothing,
            lambda root: void(train(settings(images, root / "run"), quiet=True)),
            lambda root: train_again(settings(images, root / "run")),
        ),
        "resume": Scenario(started, *twice(lambda root: void(resume(root / "run", quiet=True)))),
        "compare": Scenario(nothing, *twice(compare_two)),
        "evaluate": Scenario(finished, *twice(evaluate_run)),
        "export": Scenario(finished, export_run, export_again),
        "report": Scenario(finished, *twice(report_run)),
        "predict": Scenario(finished, *twice(predict_images)),
        "tune": Scenario(nothing, *twice(search)),
    }


def typed(*words: object) -> None:
    """Run the command line.

    Raises:
        RunError: it ended with an error; the message is its line.
    """
    errors = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(errors):
            command_line([str(word) for word in words])
    except SystemExit:
        raise RunError(errors.getvalue().removeprefix("adautomix: ").strip()) from None


def twice(act: Callable[[Path], None]) -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """The same command again."""
    return act, act


def void(result: object) -> None:
    """Drop a result."""


# ---------------------------------------------------------------------- one point


def fail_at(scenario: Scenario, root: Path, at: int, fault: Fault) -> bool:
    """Run the command with a fault, then again; return whether the fault was reached.

    Args:
        scenario: the command.
        root: a folder that holds what the command starts from.
        at: the operation to fail at.
        fault: what happens there.

    Raises:
        Exception: a full disk was not reported in one line that says what to do, or an input/output
            error ended in anything but one that says so.
    """
    with FaultyFiles(root, at, fault) as files:
        try:
            scenario.act(root)
        except Killed:
            pass
        except (RunError, OSError) as error:
            full = files.full and isinstance(error, RunError) and NO_SPACE.fullmatch(str(error))
            if not full and not (files.broken and BROKEN.search(str(error))):
                raise
    reached = files.killed or files.full or files.broken
    if reached:
        scenario.again(root)
    return reached


def content(root: Path) -> dict[str, Any]:
    """What a folder holds, file by file, without what depends on the clock and the machine.

    The run folder of a trial holds whichever trial came last; their results are in the study. A
    lock that nobody holds means nothing.
    """
    return {
        str(path.relative_to(root)): file_content(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.name != LOCK
        and not any(part.startswith("trial-") for part in path.parts)
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
    if path.name == JOURNAL:
        study = optuna.load_study(study_name=STUDY, storage=storage_in(path.parent))
        return [(trial.params, trial.value, trial.state) for trial in counted(study)]
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
    images: Path, scratch: Path, names: list[str], points: int | None, seed: int = 0
) -> Iterator[tuple[Point, str]]:
    """Try points, drawn from all there are; yield each with what went wrong, "" if nothing.

    Args:
        images: a folder of photographs.
        scratch: a folder for the runs.
        names: the commands to walk.
        points: how many to try at most; None: all.
        seed: which points are drawn.
    """
    known = scenarios(images)
    everything: list[Point] = []
    expected: dict[str, dict[str, Any]] = {}
    for name in names:
        root = new_folder(scratch)
        known[name].prepare(root)
        shutil.copytree(root, scratch / "prepared" / name)
        count = count_operations(known[name], root)
        expected[name] = content(root)
        everything += [Point(name, at, fault) for at in range(count) for fault in FAULTS]
    count = len(everything) if points is None else min(points, len(everything))
    for index in sorted(Random(seed).sample(range(len(everything)), count)):
        point = everything[index]
        root = new_folder(scratch, scratch / "prepared" / point.command)
        yield point, try_point(known[point.command], root, point, expected)


def try_point(
    scenario: Scenario, root: Path, point: Point, expected: dict[str, dict[str, Any]]
) -> str:
    """What went wrong at a point; "" if nothing did."""
    try:
        if not fail_at(scenario, root, point.at, point.fault):
            return "the command did not get there"
        found = content(root)
    except (Exception, Killed) as error:
        return f"{type(error).__name__}: {error}"
    different = [
        name
        for name in found.keys() | expected[point.command].keys()
        if found.get(name, "missing") != expected[point.command].get(name, "missing")
    ]
    return f"different: {', '.join(sorted(different))}" if different else ""


def new_folder(scratch: Path, copied: Path | None = None) -> Path:
    """An empty folder, or a copy, always of one name, so that paths in records are equal."""
    folder = scratch / "point"
    shutil.rmtree(folder, ignore_errors=True)
    if copied is None:
        folder.mkdir()
    else:
        shutil.copytree(copied, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--points", type=int, help="how many to try; none: all")
    parser.add_argument("--commands", help="commands to walk, comma-separated; none: all")
    parser.add_argument("--seed", type=int, default=0, help="which points are drawn")
    options = parser.parse_args()
    started = time.perf_counter()
    tried: Counter[tuple[str, str]] = Counter()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADAUTOMIX_CACHE"] = str(Path(folder) / "cache")
        images = write_photos(Path(folder) / "pets")
        load_data(str(images), workers=1, progress=False)
        names = options.commands.split(",") if options.commands else list(scenarios(images))
        for point, problem in walk(images, Path(folder), names, options.points, options.seed):
            tried[point.command, point.fault] += 1
            if problem:
                failures += 1
                print(f"{point}: {problem}", flush=True)
            if tried.total() % 50 == 0:
                print(f"{tried.total()} points so far, {failures} failures", flush=True)
    for name in names:
        kinds = ", ".join(f"{kind} {tried[name, kind]}" for kind in FAULTS)
        print(f"{name}: {sum(tried[name, kind] for kind in FAULTS)} points ({kinds})")
    minutes = (time.perf_counter() - started) / 60
    print(f"{tried.total()} points, {failures} failures, {minutes:.1f} minutes")
    sys.exit(bool(failures))


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main()
    except AdAutoMixError as error:
        sys.exit(str(error))
