"""Hostile names reach neither the terminal nor a page as anything but text."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from conftest import SMALL_NET, Command, write_photos

from adautomix.cli.output import console, print_line, print_listing
from adautomix.errors import AdAutoMixWarning, UsageError

NAMES = {
    "markup": "x[/b]y",
    "escape": "x\x1b[31my",
    "newline": "x\ny",
    "bidi": "x\u202ey",
    "not utf-8": os.fsdecode(b"x\xffy"),
    "formula": "=1+1",
    "long": "n" * 200,
}
SHOWN = {"escape": r"x\x1b[31my", "newline": r"x\ny", "bidi": r"x\u202ey", "not utf-8": r"x\udcffy"}
TRAINING = (*SMALL_NET, "--epochs", 1, "--batch-size", 6, "--method", "vanilla")


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_a_run_with_a_hostile_name_and_class_ends_well(
    kind: str, tmp_path: Path, command: Command
) -> None:
    name = NAMES[kind]
    images = write_photos(tmp_path / "images", {"train": 4, "test": 2})
    for split in ("train", "test"):
        folder = sorted((images / split).iterdir())[0]
        folder.rename(folder.with_name(name.replace("/", "_")))
    out = tmp_path / name
    outcome = command("train", "--data", images, *TRAINING, "--out", out)
    assert outcome.status == 0, outcome.err
    assert SHOWN.get(kind, name)[:80] in outcome.out.replace("\n", "")
    shown = outcome.out + outcome.err + (out / "report.html").read_text(encoding="utf-8")
    assert not {"\x1b", "\u202e"} & set(shown)
    image = next(images.glob("test/*/0.png"))
    outcome = command("predict", out, image, "--top", 3)
    assert outcome.status == 0, outcome.err
    outcome.out.encode("utf-8")
    listed = outcome.out.replace("\n", "").replace(" ", "")
    assert SHOWN.get(kind, name.replace("/", "_"))[:40] in listed


def test_an_error_about_a_hostile_name_is_one_line(command: Command, tmp_path: Path) -> None:
    for kind, name in NAMES.items():
        outcome = command("resume", tmp_path / name)
        assert outcome.status == 2
        assert outcome.err.count("\n") == 1
        shown = "x y" if kind == "newline" else SHOWN.get(kind, name)
        assert shown in outcome.err


def test_lines_and_listings_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    console.cache_clear()
    print_line("a\x1b[2J\nb")
    print_listing([("\x1b]0;title\x07", "[bold]x[/]")], ("one", "two"), as_json=False)
    out = capsys.readouterr().out
    assert out.splitlines()[0] == r"a\x1b[2J\nb"
    assert r"\x1b]0;title\x07  [bold]x[/]" in out
    console.cache_clear()


def test_warnings_are_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def warning() -> None:
        warnings.warn("first\x1b[1m\nsecond", AdAutoMixWarning, stacklevel=2)
        raise UsageError("over")

    monkeypatch.setattr("adautomix.config.list_settings", warning)
    outcome = command("settings")
    assert outcome.err == "adautomix: warning: first\\x1b[1m second\nadautomix: over\n"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("head"), reason="needs head")
@pytest.mark.parametrize("args", ["settings", "settings --json", "train --help"])
def test_a_closed_stdout_is_no_traceback(args: str) -> None:
    words = f"{sys.executable} -m adautomix {args} | head -n 1"
    done = subprocess.run(words, shell=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
