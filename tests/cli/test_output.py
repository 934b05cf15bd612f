"""What is printed: tables and lines as they are, and JSON."""

import json

import pytest
from rich.console import Console

from adautomix.cli import output

MARKUP = "[red]cat[/red] :smile: [/] [bold"
"""A class name that rich would take for markup, or refuse."""


@pytest.fixture(autouse=True)
def _console(monkeypatch: pytest.MonkeyPatch) -> None:
    """A console of this test's own standard output."""
    monkeypatch.setattr(output, "console", output.console.__wrapped__)


def test_text_is_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_line(MARKUP)
    output.print_listing([(MARKUP, MARKUP)], (MARKUP, "b"), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == MARKUP
    assert [line.rstrip() for line in lines[1:]] == [f"{MARKUP}  b", f"{MARKUP}  {MARKUP}"]


def test_a_listing_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_listing([(MARKUP, "1"), ("x", "2")], ("a", "b"), as_json=True)
    rows = [{"a": MARKUP, "b": "1"}, {"a": "x", "b": "2"}]
    assert json.loads(capsys.readouterr().out) == rows


def test_long_lines_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/".join(["folder"] * 60)
    output.print_line(f"Wrote {path}")
    assert capsys.readouterr().out == f"Wrote {path}\n"
    assert isinstance(output.console(), Console)
