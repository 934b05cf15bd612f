"""Export a trained network for use without this package, as timm weights and a short script.

The folder holds `model.safetensors`, `config.json`, `load_model.py` and `README.md`.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from adautomix.data.preparation import Preparation, default_preparation
from adautomix.decoder.files import ALWAYS_FORMATS
from adautomix.errors import UsageError
from adautomix.files import atomic_folder, explain_full_disk, read_json
from adautomix.models import (
    Classifier,
    check_build_arguments,
    check_replacements,
    timm_plan,
)

_README = """# {name}, {num_classes} classes

Trained with adautomix: {source}.

    pip install torch timm safetensors pillow
    python load_model.py IMAGE

`load_model.load_model()` returns the network. `config.json` holds its classes, image size and
normalization (for pixels from 0 to 1). The weights have timm's names for this architecture.
"""


def export_model(
    model: Classifier,
    folder: Path,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    source: dict[str, Any],
    head: str = "clean",
    multi_label: bool = False,
    preparation: Preparation | None = None,
) -> Path:
    """Write a network that can be loaded with torch, timm and safetensors alone.

    Args:
        model: the network to export.
        folder: the folder to write, which must be new or empty.
        classes: names of the K classes, in the order of the outputs.
        mean: mean of each channel, for pixels from 0 to 1.
        std: standard deviation of each channel, for pixels from 0 to 1.
        source: where the weights come from (run, network, step, …), which is written to the files.
        head: name of the linear head that becomes timm's classifier.
        multi_label: whether each class has a probability of its own.
        preparation: how an image file becomes an input; None: as in a new run by default.

    Returns:
        The folder.

    Raises:
        UsageError: the folder is not empty, or `classes` or `head` do not fit the network.
        RunError: the disk is full; nothing is left behind.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: export needs a new or empty folder")
    if len(classes) != model.num_classes:
        raise UsageError(
            f"{len(classes)} class names for a network with {model.num_classes} classes"
        )
    weights = timm_state_dict(model, head)
    how = preparation or default_preparation(model.spec.image_size)
    config = _config(model) | {
        "classes": list(classes),
        "mean": list(mean),
        "std": list(std),
        "head": head,
        "multi_label": multi_label,
        "preparation": how.as_dict(),
        "formats": list(ALWAYS_FORMATS),
        "fit": fit_arguments(how, model.spec.image_size),
        "source": source,
    }
    with (
        explain_full_disk(folder, "repeat the command"),
        atomic_folder(folder) as temporary,
    ):
        _write(temporary, weights, config)
    return folder


def fit_arguments(preparation: Preparation, image_size: int) -> dict[str, Any]:
    """Return arguments of Pillow's `ImageOps.fit` that resize and crop a picture likewise."""
    squares = preparation.kind == "square"  # which are always bicubic
    method = "BICUBIC" if squares else preparation.interpolation.upper()
    return {
        "size": [image_size, image_size],
        "method": int(Image.Resampling[method]),
        "bleed": max(0.0, (1 - image_size / preparation.resize) / 2),
    }


def timm_state_dict(model: Classifier, head: str = "clean") -> dict[str, Tensor]:
    """Copy the weights under timm's names, with one head as timm's classifier.

    Args:
        model: the network.
        head: name of the head.

    Raises:
        UsageError: the network has no such head.
    """
    if head not in model.heads:
        raise UsageError(f"head {head!r}: the network has {', '.join(model.heads)}")
    state = dict(model.backbone.state_dict())
    classifier = model.backbone.pretrained_cfg["classifier"]
    # A distilled transformer averages the outputs of two classifiers: both get the same weights.
    for name in (classifier,) if isinstance(classifier, str) else classifier:
        state |= {f"{name}.{key}": value for key, value in model.heads[head].state_dict().items()}
    return {name: _cpu_copy(value) for name, value in state.items()}


def load_exported(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load the timm network of an exported folder.

    Returns:
        The network and the content of `config.json`.

    Raises:
        UsageError: this is not an exported folder, or its weights do not fit its config.
    """
    import timm
    from safetensors.torch import load_file

    remedy = "name a folder that `adautomix export` wrote"
    config = read_json(folder / "config.json", remedy)
    try:
        check_build_arguments(config["architecture"], config["arguments"])
        check_replacements(config["replaced"])
        model: nn.Module = timm.create_model(config["architecture"], **config["arguments"])
        for path, conv in config["replaced"].items():
            model.set_submodule(path, nn.Conv2d(**conv) if conv else nn.Identity())
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except Exception as error:  # timm and torch raise almost any exception on wrong arguments
        raise UsageError(
            f"{folder} was not written by `adautomix export`, or is damaged "
            f"({type(error).__name__}: {error}): {remedy}"
        ) from None
    return model, config


def _cpu_copy(value: Tensor) -> Tensor:
    """Copy a tensor to the CPU; safetensors needs contiguous memory that is not shared."""
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _config(model: Classifier) -> dict[str, Any]:
    """The part of `config.json` from which `load_model.py` builds the network with timm."""
    import timm

    spec, plan = model.spec, timm_plan(model.spec)
    return {
        "architecture": spec.name,
        "arguments": {"num_classes": spec.num_classes, **plan.arguments},
        "replaced": plan.replacements,
        "stem": spec.stem,
        "width": spec.width,
        "image_size": spec.image_size,
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }


def _write(folder: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write the four files of an exported folder."""
    from safetensors.torch import save

    script = (
        files("adautomix.runs").joinpath("templates", "load_model.py").read_text(encoding="utf-8")
    )
    readme = _README.format(
        name=config["architecture"],
        num_classes=len(config["classes"]),
        source=", ".join(f"{key} {value}" for key, value in config["source"].items()),
    )
    # write_bytes reports a full disk as an OSError; save_file raises another error.
    (folder / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
    for name, text in {
        "config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        "load_model.py": script,
        "README.md": readme,
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
