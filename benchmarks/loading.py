"""Time reading training batches beside torchvision's and timm's loaders, on photographs.

python benchmarks/loading.py
python benchmarks/loading.py --photos grocery-store/dataset --augment randaugment
python benchmarks/loading.py --beyond 1.5

Every loader gives random-resized crops of 224 pixels, bicubic with antialiasing, flipped and
normalized, with the same number of processes. They take turns, and each round gives a ratio, so
that what else the machine does falls on all of them; processor time is nearly free of it.

`--beyond GIB` reads photographs of 12 megapixels whose files exceed the memory: the process, its
workers and the file cache that they fill are limited to that many GiB (Linux, as root, cgroup v1).
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from adautomix.bench.rows import append
from adautomix.bench.workload import Row
from adautomix.config import TrainConfig, make_config
from adautomix.data import ImageData
from adautomix.runs.build import load_images, train_batches
from adautomix.training.loop import Trainer

SIZE, BATCH = 224, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
KINDS = {"348 px": ((348, 348), 256), "12 megapixels": ((4000, 3000), 64)}
"""Width and height, and number of photographs."""

Epoch = Callable[[], int]
"""Reads an epoch and returns the number of images."""


def main() -> None:
    """Measure, and write a row per kind of photographs."""
    arguments = parse_arguments()
    figures: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in folders(arguments, Path(scratch)).items():
            loaders = all_loaders(folder, Path(scratch) / "cache", arguments)
            if arguments.beyond:
                limit_memory(arguments.beyond)
                del loaders["cache exact"]  # 36 MB per photograph
            rates = time_in_turns(loaders, arguments.rounds)
            report(name, rates)
            figures += [{"photos": name, **rate} for rate in rates]
        stated = {"workers": arguments.workers, "augment": arguments.augment}
        append(arguments.rows, "loading", figures, device=CPU, libraries=("timm",), stated=stated)
        if arguments.photos is not None:
            waiting = [share_of_step(arguments, augment) for augment in ("none", "randaugment")]
            print(waiting)
            append(arguments.rows, "prefetching", waiting, device=CPU)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, help="a data set, instead of generated photographs")
    parser.add_argument("--augment", choices=("none", "randaugment"), default="none")
    parser.add_argument("--beyond", type=float, default=0, help="GiB of memory to exceed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="training steps with --photos")
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--rows", type=Path, default=Path("benchmarks/results/loading.jsonl"))
    return parser.parse_args()


# ---------------------------------------------------------------------- photographs


def folders(arguments: argparse.Namespace, scratch: Path) -> dict[str, Path]:
    """Folders of class folders: a sample of the given photographs, or generated ones."""
    photos: Path | None = arguments.photos
    if arguments.beyond:
        name = f"12 megapixels in {arguments.beyond} GiB"
        return {name: write_beyond(scratch / "beyond", arguments.beyond)}
    if photos is None:
        return {
            name: write_photos(scratch / name, *size, count)
            for name, (size, count) in KINDS.items()
        }
    found = sorted(path for path in photos.rglob("*.jpg") if "train" in path.parts)
    for number, path in enumerate(found[:: max(1, len(found) // 512)]):
        folder = scratch / "sample" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{number}.jpg")
    return {photos.name: scratch / "sample"}


def write_photos(folder: Path, width: int, height: int, count: int) -> Path:
    """Write JPEG files with the detail of real photographs: tiles of two that come with sklearn."""
    from sklearn.datasets import load_sample_images

    tiles = [Image.fromarray(image) for image in load_sample_images().images]
    generator = np.random.default_rng(0)
    for number in range(count):
        photo = Image.new("RGB", (width, height))
        for left in range(0, width, tiles[0].width):
            for top in range(0, height, tiles[0].height):
                tile = tiles[generator.integers(2)]
                shift = int(generator.integers(tile.width))
                photo.paste(tile.crop((shift, 0, tile.width, tile.height)), (left, top))
                photo.paste(tile.crop((0, 0, shift, tile.height)), (left + tile.width - shift, top))
        path = folder / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.save(path, quality=92)
    return folder


def write_beyond(folder: Path, gib: float) -> Path:
    """Write copies of photographs of 12 megapixels until they are 1.5 times as large."""
    size, count = KINDS["12 megapixels"]
    originals = sorted(write_photos(folder, *size, count).rglob("*.jpg"))
    written = sum(path.stat().st_size for path in originals)
    copies = -(-int(1.5 * gib * 2**30) // written)
    for copy in range(1, copies):
        for path in originals:
            shutil.copy(path, path.with_name(f"{path.stem}-{copy}.jpg"))
    for path in folder.rglob("*.jpg"):
        forget(path)
    print(f"{copies * count} photographs, {copies * written / 2**30:.2f} GiB")
    return folder


def forget(path: Path) -> None:
    """Drop a file from the file cache, which would otherwise be charged to whoever wrote it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def limit_memory(gib: float) -> None:
    """Move this process, and so what it starts, into a group with so much memory."""
    group = Path("/sys/fs/cgroup/memory/adautomix-loading")
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(str(int(gib * 2**30)))
    (group / "cgroup.procs").write_text(str(os.getpid()))


# ---------------------------------------------------------------------- loaders


def all_loaders(folder: Path, cache: Path, arguments: argparse.Namespace) -> dict[str, Epoch]:
    """Every loader, under the name that the row gives it."""
    os.environ["ADAUTOMIX_CACHE"] = str(cache)
    ours = {
        f"cache {setting}": our_epoch(folder, setting, arguments)
        for setting in ("off", "exact", "512", "256")
    }
    return ours | {
        "torchvision": torchvision_epoch(folder, arguments),
        "timm": timm_epoch(folder, arguments),
    }


