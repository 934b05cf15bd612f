"""Settings: which source takes precedence, what is rejected and how, what survives a file."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from adautomix.config import (
    TrainConfig,
    list_settings,
    load_config,
    make_config,
    merge,
    read_recipe,
    unflatten,
)
from adautomix.errors import UsageError
from adautomix.methods import METHODS

RECIPE = "cifar100-r18/cutmix@200"


def write_settings(path: Path, text: str) -> Path:
    file = path / "settings.yaml"
    file.write_text(text)
    return file


def error_line(**values: Any) -> str:
    """Return the one-line error that these settings end with."""
    with pytest.raises(UsageError) as error:
        make_config(values)
    message = str(error.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------- precedence


def test_flags_override_the_file_and_the_file_overrides_the_recipe(tmp_path: Path) -> None:
    recipe = read_recipe(RECIPE)
    assert recipe["epochs"] == 200
    assert recipe["lr"] == 0.1
    file = write_settings(tmp_path, "epochs: 7\nlr: 0.3\ncutmix: {per_sample: true}\n")
    config = load_config(recipe=RECIPE, file=file, flags={"epochs": "3", "cutmix.alpha": "0.6"})
    assert config.epochs == 3  # flag over file over recipe
    assert config.lr == 0.3  # file over recipe
    assert config.model == recipe["model"]
    assert config.eval_batch_size == TrainConfig().eval_batch_size
    # Groups are merged name by name, not replaced.
    assert config.method_settings.model_dump() == {"alpha": 0.6, "per_sample": True}


def test_each_source_alone(tmp_path: Path) -> None:
    assert load_config() == TrainConfig()
    assert load_config(flags={"lr": "0.05"}).lr == 0.05
    assert load_config(file=write_settings(tmp_path, "lr: 0.05\n")).lr == 0.05
    assert load_config(recipe=RECIPE).method == "cutmix"


def test_merge_changes_neither_side() -> None:
    base, over = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}, "c": {"z": 5}}
    assert merge(base, over) == {"a": {"x": 1, "y": 4}, "b": 3, "c": {"z": 5}}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}
    assert over == {"a": {"y": 4}, "c": {"z": 5}}


# ---------------------------------------------------------------------- flags


def test_dotted_names_become_nested() -> None:
    flags = {"teacher.momentum": "0.9", "teacher.momentum-end": "1", "batch-size": "8"}
    assert unflatten(flags) == {
        "teacher": {"momentum": "0.9", "momentum_end": "1"},
        "batch_size": "8",
    }


def test_text_is_converted_to_the_type_of_the_setting() -> None:
    config = load_config(
        flags={
            "adautomix.beta": "0.4",
            "adautomix.lam-embedding": "true",
            "teacher.momentum": "0.99",
            "batch-size": "8",
            "flip": "false",
            "out": "somewhere/x",
        }
    )
    settings: Any = config.method_settings
    assert (settings.beta, settings.lam_embedding) == (0.4, True)
    assert config.teacher.momentum == 0.99
    assert config.batch_size == 8
    assert config.flip is False
    assert config.out == Path("somewhere/x")


def test_none_unsets_a_setting(tmp_path: Path) -> None:
    file = write_settings(tmp_path, "clip_grad: 1\nteacher: {momentum: 0.9}\nadautomix: {tap: 2}\n")
    flags = {"clip-grad": "none", "teacher.momentum": "none", "adautomix.tap": "none"}
    config = load_config(file=file, flags=flags)
    settings: Any = config.method_settings
    assert (config.clip_grad, config.teacher.momentum, settings.tap) == (None, None, None)


def test_model_options_are_read_as_yaml_reads_them() -> None:
    flags = {
        "model_options.patch_size": "4",
        "model_options.zero_init_last": "false",
        "model_options.norm_layer": "layernorm",
        "model_options.depths": "[2, 2]",
        "model_options.rate": 0.5,
    }
    assert load_config(flags=flags).model_options == {
        "patch_size": 4,
        "zero_init_last": False,
        "norm_layer": "layernorm",
        "depths": [2, 2],
        "rate": 0.5,
    }


def test_a_table_of_settings_is_one_flag_or_several() -> None:
    for flags in ({"sumix.options": "{alpha: 0.4}"}, {"sumix.options.alpha": "0.4"}):
        config = load_config(flags={"method": "sumix", **flags})
        settings: Any = config.method_settings
        assert settings.wrapped()[1].model_dump() == {"alpha": 0.4, "per_sample": False}
    assert load_config(flags={"model-options": "{depth: 2}"}).model_options == {"depth": 2}
    with pytest.raises(UsageError, match=r"sumix\.options = \{alpha: : not YAML"):
        load_config(flags={"sumix.options": "{alpha: "})


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown setting epoch: did you mean epochs?"),
        ({"adautomx": {"n": 2}}, "unknown setting adautomx: did you mean adautomix?"),
        (
            {"adautomix": {"betta": 0.1}},
            "unknown setting adautomix.betta: did you mean adautomix.beta?",
        ),
        ({"cutmix": {"alpa": 0.1}}, "unknown setting cutmix.alpa: did you mean cutmix.alpha?"),
        (
            {"teacher": {"momentun": 0.1}},
            "unknown setting teacher.momentun: did you mean teacher.momentum?",
        ),
        ({"qqqqqq": 1}, "unknown setting qqqqqq: `adautomix settings` lists them all"),
        ({"method": "cutmx"}, "unknown method 'cutmx': did you mean 'cutmix'?"),
    ],
)
def test_unknown_names_suggest_the_nearest(values: dict[str, Any], message: str) -> None:
    assert error_line(**values).startswith(message)


@pytest.mark.parametrize(
    ("values", "setting", "reason"),
    [
        ({"epochs": 0}, "epochs = 0", "greater than or equal to 1"),
        ({"lr": "fast"}, "lr = 'fast'", "valid number"),
        ({"momentum": 1.0}, "momentum = 1.0", "less than 1"),
        ({"optimizer": "adam"}, "optimizer = 'adam'", "'sgd' or 'adamw'"),
        ({"teacher": {"momentum": 1.5}}, "teacher.momentum = 1.5", "less than or equal to 1"),
        ({"adautomix": {"alpha": -0.1}}, "adautomix.alpha = -0.1", "greater than or equal to 0"),
        ({"adautomix": {"n": 1}}, "adautomix.n = 1", "greater than or equal to 2"),
        ({"mixup": {"alpha": 0}}, "mixup.alpha = 0", "greater than 0"),
        ({"adautomix": 3}, "adautomix = 3", ""),
        ({"batch_size": None}, "batch_size = None", "valid integer"),
    ],
)
def test_errors_name_values_out_of_range(values: dict[str, Any], setting: str, reason: str) -> None:
    message = error_line(**values)
    assert message.startswith(setting + ":")
    assert reason in message


def test_settings_that_contradict_each_other() -> None:
    message = error_line(method="mixup", teacher={"buffers": "own"})
    assert "teacher.buffers = own" in message
    assert "use average or copy" in message
    make_config({"method": "adautomix", "teacher": {"buffers": "own"}})
    assert "accumulate = 3 does not divide batch_size = 100" in error_line(accumulate=3)
    make_config({"accumulate": 4})


def test_groups_of_other_methods_are_accepted_and_checked() -> None:
    config = make_config({"method": "mixup", "adautomix": {"beta": 0.1}, "cutmix": {"alpha": 2}})
    assert config.method_settings == METHODS["mixup"].Settings()
    assert "cutmix.alpha = -2" in error_line(method="mixup", cutmix={"alpha": -2})


def test_a_configuration_cannot_be_changed() -> None:
    for name in ("epochs", "adautomix"):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(TrainConfig(), name, 3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("epochs: [1", "is not YAML"), ("just words", "holds no settings"), ("", "holds no settings")],
)
def test_files_that_hold_no_settings(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as error:
        load_config(file=write_settings(tmp_path, text))
    assert "settings.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*absent\.yaml"):
        load_config(file=tmp_path / "absent.yaml")


# ---------------------------------------------------------------------- to a file and back


CONFIGS: list[dict[str, Any]] = [
    {},
    {"method": "vanilla"},
    {"method": "cutmix", "cutmix": {"alpha": 0.2}, "mixup": {"alpha": 3.0}},
    {
        "adautomix": {"beta": 0.1, "generator_lr": 1e-3},
        "teacher": {"momentum": 0.9, "buffers": "own"},
        "out": "runs/x",
        "lr": 1e-05,
        "model_options": {"patch_size": 4, "norm": "no"},
    },
]


@pytest.mark.parametrize("values", CONFIGS)
def test_resolved_settings_survive_yaml(values: dict[str, Any]) -> None:
    config = make_config(values)
    again = make_config(yaml.safe_load(yaml.safe_dump(config.resolved())))
    assert again.resolved() == config.resolved()
    assert again.method_settings == config.method_settings
    for name in TrainConfig.model_fields:
        assert getattr(again, name) == getattr(config, name), name
    # The group of the method is now complete, and from there on nothing changes.
    assert make_config(again.resolved()) == again


def test_resolved_settings_are_complete() -> None:
    resolved = make_config({"method": "cutmix", "mixup": {"alpha": 3.0}}).resolved()
    assert resolved.keys() == {*TrainConfig.model_fields, "cutmix"}
    assert resolved["cutmix"] == {"alpha": 1.0, "per_sample": False}
    assert resolved["teacher"]["momentum_end"] == 0.999999


def test_every_setting_is_listed_and_described() -> None:
    rows = list_settings()
    names = [name for name, _, _ in rows]
    assert len(set(names)) == len(names)
    assert {"epochs", "teacher.momentum", "adautomix.beta", "cutmix.alpha"} <= set(names)
    assert "teacher" not in names
    assert all(description for _, _, description in rows)


def test_listed_defaults_are_the_defaults() -> None:
    config = load_config(flags={name: default for name, default, _ in list_settings()})
    assert config.resolved() == TrainConfig(method="adautomix").resolved()
    for name, cls in METHODS.items():
        assert (
            make_config({**config.model_dump(), "method": name}).method_settings == cls.Settings()
        )
