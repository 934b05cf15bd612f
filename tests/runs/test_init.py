"""Weights that a run starts from: files of every kind, folders, and the Hugging Face Hub."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from every import trainer_of
from safetensors.torch import save_file
from torch import Tensor

from adautomix.config import make_config
from adautomix.errors import RunError, UsageError
from adautomix.models import Classifier, build_model
from adautomix.runs.input_settings import weights_input
from adautomix.runs.weights import load_backbone
from adautomix.training.announce import run_lines

NAME = "test_vit"


def source(classes: int = 7, **options: Any) -> dict[str, Tensor]:
    """The weights of a network with a classifier of its own."""
    torch.manual_seed(3)
    network: Any = timm.create_model(NAME, num_classes=classes, img_size=32, **options)
    weights: dict[str, Tensor] = network.state_dict()
    return weights


def student(name: str = NAME) -> Classifier:
    return build_model(name, 3, image_size=32, heads=("clean",), seed=0)


def assert_loaded(model: Classifier, weights: dict[str, Tensor]) -> None:
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pth.tar"])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_state_dicts_of_torch_save(suffix: str, key: str | None, tmp_path: Path) -> None:
    weights = source()
    renamed = {f"module.{name}": value for name, value in weights.items()}
    path = tmp_path / f"mine{suffix}"
    torch.save({key: renamed, "epoch": 3} if key else renamed, path)
    model = student()
    line = load_backbone(model, path)
    assert_loaded(model, weights)
    count = len(model.backbone.state_dict())
    assert line == (
        f"init: {count} tensors loaded from {path}; left out the old classifier: "
        "head.weight [7, 64], head.bias [7]"
    )


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": source(), "planted": Planted()}, tmp_path / "bad.pth")
    (tmp_path / "worse.pth").write_bytes(pickle.dumps(Planted(), protocol=2))
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": {"epoch": 3}}, tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("bad", "worse", "list", "none", "text", "absent"):
        with pytest.raises(UsageError, match=r"is not a run folder, an exported folder or a file"):
            load_backbone(student(), tmp_path / f"{name}.pth")
    assert not (tmp_path / "ran").exists()


def test_what_does_not_fit_is_refused_with_its_first_names(tmp_path: Path) -> None:
    save_file(source(), tmp_path / "vit.safetensors")
    with pytest.raises(UsageError) as raised:
        load_backbone(student("resnet18"), tmp_path / "vit.safetensors")
    text = str(raised.value)
    assert "does not fit resnet18 with width 1, stem standard and 32 pixels" in text
    assert "its first tensors are " in text
    assert text.count("\n") == 0
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(UsageError, match="missing: it is empty"):
        load_backbone(student(), tmp_path / "empty.safetensors")


def test_weights_are_converted_as_timm_converts_them(tmp_path: Path) -> None:
    """The position embedding of larger images is resized, and names of elsewhere are refused."""
    large: Any = timm.create_model(NAME, num_classes=7, img_size=64)
    path = tmp_path / "large.pth"
    torch.save(large.state_dict(), path)
    model = student()
    load_backbone(model, path)
    assert torch.equal(model.backbone.patch_embed.proj.weight, large.patch_embed.proj.weight)
    assert model.backbone.pos_embed.shape != large.pos_embed.shape
    torch.save({f"net.{name}": value for name, value in source().items()}, path)
    with pytest.raises(UsageError, match=r"its first tensors are net\."):
        load_backbone(student(), path)


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A folder as timm saves it for the Hub."""
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(source(depth=2), folder / "model.safetensors")
    cfg = {
        "input_size": [3, 32, 32],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
    }
    config = {"architecture": NAME, "model_args": {"depth": 2}, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_in_the_format_of_timm(prefix: str, hub_folder: Path, tmp_path: Path) -> None:
    config = make_config({"init": f"{prefix}{hub_folder}", "method": "vanilla"})
    assert config.init == hub_folder
    assert (config.model, config.image_size, config.model_options) == (NAME, 32, {"depth": 2})
    expected = weights_input(config)
    assert (expected.mean, expected.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (expected.interpolation, expected.crop_fraction) == ("bilinear", 0.9)
    options = {"init": str(hub_folder), "model": NAME, "model_options": {"depth": 2}, "width": 1.0}
    trainer = trainer_of("vanilla", tmp_path / "run", image_size=16, **options)
    assert any(line.startswith("init: ") for line in run_lines(trainer))
    weights = source(depth=2)
    name = "blocks.1.attn.qkv.weight"
    assert torch.equal(trainer.student.backbone.state_dict()[name], weights[name])
    (hub_folder / "model.safetensors").rename(hub_folder / "elsewhere")
    torch.save(weights, hub_folder / "pytorch_model.bin")
    trainer_of("vanilla", tmp_path / "again", image_size=16, **options)


@pytest.mark.parametrize(
    "content",
    [
        '["architecture"]',
        '{"architecture": "test_vit"}',
        '{"architecture": "test_vit", "pretrained_cfg": 3}',
        '{"architecture": "test_vit", "pretrained_cfg": {"input_size": []}}',
        '{"architecture": "test_vit", "input_size": [3, 32, 32], "model_args": [1]}',
    ],
)
def test_a_folder_that_describes_nothing_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match="does not say which network it holds"):
        make_config({"init": tmp_path})


@pytest.mark.parametrize(
    "change", [{"std": [0, 1, 1]}, {"mean": [0.5]}, {"crop_pct": -1}, {"crop_pct": float("nan")}]
)
def test_a_folder_that_prepares_images_in_no_way_is_refused(
    change: dict[str, Any], hub_folder: Path
) -> None:
    config = json.loads((hub_folder / "config.json").read_text())
    config["pretrained_cfg"] |= change
    (hub_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="does not say how its network's images were prepared"):
        weights_input(make_config({"init": hub_folder}))


def test_a_network_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def describe(name: str) -> Any:
        asked.append(name)
        return {"mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"}, NAME, {}

    def download(name: str, *, weights_only: bool) -> dict[str, Tensor]:
        assert weights_only
        return source()

    monkeypatch.setattr("timm.models.load_model_config_from_hf", describe)
    monkeypatch.setattr("timm.models.load_state_dict_from_hf", download)
    config = make_config({"init": "hf-hub:somebody/vit", "model": NAME, "image_size": 32})
    assert asked == [], "settings are read without going online"
    assert config.init is not None
    model = student()
    assert "loaded from hf-hub:somebody/vit; left out" in load_backbone(model, config.init)
    assert_loaded(model, source())
    found = weights_input(config)
    assert (found.mean, found.interpolation) == ((0.1, 0.2, 0.3), "bilinear")
    assert set(asked) == {"somebody/vit"}
    with pytest.raises(UsageError, match=f"is {NAME}, and model = resnet18: set model to {NAME}"):
        load_backbone(student("resnet18"), config.init)


def test_a_download_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise OSError("no\nconnection")

    monkeypatch.setattr("timm.models.load_model_config_from_hf", fail)
    with pytest.raises(RunError, match=r"hf-hub:a/b cannot be loaded \(no connection\)") as raised:
        load_backbone(student(), Path("hf-hub:a/b"))
    assert str(raised.value).count("\n") == 0


def test_a_run_folder_never_makes_anything_go_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is resumed or evaluated is built without the weights that it started from."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("it went online")

    for name in ("load_model_config_from_hf", "load_state_dict_from_hf"):
        monkeypatch.setattr(f"timm.models.{name}", refuse)
    from adautomix.runs.build import build_networks

    config = make_config({"init": "hf-hub:somebody/vit", "model": NAME, "image_size": 32})
    cpu = torch.device("cpu")
    build_networks(config, num_classes=3, image_size=32, device=cpu, from_checkpoint=True)
    with pytest.raises(RunError, match="it went online"):
        build_networks(config, num_classes=3, image_size=32, device=cpu)
