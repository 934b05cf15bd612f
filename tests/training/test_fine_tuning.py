"""Fine-tuning: frozen layers, a first phase that trains the heads only, layer-wise rates."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from every import each, network_for, steps_of, trainer_of
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor

from adautomix.config import make_config
from adautomix.errors import UsageError
from adautomix.methods import METHODS, build_method
from adautomix.models import build_model
from adautomix.runs.schema import TrainRow
from adautomix.training.announce import run_lines
from adautomix.training.loop import Trainer
from adautomix.training.optim import build_optimizer, cosine_schedule

EVERY = pytest.mark.parametrize("name", each())
# Resuming is the same code for all methods: `make slow` tries the others.
RESUMED = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "adautomix" else pytest.mark.slow, id=name)
        for name in METHODS
    ],
)


def values_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.weights().items()}


def changed(trainer: Trainer, before: dict[str, Tensor]) -> set[str]:
    """Names of the weights and statistics that are not what they were."""
    now = trainer.weights()
    return {name for name, value in before.items() if not torch.equal(now[name], value)}


def stage_of(method: str) -> str:
    return "blocks.1" if network_for(method)["model"].startswith("vit") else "layer2"


# ---------------------------------------------------------------------- freezing


@EVERY
def test_frozen_layers_stay_as_they_are(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(name, tmp_path, freeze=stage_of(name), weight_decay=0.1)
    before = values_of(trainer)
    frozen = trainer.student.frozen
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    for key, parameter in trainer.student.named_parameters():
        assert (id(parameter) in held) is (key not in frozen.parameters)
    rows = steps_of(trainer, 3)
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in rows)
    moved = changed(trainer, before)
    parts = tuple(f"{one}." for one in frozen.modules)
    for network in ("student.", "teacher."):
        names = {key.removeprefix(network) for key in moved if key.startswith(network)}
        assert not {key for key in names if key.startswith(parts)}
        assert not names & frozen.parameters
    trained = {f"student.{key}" for key, _ in trainer.student.named_parameters()}
    assert moved & trained - {f"student.{key}" for key in frozen.parameters}


@RESUMED
def test_a_run_with_frozen_layers_resumes_exactly(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"freeze": stage_of(name)}
    whole, first, second = (trainer_of(name, tmp_path / part, **options) for part in "wab")
    steps_of(whole, 5)
    steps_of(first, 2)
    second.restore(first.checkpoint())
    steps_of(second, 3)
    assert not changed(second, values_of(whole))


@RESUMED
def test_only_the_heads_are_trained_over_a_frozen_backbone(name: str, tmp_path: Path) -> None:
    """Linear probing: the head of every method learns, and what the method itself learns too."""
    trainer = trainer_of(name, tmp_path, freeze="backbone")
    before = values_of(trainer)
    steps_of(trainer, 3)
    moved = changed(trainer, before)
    assert any(key.startswith("student.heads.") for key in moved)
    assert not any(key.startswith(("student.backbone", "teacher.backbone")) for key in moved)


def test_a_run_says_how_much_it_trains(tmp_path: Path) -> None:
    trainer = trainer_of("vanilla", tmp_path, freeze="layer2")
    sizes = {name: value.numel() for name, value in trainer.student.named_parameters()}
    parts = tuple(f"backbone.{part}" for part in ("conv1", "bn1", "layer1", "layer2"))
    frozen = sum(size for name, size in sizes.items() if name.startswith(parts))
    line = f"frozen: {frozen:,} parameters, up to layer2; trained: {sum(sizes.values()) - frozen:,}"
    assert f"{line}; the frozen ones are random without --pretrained or --init" in run_lines(
        trainer
    )
    trainer.config = trainer.config.model_copy(update={"pretrained": True})
    assert line in run_lines(trainer)
    assert not any(
        line.startswith("frozen") for line in run_lines(trainer_of("vanilla", tmp_path / "all"))
    )


def test_a_stage_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="freeze = layer7: resnet18 has no such stage; name one"):
        trainer_of("vanilla", tmp_path, freeze="layer7")


# ---------------------------------------------------------------------- probing first


@EVERY
def test_the_heads_are_trained_alone_at_first(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(name, tmp_path, probe_epochs=1, freeze=first_part(name))
    before = values_of(trainer)
    steps_of(trainer, 4)  # an epoch
    moved = changed(trainer, before)
    assert any(key.startswith("student.heads.") for key in moved)
    assert not any(key.startswith(("student.backbone", "teacher.backbone")) for key in moved)
    steps_of(trainer, 1)
    frozen = trainer.student.frozen.parameters
    assert frozen
    backbone = {
        f"student.{key}"
        for key, parameter in trainer.student.named_parameters()
        if key.startswith("backbone") and key not in frozen
    }
    assert backbone & changed(trainer, before)
    assert not any(f"student.{key}" in changed(trainer, before) for key in frozen)


def first_part(method: str) -> str:
    return "patch_embed" if stage_of(method) == "blocks.1" else "bn1"


SLOW = pytest.mark.slow


@RESUMED
@pytest.mark.parametrize(  # within the first phase, at its end and after it
    "stop", [pytest.param(2, marks=SLOW), 4, pytest.param(5, marks=SLOW)]
)
def test_a_run_that_probes_first_resumes_exactly(name: str, stop: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"probe_epochs": 1, "optimizer": "adamw", "lr": 1e-3}
    whole, first, second = (trainer_of(name, tmp_path / part, **options) for part in "wab")
    steps_of(whole, 6)
    steps_of(first, stop)
    second.restore(first.checkpoint())
    steps_of(second, 6 - stop)
    assert not changed(second, values_of(whole))


def test_the_learning_rate_of_probing_is_constant(tmp_path: Path) -> None:
    probing = trainer_of("vanilla", tmp_path, epochs=4, probe_epochs=2, warmup_epochs=1)
    plain = trainer_of("vanilla", tmp_path / "plain", epochs=2, warmup_epochs=1)
    assert probing.lr_factors == [1.0] * 8 + plain.lr_factors
    assert "linear probing: the first 2 epochs train only the heads, at lr 0.05" in run_lines(
        probing
    )
    options = {"generator_warmup": False}
    own = trainer_of(
        "adautomix", tmp_path / "own", probe_epochs=1, warmup_epochs=1, adautomix=options
    )
    assert own.lr_factors[:6] == pytest.approx([1.0] * 4 + [0.25, 0.5])
    assert own.method_lr_factors is not None
    assert own.method_lr_factors == [1.0] * 4 + cosine_schedule(4, 0)


def test_probing_leaves_epochs_for_the_network(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"probe_epochs = 2 leaves none of the 2 epochs .* freeze = backbone"
    ):
        trainer_of("vanilla", tmp_path, epochs=2, probe_epochs=2)


# ---------------------------------------------------------------------- layer-wise rates


NETWORKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("resnet18", {}),
    ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 3}),
    ("convnext_atto", {}),
    ("swin_tiny_patch4_window7_224", {"window_size": 4}),
    ("efficientnet_lite0", {}),
)


@pytest.mark.parametrize(("name", "options"), NETWORKS)
def test_layer_wise_rates_are_those_of_timm(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        fixed: dict[str, Any] = {"img_size": 32} if "swin" in name or "vit" in name else {}
        network: Any = timm.create_model(name, num_classes=3, **options, **fixed)
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    expected = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(network, layer_decay=0.7, weight_decay=0.05)
        for parameter in group["params"]
    }
    model = build_model(name, 3, image_size=32, heads=("clean",), options=options)
    config = make_config(
        {"layer_decay": 0.7, "lr": 0.5, "min_lr": 0.1, "weight_decay": 0.05, "decay_1d": False}
    )
    vanilla = build_method("vanilla", num_classes=3)
    found: dict[str, tuple[float, float]] = {}
    keys = {id(p): key.removeprefix("backbone.") for key, p in model.named_parameters()}
    for group in build_optimizer(config, model, vanilla).param_groups:
        scale = group["max_lr"] / 0.5
        assert group["min_lr"] == pytest.approx(0.1 * scale)
        found |= {keys[id(p)]: (scale, group["weight_decay"]) for p in group["params"]}
    for head in ("weight", "bias"):
        assert found.pop(f"heads.clean.{head}")[0] == 1
    classifier = network.pretrained_cfg["classifier"]
    assert found.keys() == {key for key in expected if not key.startswith(f"{classifier}.")}
    for key, (scale, decay) in found.items():
        assert scale == pytest.approx(expected[key][0]), key
        assert decay == expected[key][1], key
    assert min(scale for scale, _ in found.values()) < 0.5


def test_groups_are_as_before_without_layer_decay() -> None:
    model = build_model("resnet18", 3, width=0.125, image_size=32)
    vanilla = build_method("vanilla", num_classes=3)
    groups = build_optimizer(make_config({"decay_1d": False}), model, vanilla).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-4, 0]
    assert all(group["max_lr"] == 0.1 for group in groups)


def test_a_network_without_groups_of_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("resnet18", 3, width=0.125, image_size=32)
    monkeypatch.delattr(type(model.backbone), "group_matcher")
    with pytest.raises(UsageError, match=r"layer_decay = 0\.7: timm does not group .* resnet18"):
        build_optimizer(
            make_config({"layer_decay": 0.7}), model, build_method("vanilla", num_classes=3)
        )


def test_layer_decay_goes_together_with_freezing_and_logs_the_rate_of_the_heads(
    tmp_path: Path,
) -> None:
    trainer = trainer_of("vanilla", tmp_path, layer_decay=0.5, freeze="layer1", lr=0.04)
    groups = trainer.optimizer.param_groups
    rates = sorted({group["max_lr"] / 0.04 for group in groups})
    assert rates == pytest.approx([0.5**n for n in (6, 5, 4, 3, 2, 1, 0)])
    trainer.fit(until=1)
    (row,) = (row for row in trainer.folder.rows() if isinstance(row, TrainRow))
    assert row.lr == pytest.approx(0.04)
