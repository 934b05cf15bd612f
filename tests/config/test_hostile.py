"""Whatever a settings file holds, reading it is quick and ends in settings or a UsageError."""

import os
from pathlib import Path
from typing import Any

import pytest

from adautomix.config import load_config, make_config, read_yaml, unflatten
from adautomix.config.schema import architecture_of
from adautomix.errors import UsageError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new}\n  <<: [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"data: \xff\xfe", "is not UTF-8 text (byte 6)"),
        (b"label: 2024-13-45", "is not YAML: month must be in 1..12"),
        (b"epochs: " + b"[" * 5000, "is not YAML: it is nested more than 40 levels deep"),
        (b"epochs: " + b"{a: " * 5000, "is not YAML: it is nested more than 40 levels deep"),
        (BOMB.encode(), "is not YAML: it stands for more than 20000 values"),
        (MERGE_BOMB.encode(), "is not YAML: it stands for more than 20000 values"),
        (b"a: &a [*a]", "is not YAML: it stands for more than 20000 values"),
        (b"a: " + b"9" * 5000, "is not YAML: Exceeds the limit"),
        (b"a: !!python/object/apply:os.system [id]", "is not YAML: could not determine a const"),
        (b"? [1]\n: 2", "is not YAML: while constructing a mapping"),
        (b"a\x00b: 1", "is not YAML: unacceptable character"),
        (b"[1, 2]", "holds no settings: write lines like `epochs: 20`"),
        (b"", "holds no settings"),
        (b"a: 1\n" * 300_000, "larger than 1048576 bytes"),
    ],
)
def test_a_hostile_file_is_named(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        load_config(file=path)
    assert str(path) in str(error.value)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_fifo_and_a_folder_are_no_settings(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a regular file"):
            read_yaml(path)


def test_aliases_within_bounds_are_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("mixup: &m {alpha: 0.3}\ncutmix:\n  <<: *m\nepochs: 2\n")
    config = load_config(file=path, flags={"method": "cutmix"})
    assert config.method_settings.model_dump()["alpha"] == 0.3


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"init": 1}, "init = 1: input is not a valid path"),
        ({"init": ["a"]}, "init = ['a']: input is not a valid path"),
        ({1: 2}, "keys should be strings"),
        ({"mixup": 3}, "mixup = 3: input should be a valid dictionary"),
        ({"mixup": {1: 2}}, "keys should be strings"),
        ({"teacher": "x"}, "teacher = 'x': input should be"),
        ({"epochs": float("nan")}, "epochs = nan: input should be a finite number"),
        ({"method": ["mixup"]}, "method = ['mixup']: input should be a valid string"),
        ({"model_options": []}, "model_options = []: input should be a valid dictionary"),
        ({"label": "x" * 10_000, "epochs": "y" * 10_000}, "epochs = 'yyy"),
    ],
)
def test_wrong_types_are_named(values: dict[Any, Any], problem: str) -> None:
    with pytest.raises(UsageError) as error:
        make_config(values)
    assert problem in str(error.value).lower()
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("path", ["x" * 256, "a\0b", "猫" * 86, "/".join(["x" * 99] * 50)])
@pytest.mark.parametrize("name", ["data", "data_root", "class_names", "init", "out"])
def test_names_that_no_file_has_are_refused(name: str, path: str) -> None:
    for value in (path, Path(path)):
        with pytest.raises(UsageError, match=f"^{name} = '.*: no file has such a name$"):
            make_config({name: value})
    assert make_config({"out": "x" * 255}).out == Path("x" * 255)


@pytest.mark.parametrize("text", ["{a: [", "{a: *b}", "{a: 2024-13-45}", "{" * 3000])
def test_a_hostile_flag_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"model_options\.x = .*: not YAML"):
        unflatten({"model_options.x": text})


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b'{"stem": 1}', b"null"])
def test_a_damaged_export_does_not_say_its_network(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=f"{tmp_path} does not say which network it holds"):
        architecture_of(tmp_path)
