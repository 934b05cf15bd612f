"""Inputs that somebody made to be executed, to be fetched or to exhaust the machine."""

import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from adautomix.runs.checkpoint import file_hash

FIXTURES = Path(__file__).parents[1] / "runs" / "fixtures"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(pwned) run\nshowpage\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/x"/></svg>'
TEXT = "<script src=http://127.0.0.1:9/x></script>{{ 7 * 191 }}{% import 'os' %}\x1b[2J\u202e[/b]"
"""What a page must show as it is."""


class Bomb:
    """Starts a program when it is unpickled by a reader that runs code."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def png(width: int, height: int, rows: int) -> bytes:
    """A PNG file of gray pixels that holds only so many of its rows."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = zlib.compress(bytes((width + 1) * rows), 9)
    chunks = [(b"IHDR", header), (b"IDAT", content), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def write_images(folder: Path) -> list[Path]:
    """Write files that are named like images and are none, with two that are."""
    folder.mkdir(parents=True)
    contents = {
        "x.png": EPS,
        "y.jpg": b"%PDF-1.4\n1 0 obj<</OpenAction<</S/Launch/F(touch pwned)>>>>endobj",
        "z.png": SVG,
        "metafile.bmp": b"\xd7\xcd\xc6\x9a" + bytes(60),
        "pickled.png": pickle.dumps(Bomb(), protocol=2),
        "bomb.png": png(60_000, 60_000, 10),
        "short.png": png(64, 64, 64)[:-30],
        "empty.png": b"",
        "wide.gif": b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + bytes(20),
        "$(touch pwned).png": b"no image",
        "-rf.png": b"no image",
        "a\n\x1b[2Jb.png": b"no image",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "link.png").symlink_to("/etc/passwd")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    os.mkfifo(folder / "fifo.png")
    for number in range(2):
        Image.new("RGB", (16, 16), (90 * number, 9, 9)).save(folder / f"good{number}.png")
    # Modules that a program which imports from its working folder would run.
    for module in ("numpy", "torch", "PIL", "timm", "sitecustomize", "adautomix"):
        (folder / f"{module}.py").write_text("import os\nos.system('touch pwned')\n")
    return sorted(path for path in folder.iterdir() if path.suffix != ".py")


def write_classes(folder: Path) -> Path:
    """Write a data set of the ten digits whose folders hold hostile files and two images each."""
    first = folder / "0"
    write_images(first)
    for label in range(1, 10):
        shutil.copytree(first, folder / str(label), symlinks=True, ignore=ignore_special)
    return folder


def ignore_special(folder: str, names: list[str]) -> list[str]:
    """What `copytree` must not read: pipes and links that lead nowhere."""
    return [name for name in names if name.startswith(("fifo", "link", "loop"))]


def write_runs(folder: Path) -> dict[str, Path]:
    """Write run folders by what is hostile in them."""
    evil = folder / "evil.pth"
    folder.mkdir(parents=True)
    evil.write_bytes(pickle.dumps(Bomb(), protocol=2))
    changes: dict[str, dict[str, Any]] = {
        "checkpoint": {"model_options": {"checkpoint_path": str(evil)}},
        "hub": {"model": "hf-hub:timm/resnet18"},
        "folder": {"model": f"local-dir:{folder}", "pretrained": True},
        "init": {"init": str(evil)},
        "names": {"label": TEXT, "method": "adautomix"},
    }
    runs = {name: copied(folder / name) for name in [*changes, "tag", "state", "pictures"]}
    for name, change in changes.items():
        edit(runs[name] / "config.yaml", change)
    with (runs["tag"] / "config.yaml").open("a") as file:
        file.write("label: !!python/object/apply:os.system [touch pwned]\n")
    last = runs["state"] / "checkpoints" / "last"
    (last / "state.pt").write_bytes(evil.read_bytes())
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["sha256"]["state.pt"] = file_hash(last / "state.pt")
    (last / "manifest.json").write_text(json.dumps(manifest))
    for path in runs["pictures"].glob("samples/*.png"):
        path.write_bytes(EPS)
    info = json.loads((runs["names"] / "data.json").read_text())
    info["classes"] = [f"{TEXT}{label}" for label in range(10)]
    (runs["names"] / "data.json").write_text(json.dumps(info))
    return runs


def copied(folder: Path) -> Path:
    """A copy of the old run, whose settings no checkpoint protects."""
    return Path(shutil.copytree(FIXTURES / "run-0.1.0", folder))


def edit(path: Path, change: dict[str, Any]) -> None:
    """Change settings of a YAML file."""
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))


def write_pages(folder: Path) -> list[Path]:
    """Write records of evaluations and rows of runs that hold markup, templates and addresses."""
    folder.mkdir(parents=True)
    record = json.loads((FIXTURES / "run-0.1.0" / "evaluation.json").read_text())
    record["subject" if "subject" in record else "target"] = TEXT
    (folder / "evaluation.json").write_text(json.dumps(record))
    rows = [{"kind": "run", "label": TEXT, "config": {"method": TEXT}}, {"kind": TEXT}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [folder / "evaluation.json", folder / "rows.jsonl"]
