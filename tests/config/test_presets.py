"""Presets: settings below all others, chosen by name or by how training starts."""

from pathlib import Path
from typing import Any

import pytest

from adautomix.config import TrainConfig, load_config, make_config
from adautomix.errors import UsageError
from adautomix.methods import METHODS
from adautomix.mixing.settings import MixSettings
from adautomix.training.api import changed_settings

LEARNED = ("adautomix", "automix", "samix")


def test_without_a_preset_everything_is_as_published() -> None:
    published = make_config({"preset": "published"})
    assert published.mix == MixSettings()
    for name in METHODS:
        for named in ({"method": name, "preset": "published"}, {"method": name}):
            config = make_config(named | {"pretrained": True})
            assert config.method_settings == METHODS[name].Settings()
            assert config.mix == MixSettings()


@pytest.mark.parametrize(
    ("given", "preset", "method"),
    [({}, "scratch", "adautomix"), ({"pretrained": True}, "finetune", "cutmix")],
)
def test_without_a_method_a_preset_chooses(given: dict[str, Any], preset: str, method: str) -> None:
    config = make_config(given)
    assert (config.method, config.preset) == (method, "auto")
    assert config.mix.stop == 0.75
    named = make_config(given | {"preset": preset})
    assert config.method_settings == named.method_settings
    assert make_config(config.resolved()).resolved() == config.resolved()
    assert make_config(given | {"preset": "published"}).method == "adautomix"


def test_a_comparison_takes_no_settings_from_a_preset_that_nobody_named() -> None:
    config = TrainConfig(pretrained=True, epochs=3, mix={"prob": 0.5})
    assert changed_settings(config).keys() == {"pretrained", "epochs", "mix"}
    assert changed_settings(TrainConfig(preset="finetune")) == {"preset": "finetune"}


@pytest.mark.parametrize("preset", ["finetune", "scratch"])
@pytest.mark.parametrize("method", ["vanilla", "mixup", "cutmix", *LEARNED])
def test_a_preset_suits_every_method(preset: str, method: str) -> None:
    config = load_config(flags={"preset": preset, "method": method})
    assert config.mix.stop == 0.75
    if method in LEARNED:
        assert config.method_settings.views == "split"  # type: ignore[attr-defined]
    assert make_config(config.resolved()).resolved() == config.resolved()


def test_what_is_set_overrides_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("preset: finetune\nmethod: adautomix\nadautomix: {n: 3}\n")
    config = load_config(file=file, flags={"mix.stop": "0.9"})
    settings: Any = config.method_settings
    assert (config.mix.stop, settings.n, settings.views) == (0.9, 3, "split")
    assert settings.lam_embedding


@pytest.mark.parametrize(
    ("flags", "same"),
    [
        ({}, "scratch"),
        ({"pretrained": "false"}, "scratch"),
        ({"pretrained": "true"}, "finetune"),
        ({"init": "weights.safetensors"}, "finetune"),
    ],
)
def test_auto_follows_the_weights(flags: dict[str, str], same: str) -> None:
    auto, named = (load_config(flags={"preset": p, **flags}) for p in ("auto", same))
    assert auto.mix == named.mix
    assert auto.method_settings == named.method_settings


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(UsageError, match=r"^preset\b.*finetune"):
        make_config({"preset": "fine"})
