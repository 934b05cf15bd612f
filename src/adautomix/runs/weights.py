"""Backbone weights from a run folder, an exported folder or a safetensors file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.models import Classifier
from adautomix.runs.checkpoint import load_checkpoint


def load_backbone(student: Classifier, path: Path) -> None:
    """Give a network the backbone of another; its heads stay as they are, for classes of its own.

    Args:
        student: the network that is to start from there.
        path: a run folder (its teacher), a folder of `adautomix export`, or a safetensors file
            under timm's names.

    Raises:
        UsageError: no weights there, or those of another architecture.
        RunError: the checkpoint is damaged.
    """
    weights = without_classifier(read_backbone(path), student.backbone)
    if text := misfit(student.backbone.state_dict(), weights):
        spec = student.spec
        raise UsageError(
            f"init = {path} is not the backbone of {spec.name}, width {spec.width:g}, stem "
            f"{spec.stem}, {spec.image_size} pixels: {text}; leave these settings to init, or set "
            "them as it was trained"
        )
    student.backbone.load_state_dict(weights)


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Weights under timm's names, perhaps with those of a classifier.

    Raises:
        UsageError: there are none.
        RunError: the checkpoint is damaged.
    """
    if (path / "config.yaml").is_file():
        teacher = load_checkpoint(path)[0].part("teacher")
        prefix = "backbone."
        return {n.removeprefix(prefix): w for n, w in teacher.items() if n.startswith(prefix)}
    try:
        return load_file(path / "model.safetensors" if path.is_dir() else path)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"init = {path}: no run folder, folder of `adautomix export` or safetensors file "
            f"({error})"
        ) from None


def without_classifier(weights: Mapping[str, Tensor], backbone: Any) -> dict[str, Tensor]:
    """The weights without those of timm's classifier, or of both of a distilled transformer."""
    names = backbone.pretrained_cfg["classifier"] or ()
    classifiers = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    return {name: weight for name, weight in weights.items() if not name.startswith(classifiers)}


def misfit(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """The first weight that only one network has, or in another shape; "" where all fit."""
    for name in {**mine, **theirs}:
        if name not in theirs:
            return f"it has no {name}"
        if name not in mine:
            return f"it has {name}"
        if mine[name].shape != theirs[name].shape:
            return f"{name} is {list(theirs[name].shape)}, not {list(mine[name].shape)}"
    return ""
