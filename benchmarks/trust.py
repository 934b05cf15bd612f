"""Peak memory of the commands, a page of many runs, and a long soak, for docs/trust.md.

python benchmarks/trust.py memory       # train, evaluate and predict at three image sizes
python benchmarks/trust.py load         # a page of 200 runs, and a run of 100,000 lines of metrics
python benchmarks/trust.py soak         # 10,000 steps: memory and open files
"""

import argparse
import contextlib
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from memory import held_memory_mib
from PIL import Image

from adautomix.bench.rows import append
from adautomix.bench.workload import NOWHERE, Row, Workload, endless
from adautomix.cli import main as command_line
from adautomix.runs.folder import RunFolder
from adautomix.runs.records import write_metrics
from adautomix.runs.schema import TrainRow
from adautomix.training.loop import Trainer

CPU = torch.device("cpu")
SIZES = (96, 224, 384)
PHOTOS, CLASSES, SEED = 240, 4, 0
SIDES = (400, 300)  # width and height of the photos
NET = ("--model", "resnet18", "--width", 0.25, "--batch-size", 16, "--workers", 1)
LINES = 100_000
RUNS = 200


def main() -> None:
    """Measure, and add one row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=list(MEASUREMENTS))
    parser.add_argument("--rows", type=Path, default=Path("benchmarks/results/trust.jsonl"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADAUTOMIX_CACHE"] = f"{folder}/cache"
        found = MEASUREMENTS[options.what](Path(folder))
    for row in found:
        print(row)
    append(options.rows, f"trust {options.what}", found, device=CPU)


def peak_of(*words: object) -> Row:
    """Run a command in a fork of this process: its peak of resident memory, and its seconds.

    The libraries are imported already, as they would be in a process of its own.

    Raises:
        SystemExit: the command failed.
    """
    started = time.perf_counter()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        run_and_exit([str(word) for word in words])
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{' '.join(map(str, words))} failed")
    seconds = time.perf_counter() - started
    return {"peak_mib": round(usage.ru_maxrss / 1024), "seconds": round(seconds, 1)}


def run_and_exit(words: list[str]) -> NoReturn:
    """Run a command, and end this process whatever happens."""
    status = 1
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            command_line(words)
        status = 0
    except SystemExit as end:
        status = 0 if end.code in (None, 0) else 1
    finally:
        os._exit(status)


# ---------------------------------------------------------------------- memory


def measure_memory(
    scratch: Path, sizes: Sequence[int] = SIZES, net: Sequence[Any] = NET
) -> list[Row]:
    """Peak memory of train, evaluate and predict, each of 240 photos."""
    photos = write_photos(scratch / "photos")
    rows = [{"command": "suites", "image_size": 0, **peak_of("suites")}]
    for size in sizes:
        shared = ("--data", photos, "--image-size", size, "--test-fraction", 0.9, "--epochs", 1)
        run = scratch / f"run-{size}"
        rows.append(peak("train", size, *shared, *net, "--out", run))
        rows.append(peak("evaluate", size, run))
        rows.append(peak("predict", size, run, photos, "--batch-size", PHOTOS, "--json"))
    return rows


def peak(command: str, size: int, *words: object) -> Row:
    """The row of one command at one image size."""
    return {"command": command, "image_size": size, **peak_of(command, *words)}


def write_photos(folder: Path, count: int = PHOTOS) -> Path:
    """Write JPEG files of noise in class folders."""
    random = np.random.default_rng(SEED)
    for number in range(count):
        pixels = random.integers(0, 256, (SIDES[1], SIDES[0], 3), dtype=np.uint8)
        path = folder / f"class {number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


# ---------------------------------------------------------------------- load


def measure_load(scratch: Path, runs: int = RUNS, lines: int = LINES) -> list[Row]:
    """Report many runs on one page, and a run with many lines of metrics."""
    first = scratch / "runs" / "mixup-s0"
    small = ("--model", "resnet18", "--stem", "cifar", "--width", 0.02, "--batch-size", 50)
    steps = ("--per-class", 20, "--epochs", 5, "--method", "mixup", "--log-every", 1)
    peak_of("train", "--data", "digits", "--image-size", 16, *small, *steps, "--out", first)
    page, rows = scratch / "page.html", []
    rows.append({"runs": 1, "lines": len(RunFolder(first).rows()), **report(first, page)})
    repeat_run(first, runs)
    rows.append({"runs": runs, "lines": rows[0]["lines"], **report(first.parent, page)})
    lengthen(first, lines)
    rows.append({"runs": 1, "lines": lines, **report(first, page)})
    return rows


def report(source: Path, page: Path) -> Row:
    """Write a page: peak memory, seconds, size, and how much of it the browser must fetch."""
    found = peak_of("report", source, "--out", page)
    text = page.read_text(encoding="utf-8")
    loaded = sum(text.count(sign) for sign in ('src="http', 'href="http', "<script", "@import"))
    return {**found, "page_mib": round(page.stat().st_size / 2**20, 2), "loads": loaded}


def repeat_run(first: Path, runs: int) -> None:
    """Copy a finished run under other methods and seeds."""
    folder, methods = RunFolder(first), ("mixup", "cutmix", "vanilla", "fmix")
    config, summary = folder.config().resolved(), folder.summary()
    assert summary is not None
    for number in range(1, runs):
        facts = {"method": methods[number % len(methods)], "seed": number // len(methods)}
        copy = RunFolder(first.with_name(f"{facts['method']}-s{facts['seed']}"))
        if copy.path == first:
            continue
        shutil.copytree(first, copy.path)
        # They say what the copied run was trained with.
        shutil.rmtree(copy.path / "checkpoints", ignore_errors=True)
        copy.write_config(config | facts | {"out": str(copy.path)})
        copy.write_summary(summary.model_copy(update=facts))


def lengthen(run: Path, lines: int) -> None:
    """Write the first row of a run again and again, each a step later, before the other rows."""
    folder = RunFolder(run)
    rows = folder.rows()
    row = next(row for row in rows if isinstance(row, TrainRow))
    more = [row.model_copy(update={"step": step}) for step in range(1, lines - len(rows) + 1)]
    last = [row.model_copy(update={"step": row.step + lines}) for row in rows]
    write_metrics(folder.metrics_path, [*more, *last])


# ---------------------------------------------------------------------- soak


def measure_soak(scratch: Path, steps: int = 10_000, every: int = 1000) -> list[Row]:
    """Memory and open files of a training of the smallest network that goes on and on."""
    values = {
        "model": "resnet18",
        "stem": "cifar",
        "width": 0.02,
        "model_options": {"layers": [1, 1, 1, 1]},
        "batch_size": 4,
    }
    work = Workload(values, ["adautomix"], classes=4, size=16)
    (config,) = work.configs()
    # Four batches per epoch, see `Workload.images`.
    lasting = config.model_copy(update={"epochs": 1 + steps // 4})
    trainer = Trainer(lasting, work.images(), RunFolder(NOWHERE), quiet=True)
    rows = []
    for step, batch in zip(range(1, steps + 1), endless(trainer), strict=False):
        trainer.train_step(batch)
        trainer.step += 1
        if step % every == 0:
            gc.collect()
            held = round(held_memory_mib(CPU), 1)
            rows.append({"step": step, "memory_mib": held, "open_files": open_files()})
    return rows


def open_files() -> int:
    """Number of files that this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


MEASUREMENTS: dict[str, Callable[[Path], list[Row]]] = {
    "memory": measure_memory,
    "load": measure_load,
    "soak": measure_soak,
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
