"""The formats of an export beside timm's: ONNX, `torch.export`, and a Hugging Face Hub folder.

Each is read back from its files, and refused if its logits differ from those of the network.
"""

import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from adautomix.errors import UsageError, one_line
from adautomix.models import Classifier, evaluating, timm_plan
from adautomix.rng import generator_at

ExportFormat = Literal["timm", "onnx", "torch", "hub"]

TOLERANCE = 1e-3
"""Largest difference of logits, as a fraction of the largest logit (at least of 1).

Other runtimes sum in another order; a wrong classifier differs by far more.
"""

_CARD = """---
tags:
- image-classification
- timm
library_name: timm
---
# {name}, {num_classes} classes

Trained with adautomix: {source}.

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:USER/NAME"
```

| Figure | Value |
|---|---|
{figures}

Classes: {classes}.
"""


def check_format(format: str, model: Classifier) -> None:
    """Check that a network can be written in a format, before anything is computed.

    Raises:
        UsageError: there is no such format, its packages are not installed, or timm alone cannot
            build the network from a Hub folder.
    """
    if format not in get_args(ExportFormat):
        raise UsageError(f"unknown format {format!r}: use {', '.join(get_args(ExportFormat))}")
    needed = ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ()
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"format onnx needs {package}: pip install 'adautomix[onnx]'")
    if format == "hub" and timm_plan(model.spec).replacements:
        raise UsageError(
            f"format hub: timm alone cannot build {model.spec.name} with this stem or width; use "
            "format timm, whose script does"
        )


def check_same_logits(
    model: Classifier, head: str, other: Callable[[Tensor], Tensor], what: str, batch: int = 2
) -> None:
    """Check that a network that was read back from its files gives the same logits.

    Args:
        model: the network that was exported.
        head: the exported head.
        other: what was read back, from normalized images `[B, 3, H, W]` to logits `[B, K]`.
        what: name of it for the message.
        batch: number B of images.

    Raises:
        UsageError: the logits differ.
    """
    images = example(model, batch)
    with evaluating(model), torch.no_grad():
        expected = model(images.to(next(model.parameters()).device), head).float().cpu()
        found = other(images)
    scale = max(1.0, expected.abs().max().item())
    same = isinstance(found, Tensor) and found.shape == expected.shape
    difference = (found - expected).abs().max().item() / scale if same else float("inf")
    if not difference <= TOLERANCE:  # NaN as well
        raise UsageError(
            f"export refused: {what} read back from its files gives other logits than "
            f"{model.spec.name} (largest difference {difference:.2g}): use another format or "
            "network"
        )


def example(model: Classifier, batch: int) -> Tensor:
    """Return random normalized images `[batch, 3, H, W]` on the CPU, the same at every call."""
    size = model.spec.image_size
    return torch.randn(batch, 3, size, size, generator=generator_at(0, 0, "export"))


def write_onnx(folder: Path, model: Classifier, network: nn.Module, head: str) -> None:
    """Write `model.onnx`: "images" `[B, 3, H, W]` to "logits" `[B, K]`, for any B.

    Raises:
        UsageError: the network cannot be converted, or onnxruntime computes other logits.
    """
    path = folder / "model.onnx"
    with _one_line(model, "onnx"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example(model, 2),),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    for batch in (1, 3):
        check_same_logits(model, head, run, "the ONNX network", batch)


def write_program(folder: Path, model: Classifier, network: nn.Module, head: str) -> None:
    """Write `model.pt2`, a program of `torch.export` for any batch size.

    Raises:
        UsageError: the network cannot be converted, or the program computes other logits.
    """
    path = folder / "model.pt2"
    with _one_line(model, "torch"):
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(network, (example(model, 2),), dynamic_shapes=shapes)
        torch.export.save(program, path)
        again = torch.export.load(path).module()
    for batch in (1, 3):
        check_same_logits(model, head, again, "the torch.export program", batch)


def write_hub(
    folder: Path,
    model: Classifier,
    weights: dict[str, Tensor],
    config: dict[str, Any],
    figures: dict[str, float],
) -> None:
    """Write a folder that `timm.create_model("local-dir:…")` and the Hugging Face Hub load.

    Raises:
        UsageError: timm does not load it, or its logits differ.
    """
    import timm
    from safetensors.torch import save

    (folder / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
    text = json.dumps(hub_config(model, config), indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(_card(config, figures), encoding="utf-8")
    with _one_line(model, "hub"):
        network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    check_same_logits(model, config["head"], network, "the Hub network")


def hub_config(model: Classifier, config: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json` in timm's format."""
    how, size = config["preparation"], config["image_size"]
    arguments = {key: value for key, value in config["arguments"].items() if key != "num_classes"}
    own = model.backbone.pretrained_cfg
    architecture = config["architecture"].partition(".")[0]
    return {
        "architecture": architecture,
        "num_classes": len(config["classes"]),
        "num_features": model.backbone.num_features,
        "label_names": config["classes"],
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": len(config["classes"]),
            "input_size": [3, size, size],
            "fixed_input_size": bool(own.get("fixed_input_size")),
            "interpolation": how["interpolation"],
            "crop_pct": size / how["resize"],
            "crop_mode": "center",
            "mean": config["mean"],
            "std": config["std"],
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
        },
    }


def _card(config: dict[str, Any], figures: dict[str, float]) -> str:
    """The model card."""
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in figures.items())
    return _CARD.format(
        name=config["architecture"],
        num_classes=len(config["classes"]),
        source=", ".join(f"{key} {value}" for key, value in config["source"].items()),
        figures=rows or "| none recorded | |",
        classes=", ".join(str(name).replace("<", "&lt;") for name in config["classes"]),
    )


@contextmanager
def _one_line(model: Classifier, format: str) -> Iterator[None]:
    """Turn any error of a conversion into one line: timm, PyTorch and ONNX raise many types."""
    try:
        yield
    except OSError:
        raise  # a full disk
    except Exception as error:
        reason = one_line(error)
        raise UsageError(
            f"{model.spec.name} cannot be exported as {format} ({type(error).__name__}: {reason}): "
            "use --format timm"
        ) from error
