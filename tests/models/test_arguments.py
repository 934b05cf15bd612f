"""Building a network from a file reads no other file, asks no hub and runs no code."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adautomix.config import load_config
from adautomix.errors import UsageError
from adautomix.models import build_model, check_build_arguments, check_replacements, default_stem
from adautomix.runs.export import export_model, load_exported


class Bomb:
    """Creates a folder when it is unpickled by a reader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    """A file of weights that creates the folder `exploded` beside it when it is unpickled."""
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded"), protocol=2))
    return tmp_path / "evil.pth"


HOSTILE = [
    {"checkpoint_path": "evil.pth"},
    {"pretrained": True},
    {"pretrained_cfg": {"file": "evil.pth"}},
    {"pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/evil.pth"}},
    {"pretrained_strict": False},
    {"cache_dir": "x"},
    {"features_only": True},
    {"self": 1},
    {"kwargs": {"pretrained": True}},
]


@pytest.mark.parametrize("arguments", HOSTILE, ids=lambda a: next(iter(a)))
def test_arguments_that_do_more_than_describe_layers_are_refused(arguments: Any) -> None:
    name = next(iter(arguments))
    with pytest.raises(UsageError, match=f"model resnet18: unknown argument '{name}'"):
        build_model("resnet18", 2, options=arguments)
    with pytest.raises(UsageError, match="unknown argument"):
        check_build_arguments("vit_tiny_patch16_224", arguments)


@pytest.mark.parametrize(
    "value", ["../evil.pth", "hf-hub:x", "/etc/passwd", "a" * 65, [[[[[[1]]]]]], {"a": {"b": "/"}}]
)
def test_values_that_are_no_numbers_or_words_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"norm_layer = .* is not a number, a word or a list"):
        build_model("resnet18", 2, options={"norm_layer": value})


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:/tmp", "hf_hub:a", "../x"])
def test_hubs_and_folders_are_no_architectures(name: str) -> None:
    with pytest.raises(UsageError, match="unknown timm model"):
        build_model(name, 2)
    with pytest.raises(UsageError, match="unknown timm model"):
        check_build_arguments(name, {})
    assert default_stem(name, 32) == "standard"


@pytest.mark.parametrize("name", [None, 3, ["resnet18"], {}])
def test_names_that_are_no_text_are_no_architectures(name: Any) -> None:
    with pytest.raises(UsageError, match="unknown timm model"):
        check_build_arguments(name, {})


def test_every_option_in_use_is_accepted() -> None:
    used: dict[str, dict[str, Any]] = {
        "resnet18": {"layers": [1, 1, 1, 1], "zero_init_last": False, "drop_rate": 0.1},
        "convnext_tiny": {"depths": (1, 1, 2, 1)},
        "vit_tiny_patch16_224": {"patch_size": 4, "depth": 3, "img_size": 32},
        "swin_tiny_patch4_window7_224": {"proj_drop_rate": 0.2},
        "efficientnet_b0": {"norm_layer": "batchnorm2d", "act_layer": "relu"},
    }
    for name, options in used.items():
        check_build_arguments(name, options)


@pytest.mark.parametrize("conv", [{"device": "cuda"}, {"in_channels": "3/4"}, {"groups": 2}])
def test_replacements_are_plain_convolutions(conv: Any) -> None:
    with pytest.raises(UsageError, match="the replacement of conv1 takes other arguments"):
        check_replacements({"conv1": conv})
    check_replacements({"conv1": {"in_channels": 3, "bias": False}, "maxpool": None})


def test_a_configuration_file_cannot_load_weights(bomb: Path) -> None:
    config = load_config(flags={"model_options.checkpoint_path": str(bomb)})
    with pytest.raises(UsageError, match="unknown argument 'checkpoint_path'"):
        build_model(config.model, 2, options=config.model_options)
    assert not (bomb.parent / "exploded").exists()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    model = build_model("resnet18", 2, width=0.125, image_size=32)
    black, white = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    folder = tmp_path / "exported"
    return export_model(model, folder, classes=["a", "b"], mean=black, std=white, source={"run": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": {"num_classes": 2, "checkpoint_path": "BOMB"}},
        {"architecture": "local-dir:FOLDER", "arguments": {"pretrained": True}},
        {"architecture": "hf-hub:timm/resnet18.a1_in1k"},
        {"arguments": {"num_classes": 2, "pretrained": True}},
        {"architecture": 3},
        {"arguments": []},
        {"replaced": {"conv1": {"in_channels": 10**12, "out_channels": 64, "kernel_size": 1}}},
    ],
)
def test_an_exported_folder_cannot_load_anything_else(
    change: dict[str, Any], exported: Path, bomb: Path
) -> None:
    text = json.dumps(json.loads((exported / "config.json").read_text()) | change)
    text = text.replace("BOMB", str(bomb)).replace("FOLDER", str(bomb.parent))
    (exported / "config.json").write_text(text)
    with pytest.raises(UsageError) as error:
        load_exported(exported)
    assert str(exported) in str(error.value)
    assert "\n" not in str(error.value)
    # The script of the folder builds the network without this package.
    scope: dict[str, Any] = {"__file__": str(exported / "load_model.py"), "__name__": "script"}
    exec((exported / "load_model.py").read_text(), scope)
    with pytest.raises(Exception, match=r"."):
        scope["load_model"]()
    assert not (bomb.parent / "exploded").exists()
    pickle.loads(bomb.read_bytes())
    assert (bomb.parent / "exploded").exists(), "the bomb is a dud"


def test_the_script_reads_no_postscript(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EOF\n")
    scope: dict[str, Any] = {"__file__": str(exported / "load_model.py"), "__name__": "script"}
    exec((exported / "load_model.py").read_text(), scope)
    with pytest.raises(OSError, match="cannot identify image file"):
        scope["read_image"](str(tmp_path / "x.png"))
