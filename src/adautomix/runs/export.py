"""Export a trained network for use without this package.

A folder in the format "timm" holds `model.safetensors`, `config.json`, `load_model.py`,
`README.md` and `adautomix_decoder/`, a copy of the code that prepares images, so that the script
prepares them exactly as `adautomix predict` does. The other formats are in `export_formats`.
Every format is read back before the folder appears, and must give the logits of the network.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adautomix.data.preparation import MAX_PIXELS, Preparation, default_preparation
from adautomix.errors import UsageError
from adautomix.files import atomic_folder, explain_full_disk, read_json
from adautomix.models import (
    Classifier,
    check_build_arguments,
    check_replacements,
    timm_plan,
)
from adautomix.models.timm_weights import replace_modules, timm_state_dict
from adautomix.runs.export_formats import (
    ExportFormat,
    check_format,
    check_same_logits,
    write_hub,
    write_onnx,
    write_program,
)

_README = """# {name}, {num_classes} classes

Trained with adautomix: {source}.

    pip install torch timm safetensors pillow
    python load_model.py IMAGE

`load_model.load_model()` returns the network, and `load_model.read_image(file)` its input.
`config.json` holds its classes, image size and normalization (for pixels from 0 to 1). The weights
have timm's names for this architecture.
"""


@dataclass(frozen=True)
class ExportFacts:
    """What an exported folder says about its network.

    Attributes:
        classes: names of the K classes, in the order of the outputs.
        mean: mean of each channel, for pixels from 0 to 1.
        std: standard deviation of each channel, for pixels from 0 to 1.
        source: where the weights come from (run, network, step, …), which is written to the files.
        head: name of the linear head that becomes timm's classifier.
        multi_label: whether each class has a probability of its own.
        preparation: how an image file becomes an input; None: as in a new run by default.
        max_pixels: largest number of pixels that a picture may have.
        temperature: number that divides the logits before they become probabilities.
        figures: results of the run by name, for the model card.
    """

    classes: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]
    source: dict[str, Any]
    head: str = "clean"
    multi_label: bool = False
    preparation: Preparation | None = None
    max_pixels: int = MAX_PIXELS
    temperature: float = 1.0
    figures: dict[str, float] = field(default_factory=dict)


def export_model(
    model: Classifier, folder: Path, *, format: ExportFormat = "timm", **facts: Any
) -> Path:
    """Write a network that can be loaded without this package.

    Args:
        model: the network to export.
        folder: the folder to write, which must be new or empty.
        format: "timm"; "onnx" or "torch", which add `model.onnx` or `model.pt2`; or "hub", a
            folder for the Hugging Face Hub.
        **facts: see `ExportFacts`.

    Returns:
        The folder.

    Raises:
        UsageError: the folder is not empty, the facts do not fit the network, the format is not
            installed, or the files do not reproduce the logits.
        RunError: the disk is full; nothing is left behind.
    """
    about = ExportFacts(**facts)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: export needs a new or empty folder")
    if len(about.classes) != model.num_classes:
        raise UsageError(
            f"{len(about.classes)} class names for a network with {model.num_classes} classes"
        )
    check_format(format, model)
    weights = timm_state_dict(model, about.head)
    config = _config(model, about)
    with (
        explain_full_disk(folder, "repeat the command"),
        atomic_folder(folder) as temporary,
    ):
        if format == "hub":
            write_hub(temporary, model, weights, config, about.figures)
            return folder
        _write(temporary, weights, config)
        network, _ = load_exported(temporary)
        check_same_logits(model, about.head, network.eval(), "timm's network")
        if format == "onnx":
            write_onnx(temporary, model, network, about.head)
        elif format == "torch":
            write_program(temporary, model, network, about.head)
    return folder


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
        replace_modules(model, config["replaced"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except Exception as error:  # timm and torch raise almost any exception on wrong arguments
        raise UsageError(
            f"{folder} was not written by `adautomix export`, or is damaged "
            f"({type(error).__name__}: {error}): {remedy}"
        ) from None
    return model, config


def _config(model: Classifier, about: ExportFacts) -> dict[str, Any]:
    """The content of `config.json`."""
    import timm

    spec, plan = model.spec, timm_plan(model.spec)
    how = about.preparation or default_preparation(spec.image_size)
    told = asdict(about)
    return {
        "architecture": spec.name,
        "arguments": {"num_classes": spec.num_classes, **plan.arguments},
        "replaced": plan.replacements,
        "stem": spec.stem,
        "width": spec.width,
        "image_size": spec.image_size,
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
        "classes": list(about.classes),
        "mean": list(about.mean),
        "std": list(about.std),
        **{name: told[name] for name in ("head", "multi_label", "temperature", "source")},
        "preparation": how.as_dict() | {"max_pixels": about.max_pixels},
    }


def _write(folder: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write the files of an exported folder that every format except "hub" has."""
    from safetensors.torch import save

    readme = _README.format(
        name=config["architecture"],
        num_classes=len(config["classes"]),
        source=", ".join(f"{key} {value}" for key, value in config["source"].items()),
    )
    # write_bytes reports a full disk as an OSError; save_file raises another error.
    (folder / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
    script = files("adautomix.runs").joinpath("templates", "load_model.py")
    for name, text in {
        "config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        "load_model.py": script.read_text(encoding="utf-8"),
        "README.md": readme,
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    _copy_decoder(folder / "adautomix_decoder")


def _copy_decoder(folder: Path) -> None:
    """Copy the modules that prepare an image file; they need only Pillow."""
    folder.mkdir()
    for name in ("__init__", "files", "reading", "views"):
        text = files("adautomix.decoder").joinpath(f"{name}.py").read_text(encoding="utf-8")
        text = text.replace("adautomix.decoder", folder.name)
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
