"""Reading hostile input starts nothing but our own decoders, imports nothing and sends nothing.

Every Python process of the program is watched by an audit hook from its first line on.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from audited import DECODER, HERE, Events, watch
from hostile import EPS, write_classes, write_images, write_pages, write_runs

from adautomix.models import build_model
from adautomix.runs.export import export_model

RULES = {"max_pixels": 10**8, "composite": True, "crop_bottom": 0, "resample": "bicubic"}
REFUSED = ("checkpoint", "hub", "folder", "tag", "state")
"""Run folders that no network is built from; the others only hold hostile names and pictures."""

CONTROL = """
from PIL import Image
try:
    Image.open("x.png").load()
except OSError as error:
    print(error)
"""


def commands(words: Sequence[Sequence[object]], root: Path, cwd: Path) -> Events:
    """Run commands in one watched process, and check that nothing surprising happened."""
    texts = json.dumps([[str(word) for word in command] for command in words])
    events = watch([HERE / "audited_commands.py", texts], root / "log", cwd=cwd)
    # Libraries keep fonts and settings there; it is no place of ours.
    assert events.surprises([root / "out", root / "cache", root / "runs", root / "home"]) == []
    assert not list(root.rglob("pwned"))
    return events


def statuses(events: Events) -> list[int]:
    """The exit statuses of the commands."""
    line = next(line for line in events.output.splitlines() if line.startswith("STATUSES"))
    return [int(status) for status in json.loads(line.removeprefix("STATUSES "))]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAUTOMIX_CACHE", str(tmp_path / "cache"))
    for name in ("HOME", "MPLCONFIGDIR", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("home", "out", "cache"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_the_hook_sees_what_postscript_would_start(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(EPS)
    events = watch(["-c", CONTROL], tmp_path / "log", cwd=tmp_path)
    started = [words for event, words in events.surprises([]) if event == "subprocess.Popen"]
    assert started
    assert started[0][0].startswith("gs")


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket().connect_ex(('127.0.0.1', 9))",
        "import os; os.system('true')",
        "open('made', 'w')",
        "import os; os.mkdir('made')",
        "import pickle; pickle.loads(pickle.dumps(print))",
        "import sys; sys.path.insert(0, '.'); import numpy",
    ],
)
def test_the_hook_sees(code: str, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("")
    assert watch(["-c", "pass"], tmp_path / "log0", cwd=tmp_path).surprises([]) == []
    assert watch(["-c", code], tmp_path / "log", cwd=tmp_path).surprises([]) != []


def test_a_decoder_reads_hostile_images(tmp_path: Path) -> None:
    images = [str(path) for path in write_images(tmp_path / "images")]
    request = json.dumps({"limit": None, "rules": RULES, "paths": images}).encode() + b"\n"
    events = watch(DECODER[1:], tmp_path / "log", cwd=tmp_path / "images", given=request)
    assert events.status == 0, events.output
    assert events.surprises([]) == []
    bad = json.loads(events.output.splitlines()[0])["bad"]
    good = [path for position, path in enumerate(images) if str(position) not in bad]
    assert [Path(path).name for path in good] == ["good0.png", "good1.png"]
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.slow
def test_commands_read_hostile_images(root: Path) -> None:
    write_runs(root / "runs")
    images = root / "images"
    write_images(images)
    classes = write_classes(root / "classes")
    run = root / "runs" / "pictures"
    table = root / "out" / "table.csv"
    data = ("--data", classes, "--skip-bad", "true", "--out", root / "out" / "evaluated")
    small = ("--model", "resnet18", "--stem", "cifar", "--width", 0.02, "--image-size", 16)
    steps = ("--epochs", 1, "--batch-size", 8, "--test-fraction", 0.5, "--method", "mixup")
    events = commands(
        [
            ("predict", run, ".", "--csv", table),
            ("predict", run, "x.png"),
            ("evaluate", run, *data),
            ("train", *data[:4], *small, *steps, "--workers", 1, "--out", root / "out" / "run"),
        ],
        root,
        images,
    )
    assert statuses(events) == [1, 2, 0, 0], events.output
    assert DECODER in events.processes
    assert len([words for words in events.processes if words != DECODER]) == 1
    assert len(table.read_text().splitlines()) > 10


@pytest.mark.slow
def test_commands_read_hostile_runs_and_pages(root: Path) -> None:
    runs = write_runs(root / "runs")
    pages = write_pages(root / "pages")
    images = root / "images"
    write_images(images)
    shown = ("report", "--out", root / "out" / "page.html")
    words: list[tuple[object, ...]] = []
    for name, run in runs.items():
        words += [("predict", run, "good0.png"), (*shown, run)]
        if name in REFUSED:
            words += [("resume", run), ("export", run, "--out", root / "out" / name)]
    for name in ("names", "state"):
        words.append(("evaluate", runs[name], "--data", "digits", "--images", 20))
    words += [(*shown, page) for page in pages]
    events = commands(words, root, images)
    assert set(statuses(events)) <= {0, 1, 2}
    assert "Traceback" not in events.output
    assert "\x1b[2J" not in events.output
    assert (root / "out" / "page.html").exists()


@pytest.mark.slow
def test_loading_a_hostile_export(root: Path) -> None:
    images = root / "images"
    write_images(images)
    runs = write_runs(root / "runs")
    model = build_model("resnet18", 2, width=0.125, image_size=32)
    black, white = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    words: list[tuple[object, ...]] = []
    evil = runs["state"].parent / "evil.pth"
    for number, change in enumerate(
        [
            {},
            {"arguments": {"num_classes": 2, "checkpoint_path": str(evil)}},
            {"architecture": f"local-dir:{evil.parent}", "arguments": {"pretrained": True}},
            {"architecture": "hf-hub:timm/resnet18.a1_in1k"},
            {"replaced": {"conv1": {"kernel_size": "__import__('os')"}}},
        ]
    ):
        folder = root / "runs" / f"export{number}"
        export_model(model, folder, classes=["a", "b"], mean=black, std=white, source={"run": 1})
        known = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(known))
        (folder / "load_model.py").write_text("import os\nos.system('touch pwned')\n")
        words.append(("load-export", folder))
    events = commands(words, root, images)
    assert statuses(events) == [0, 2, 2, 2, 2], events.output