def our_config(data: Path, arguments: argparse.Namespace, **more: Any) -> TrainConfig:
    """Settings of a run on photographs."""
    common: dict[str, Any] = {"data": str(data), "method": "vanilla", "image_size": SIZE}
    common |= {"batch_size": BATCH, "workers": arguments.workers, "test_fraction": 0.01}
    return make_config(common | {"normalize": ",".join(map(str, MEAN + STD))} | more)


def our_epoch(folder: Path, cache: str, arguments: argparse.Namespace) -> Epoch:
    """Batches as a run trains on them."""
    augment = None if arguments.augment == "none" else arguments.augment
    config = our_config(folder, arguments, cache=cache, augment=augment)
    data = load_images(config, progress=False)
    batches = train_batches(config, data, CPU)
    numbers = iter(range(10**6))

    def epoch() -> int:
        return sum(len(batches.augment(batch)) for batch in batches.epoch(next(numbers)))

    return epoch


def torchvision_epoch(folder: Path, arguments: argparse.Namespace) -> Epoch:
    """`ImageFolder`, `v2` transforms and `DataLoader`."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    augment = [] if arguments.augment == "none" else [v2.RandAugment()]
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            *augment,
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    loader: DataLoader[Any] = DataLoader(
        ImageFolder(str(folder), transform),
        BATCH,
        shuffle=True,
        num_workers=arguments.workers,
        drop_last=True,
        persistent_workers=True,
    )
    return partial(count_images, loader)


def timm_epoch(folder: Path, arguments: argparse.Namespace) -> Epoch:
    """timm's `ImageDataset` and `create_loader`, with the settings of its training script."""
    data: Any = import_module("timm.data")  # without types
    loader = data.create_loader(
        data.ImageDataset(str(folder)),
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        no_aug=False,
        color_jitter=None,
        # Not with mstd0.5: its largest magnitudes posterize to 0 bits, which Pillow refuses.
        auto_augment=None if arguments.augment == "none" else "rand-m9-inc1",
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=arguments.workers,
        use_prefetcher=False,
        persistent_workers=True,
    )
    return partial(count_images, loader)


def count_images(loader: Any) -> int:
    """Read an epoch of a `DataLoader`."""
    return sum(len(images) for images, _ in loader)


def time_in_turns(loaders: dict[str, Epoch], rounds: int) -> list[Row]:
    """Images per second and processor time of each loader, and its ratios to torchvision's."""
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    worked: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(rounds + 1):
        for name, epoch in loaders.items():
            begin, started = processor_seconds(), time.perf_counter()
            images = epoch()
            if number:  # the first round starts processes and fills the file cache
                seconds[name].append((time.perf_counter() - started) / images)
                worked[name].append((processor_seconds() - begin) / images)
    return [
        {
            "loader": name,
            "images_per_second": round(1 / statistics.median(seconds[name]), 1),
            "times_torchvision": ratio(seconds["torchvision"], seconds[name]),
            "processor_ms_per_image": round(1000 * statistics.median(worked[name]), 2),
            "processor_times_torchvision": ratio(worked["torchvision"], worked[name]),
        }
        for name in loaders
    ]


def ratio(theirs: list[float], ours: list[float]) -> float:
    """The median over rounds of how many times as fast."""
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=True)), 2)


def processor_seconds() -> float:
    """Processor time of this process and all that it started, running or ended (Linux)."""
    ticks = os.sysconf("SC_CLK_TCK")
    waiting, total = [os.getpid()], 0
    while waiting:
        process = waiting.pop()
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))  # user and system, own and of ended children
        for task in Path(f"/proc/{process}/task").iterdir():
            with suppress(OSError):  # a thread that has just ended
                waiting += map(int, (task / "children").read_text().split())
    return total / ticks


# ---------------------------------------------------------------------- in training


def share_of_step(arguments: argparse.Namespace, augment: str) -> Row:
    """How much of a training step is spent waiting for its batch."""
    chosen = None if augment == "none" else augment
    more = {"augment": chosen, "model": arguments.model, "stem": "standard", "epochs": 100}
    config = our_config(arguments.photos, arguments, **more)
    with tempfile.TemporaryDirectory() as folder:
        waits, steps = timed_steps(config, load_images(config, progress=False), folder, arguments)
    return {
        "augment": augment,
        "images_per_second": round(BATCH / statistics.median(steps), 1),
        "share_waiting": round(sum(waits) / sum(steps), 4),
    }


def timed_steps(
    config: TrainConfig, data: ImageData, folder: str, arguments: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Seconds that each step waits for its batch, and seconds of the whole step."""
    from adautomix.runs.folder import RunFolder

    trainer = Trainer(config, data, RunFolder(Path(folder)), quiet=True)
    batches = trainer.batches.epoch(0)
    waits, steps = [], []
    for number in range(arguments.steps + 2):
        started = time.perf_counter()
        batch = next(batches)
        arrived = time.perf_counter()
        trainer.train_step(batch)
        trainer.step += 1
        if number > 1:  # processes start and memory is allocated
            waits.append(arrived - started)
            steps.append(time.perf_counter() - started)
    return waits, steps


def report(name: str, figures: list[Row]) -> None:
    """Print a table."""
    titles = ("loader", "images/s", "× torchvision", "processor ms/image", "× torchvision")
    print(f"\n{name}\n| {' | '.join(titles)} |\n| --- |{' ---: |' * 4}")
    for row in figures:
        print(f"| {' | '.join(str(value) for value in row.values())} |", flush=True)


if __name__ == "__main__":
    main()
