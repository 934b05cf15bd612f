"""Names from file systems are printed as text, never obeyed."""

import os

import pytest

from adautomix.text import MAX_LENGTH, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [/b] text", "plain [/b] text"),
        ("café 猫 λ", "café 猫 λ"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("cat\u202egnp.exe", r"cat\u202egnp.exe"),
        ("line\u2028end\u0085", r"line\u2028end\x85"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("\U000e0001\ue000", r"\U000e0001\ue000"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode("utf-8")


def test_long_text_is_cut_in_the_middle() -> None:
    shown = printable("a" * 5000 + "b" * 5000)
    assert len(shown) == MAX_LENGTH
    assert shown.startswith("aaa")
    assert shown.endswith("bbb")
    assert "…" in shown
    assert printable("a" * 300, None) == "a" * 300
    assert printable("a" * MAX_LENGTH) == "a" * MAX_LENGTH


def test_newlines_can_be_kept() -> None:
    assert printable("a\nb\x1b", keep_newlines=True) == "a\nb\\x1b"
