"""A trained network for use without this package: weights under timm's names and a short script.

The folder holds `model.safetensors`, `config.json`, `load_model.py` and `README.md`.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.models import Classifier, timm_plan

_README = """# {name}, {num_classes} classes

Trained with adautomix: {source}.

    pip install torch timm safetensors pillow
    python load_model.py IMAGE

`load_model.load_model()` gives the network, `config.json` its classes, image size and
normalization (of pixels from 0 to 1). The weights carry timm's names for this architecture.
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
) -> Path:
    """Write a network that torch, timm and safetensors load on their own.

    Args:
        model: the network to export.
        folder: where to; must be new or empty.
        classes: names of the K classes in the order of the outputs.
        mean: of every channel, for pixels from 0 to 1.
        std: likewise.
        source: where the weights come from (run, network, step, …), kept in the files.
        head: the linear head that becomes timm's classifier.

    Returns:
        The folder.

    Raises:
        UsageError: the folder has something in it, or head or classes do not fit the network.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: export needs a new or empty folder")
    if len(classes) != model.num_classes:
        raise UsageError(f"{len(classes)} class names for a network of {model.num_classes}")
    weights = timm_state_dict(model, head)
    config = _config(model) | {
        "classes": list(classes),
        "mean": list(mean),
        "std": list(std),
        "head": head,
        "source": source,
    }
    _write(folder, weights, config)
    return folder


def timm_state_dict(model: Classifier, head: str = "clean") -> dict[str, Tensor]:
    """A copy of the weights under timm's names, one head in the place of timm's classifier.

    Raises:
        UsageError: the network has no such head.
    """
    if head not in model.heads:
        raise UsageError(f"head {head!r}: the network has {', '.join(model.heads)}")
    state = dict(model.backbone.state_dict())
    classifier = model.backbone.pretrained_cfg["classifier"]
    # A distilled transformer has two, and averages what they say: both get the same weights.
    for name in (classifier,) if isinstance(classifier, str) else classifier:
        state |= {f"{name}.{key}": value for key, value in model.heads[head].state_dict().items()}
    return {name: _own_copy(value) for name, value in state.items()}


def load_exported(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The timm network of an exported folder, and its `config.json`.

    Raises:
        UsageError: the folder is none, or its weights do not fit its config.
    """
    import timm
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model: nn.Module = timm.create_model(config["architecture"], **config["arguments"])
        for path, conv in config["replaced"].items():
            model.set_submodule(path, nn.Conv2d(**conv) if conv else nn.Identity())
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise UsageError(f"{folder} is no folder of `adautomix export`: {error}") from None
    return model, config


def _own_copy(value: Tensor) -> Tensor:
    """On the CPU in plain layout: safetensors takes no shared and no channels-last memory."""
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _config(model: Classifier) -> dict[str, Any]:
    """What rebuilds the network with timm."""
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
    from safetensors.torch import save_file

    script = (
        files("adautomix.runs").joinpath("templates", "load_model.py").read_text(encoding="utf-8")
    )
    readme = _README.format(
        name=config["architecture"],
        num_classes=len(config["classes"]),
        source=", ".join(f"{key} {value}" for key, value in config["source"].items()),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, text in {
        "config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        "load_model.py": script,
        "README.md": readme,
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
