"""Shared by tests of whole runs: the command, a folder of photographs and a small network."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from adautomix.cli import main
from adautomix.data import load_data
from adautomix.runs.folder import RunFolder

CLASSES = ("<script>alert(1)", "café", "猫")  # in the order of the labels
IMAGES = {"train": 8, "test": 3}  # per class
SMALL_NET = ("--model", "resnet18", "--stem", "cifar", "--width", "0.125", "--workers", "1")


@dataclass(frozen=True)
class Outcome:
    """The result of a command: exit status, stdout and stderr."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Outcome]


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_a_cache_of_our_own(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """Use one thread, so that sums do not depend on the machine, and a temporary image cache."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAUTOMIX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the command line in this process: `command("train", …)`."""

    def run(*words: object) -> Outcome:
        capsys.readouterr()
        try:
            main([str(word) for word in words])
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Outcome(status, *capsys.readouterr())

    return run


def write_photo(path: Path, label: int) -> None:
    """Write 16 × 16 pixels of noise, different in each file and brighter in the class's color."""
    name = "/".join(path.parts[-3:]).encode()
    pixels = np.random.default_rng(list(name)).integers(0, 120, (16, 16, 3), dtype=np.uint8)
    pixels[..., label] += 100
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_photos(root: Path, images: dict[str, int] = IMAGES) -> Path:
    """Write `<split>/<class>/<number>.png`, with so many images per class."""
    for split, count in images.items():
        for label, name in enumerate(CLASSES):
            for number in range(count):
                write_photo(root / split / name / f"{number}.png", label)
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 training and 9 test images of three awkwardly named classes, in the cache."""
    root = write_photos(tmp_path_factory.mktemp("photos") / "pets")
    load_data(str(root), workers=1, progress=False)
    return root


def tensors(run: Path, checkpoint: str = "last") -> dict[str, Tensor]:
    """The weights in a checkpoint of a run: student, teacher and method."""
    return load_file(run / "checkpoints" / checkpoint / "weights.safetensors")


def logged(run: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` without the fields that depend on the clock."""
    return [row.without_timing() for row in RunFolder(run).rows()]


def steps_in(run: Path) -> int:
    """The step of the run's last checkpoint."""
    manifest = json.loads((run / "checkpoints" / "last" / "manifest.json").read_text())
    return int(manifest["step"])


def assert_same_run(run: Path, reference: Path) -> None:
    """Check that weights, scores and metrics rows equal those of a reference, bit for bit."""
    mine, theirs = tensors(run), tensors(reference)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert logged(run) == logged(reference)
    summaries = [RunFolder(folder).summary() for folder in (run, reference)]
    for name in ("final", "best", "steps", "classes"):
        first, second = (getattr(summary, name) for summary in summaries)
        assert first == second
        assert first, f"{name} is missing"
