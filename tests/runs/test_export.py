import json
import runpy
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from adautomix.data.decoding.image_files import prepare_images
from adautomix.data.preparation import default_preparation
from adautomix.errors import UsageError
from adautomix.models import Classifier, build_model
from adautomix.models.timm_weights import timm_state_dict
from adautomix.rng import generator_at
from adautomix.runs.export import export_model

pytestmark = pytest.mark.slow

CLASSES = ["ant", "bee", "fly ☂", "moth", "wasp", "gnat"]
MEAN, STD = (0.5, 0.25, 0.75), (0.25, 0.5, 0.2)
NETS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "convnext_tiny": {"stem": "cifar", "width": 0.25},
    "resnet18d": {"stem": "cifar", "width": 0.25, "options": {"drop_rate": 0.1}},
    "swin_tiny_patch4_window7_224": {"width": 0.25, "drop_path": 0.1},
    "deit_small_distilled_patch16_224": {"width": 0.25},  # two classifiers in timm
}

# Runs in a fresh interpreter where the package cannot be imported.
DRIVER = """
import runpy, sys, torch
from pathlib import Path
sys.modules["adautomix"] = None
batch = torch.load("batch.pt")
for folder in sys.argv[1:]:
    script = runpy.run_path(f"{folder}/load_model.py")
    with torch.no_grad():
        torch.save(script["load_model"]()(batch), f"{folder}.logits")
sys.argv = ["load_model.py", "photo.png"]
runpy.run_path(f"{folder}/load_model.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Exported:
    root: Path
    models: dict[str, Classifier]
    batch: Tensor
    printed: str


def make(name: str) -> Classifier:
    model = build_model(name, 6, image_size=32, seed=4, **NETS[name])
    with torch.no_grad():  # larger head weights, other statistics than the initial ones
        for head in model.heads:
            model.get_parameter(f"heads.{head}.weight").mul_(30)
            model.get_parameter(f"heads.{head}.bias").copy_(torch.arange(6) / 10)
        for _ in range(3):
            model(torch.randn(8, 3, 32, 32, generator=generator_at(0, 0, name)))
    return model.eval()


def write(model: Classifier, folder: Path, **changes: Any) -> Path:
    arguments = {"classes": CLASSES, "mean": MEAN, "std": STD, "source": {"run": "r1", "step": 7}}
    return export_model(model, folder, **arguments | changes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("exported")
    models = {name: make(name) for name in NETS}
    for name, model in models.items():
        write(model, root / name)
    batch = torch.randn(3, 3, 32, 32, generator=generator_at(1, 0, "images"))
    torch.save(batch, root / "batch.pt")
    pixels = torch.randint(0, 256, (32, 32, 3), generator=generator_at(1, 0, "photo"))
    Image.frombytes("RGB", (32, 32), bytes(pixels.flatten().tolist())).save(root / "photo.png")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *NETS],
        cwd=root,
        capture_output=True,
        encoding="utf-8",
        env={"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return Exported(root, models, batch, done.stdout)


@pytest.mark.parametrize("name", NETS)
def test_the_script_gives_the_same_logits_without_the_package(
    exported: Exported, name: str
) -> None:
    with torch.no_grad():
        expected = exported.models[name](exported.batch)
    logits = torch.load(exported.root / f"{name}.logits")
    assert expected.std(dim=0).min() > 1e-3  # the logits differ between images
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_the_script_prints_the_classes_of_an_image(exported: Exported) -> None:
    *_, model = exported.models.values()
    with Image.open(exported.root / "photo.png") as photo:
        pixels = torch.tensor(list(photo.tobytes())).view(32, 32, 3)
    channels = [(pixels[..., c] / 255 - MEAN[c]) / STD[c] for c in range(3)]
    with torch.no_grad():
        probabilities = model(torch.stack(channels).unsqueeze(0)).softmax(1)[0].tolist()
    ranked = sorted(zip(probabilities, CLASSES, strict=True), reverse=True)[:5]
    printed = [line.split("  ") for line in exported.printed.splitlines()]
    assert [name for _, name in printed] == [name for _, name in ranked]
    for (text, _), (probability, _) in zip(printed, ranked, strict=True):
        assert float(text) == pytest.approx(probability, abs=2e-4)


def test_timm_alone_loads_a_standard_network(exported: Exported) -> None:
    model = timm.create_model("resnet18", num_classes=6)
    model.load_state_dict(load_file(exported.root / "resnet18" / "model.safetensors"), strict=True)
    with torch.no_grad():
        logits = model.eval()(exported.batch)
        torch.testing.assert_close(logits, exported.models["resnet18"](exported.batch))


def test_the_folder_describes_its_content(exported: Exported) -> None:
    folder = exported.root / "resnet18d"
    names = {"model.safetensors", "config.json", "load_model.py", "README.md", "adautomix_decoder"}
    assert {path.name for path in folder.iterdir()} == names
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == "resnet18d"
    assert config["arguments"]["channels"] == [16, 32, 64, 128]
    assert (config["classes"], config["mean"], config["std"]) == (CLASSES, [*MEAN], [*STD])
    assert (config["stem"], config["width"], config["image_size"]) == ("cifar", 0.25, 32)
    assert config["source"] == {"run": "r1", "step": 7}
    assert len((folder / "load_model.py").read_text().splitlines()) <= 40
    assert "run r1, step 7" in (folder / "README.md").read_text(encoding="utf-8")


def test_export_of_another_head_and_memory_layout(exported: Exported, tmp_path: Path) -> None:
    model = make("resnet18").to(memory_format=torch.channels_last)
    folder = write(model, tmp_path / "mixed", head="mixed")
    weights = load_file(folder / "model.safetensors")
    assert torch.equal(weights["fc.weight"], model.get_parameter("heads.mixed.weight"))
    assert torch.equal(weights["conv1.weight"], model.backbone.conv1.weight)


def test_exported_weights_are_a_copy() -> None:
    model = make("resnet18")
    state = timm_state_dict(model)
    with torch.no_grad():
        model.get_parameter("heads.clean.bias").zero_()
    assert state["fc.bias"].any()


def test_existing_files_are_not_overwritten(tmp_path: Path) -> None:
    model = build_model("resnet18", 6, width=0.25)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match="export needs a new or empty folder"):
        write(model, tmp_path)
    with pytest.raises(UsageError, match="export needs a new or empty folder"):
        write(model, tmp_path / "note.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_arguments_that_do_not_fit_write_nothing(tmp_path: Path) -> None:
    model = build_model("resnet18", 6, width=0.25, heads=("mixed",))
    with pytest.raises(UsageError, match="2 class names for a network with 6 classes"):
        write(model, tmp_path / "new", classes=["a", "b"])
    with pytest.raises(UsageError, match="head 'clean': the network has mixed"):
        write(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_export_that_gives_other_logits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def altered(model: Classifier, head: str) -> dict[str, Tensor]:
        state = timm_state_dict(model, head)
        return state | {"fc.bias": state["fc.bias"] + torch.arange(6) / 50}

    monkeypatch.setattr("adautomix.runs.export.timm_state_dict", altered)
    with pytest.raises(UsageError, match="export refused: timm's network read back"):
        write(build_model("resnet18", 6, image_size=32, width=0.125), tmp_path / "new")
    assert not any(tmp_path.iterdir())


def photo_files(folder: Path) -> list[Path]:
    """Pictures whose preparation differs between readers: large, turned, transparent, 16 bits."""
    noise = torch.randint(0, 256, (600, 900, 4), generator=generator_at(1, 0, "photo"))
    noise = noise[::8, ::8].repeat_interleave(8, 0).repeat_interleave(8, 1).to(torch.uint8)
    image = Image.fromarray(noise.numpy(), "RGBA")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.convert("RGB").save(folder / "large.jpg", exif=turned)
    image.resize((90, 70)).save(folder / "transparent.png")
    gray = (noise[..., 0].numpy().astype("uint16") << 4) + 5
    Image.fromarray(gray).save(folder / "gray.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("size", [32, 112])  # the center square is stored; a center crop
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_script_prepares_images_as_predict_does(
    tmp_path: Path, size: int, interpolation: Any
) -> None:
    model = build_model("resnet18", 6, image_size=size, stem="cifar", width=0.125)
    how = replace(default_preparation(size), interpolation=interpolation)
    folder = write(model, tmp_path / "model", preparation=how)
    (tmp_path / "photos").mkdir()
    files = photo_files(tmp_path / "photos")
    script = runpy.run_path(str(folder / "load_model.py"))
    mine = torch.cat([script["read_image"](str(file)) for file in files])
    theirs = prepare_images(files, image_size=size, mean=MEAN, std=STD, preparation=how)
    assert torch.equal(mine, theirs)


def test_timm_loads_a_hub_folder(tmp_path: Path) -> None:
    model = build_model("resnet18", 6, image_size=32, seed=1).eval()
    folder = write(model, tmp_path / "hub", format="hub", figures={"test accuracy": 0.875})
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    assert "| test accuracy | 0.875 |" in (folder / "README.md").read_text(encoding="utf-8")
    again: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    assert again.pretrained_cfg["mean"] == [*MEAN]
    assert again.pretrained_cfg["label_names"] == CLASSES


def test_a_hub_folder_needs_a_network_that_timm_builds(tmp_path: Path) -> None:
    model = build_model("resnet18", 6, image_size=32, stem="cifar", width=0.125)
    with pytest.raises(UsageError, match="use format timm, whose script does"):
        write(model, tmp_path / "hub", format="hub")
    with pytest.raises(UsageError, match="unknown format 'tflite': use timm, onnx, torch, hub"):
        write(model, tmp_path / "hub", format="tflite")


def test_a_program_of_torch_export_takes_any_batch(tmp_path: Path) -> None:
    model = build_model("resnet18", 6, image_size=32, stem="cifar", width=0.125, seed=1).eval()
    folder = write(model, tmp_path / "program", format="torch")
    program = torch.export.load(folder / "model.pt2").module()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program(images), model(images))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "convnext_atto",
        "swin_tiny_patch4_window7_224",
        "deit_tiny_patch16_224",
        "efficientnet_b0",
    ],
)
def test_onnxruntime_gives_the_same_logits_for_any_batch(name: str, tmp_path: Path) -> None:
    import onnxruntime

    model = build_model(name, 6, image_size=64, seed=1).eval()
    folder = write(model, tmp_path / "onnx", format="onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for batch in (1, 4):
        images = torch.randn(batch, 3, 64, 64)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(logits), model(images), atol=1e-4, rtol=1e-3
            )
