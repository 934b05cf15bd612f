"""Load backbone weights from a run folder, an exported folder or a safetensors file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.models import Classifier
from adautomix.runs.checkpoint import load_tensors, newest_checkpoint


def load_backbone(student: Classifier, path: Path) -> None:
    """Load the backbone weights of another network; the heads keep theirs.

    Args:
        student: the network to load the weights into.
        path: a run folder, whose teacher is used; a folder that `adautomix export` wrote; or a
            safetensors file with timm's names.

    Raises:
        UsageError: there are no weights at `path`, or those of another architecture.
        RunError: the checkpoint is damaged.
    """
    weights = without_classifier(read_backbone(path), student.backbone)
    if text := first_mismatch(student.backbone.state_dict(), weights):
        spec = student.spec
        raise UsageError(
            f"init = {path} does not fit {spec.name} with width {spec.width:g}, stem {spec.stem} "
            f"and {spec.image_size} pixels: {text}; use the settings it was trained with"
        )
    student.backbone.load_state_dict(weights)


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Read weights with timm's names, with or without those of a classifier.

    Raises:
        UsageError: there are no weights at `path`.
        RunError: the checkpoint is damaged.
    """
    if (path / "config.yaml").is_file():
        teacher = newest_checkpoint(path).part("teacher")
        prefix = "backbone."
        return {n.removeprefix(prefix): w for n, w in teacher.items() if n.startswith(prefix)}
    try:
        return load_tensors(path / "model.safetensors" if path.is_dir() else path)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"init = {path} is not a run folder, an exported folder or a safetensors file ({error})"
        ) from None


def without_classifier(weights: Mapping[str, Tensor], backbone: Any) -> dict[str, Tensor]:
    """Remove the weights of timm's classifier, or of both in a distilled transformer."""
    names = backbone.pretrained_cfg["classifier"] or ()
    classifiers = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    return {name: weight for name, weight in weights.items() if not name.startswith(classifiers)}


def first_mismatch(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Describe the first weight that is missing, unexpected or of another shape; "" if all fit."""
    for name in {**expected, **weights}:
        if name not in weights:
            return f"it lacks {name}"
        if name not in expected:
            return f"it also has {name}"
        if expected[name].shape != weights[name].shape:
            return f"{name} is {list(weights[name].shape)}, not {list(expected[name].shape)}"
    return ""
