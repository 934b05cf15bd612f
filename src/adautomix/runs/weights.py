"""Load backbone weights from a run, an exported folder, a file or the Hugging Face Hub."""

import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from adautomix.errors import UsageError, one_line
from adautomix.models import Classifier
from adautomix.runs.checkpoint import load_tensors, newest_checkpoint
from adautomix.runs.hub import hub_network, hub_weights, is_hub_name

_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in a folder in the format of timm, the first that exists."""


def load_backbone(student: Classifier, path: Path) -> str:
    """Load the backbone weights of another network; the heads keep theirs.

    Args:
        student: the network to load the weights into.
        path: a run folder, whose teacher is used; a folder that `adautomix export` wrote or that
            has timm's format; a file of weights with timm's names, or with those that timm
            converts for this architecture; or `hf-hub:NAME`.

    Returns:
        A line that says how many tensors were loaded, and which were left out.

    Raises:
        UsageError: there are no weights at `path`, or those of another architecture.
        RunError: the checkpoint is damaged, or the weights cannot be downloaded.
    """
    if is_hub_name(path):
        check_hub_network(student, path)
    found = read_backbone(path)
    expected = student.backbone.state_dict()
    weights = without_classifier(found, student.backbone)
    if text := first_mismatch(expected, weights):
        found = converted(found, student.backbone)
        weights = without_classifier(found, student.backbone)
        if first_mismatch(expected, weights):
            raise UsageError(misfit(student, path, text, list(found)))
    student.backbone.load_state_dict(weights)
    left = [f"{name} {list(one.shape)}" for name, one in found.items() if name not in weights]
    rest = f"; left out the old classifier: {', '.join(left)}" if left else ""
    return f"init: {len(weights)} tensors loaded from {path}{rest}"


def misfit(student: Classifier, path: Path, problem: str, names: list[str]) -> str:
    """Return the message about weights of another architecture."""
    spec = student.spec
    return (
        f"init = {path} does not fit {spec.name} with width {spec.width:g}, stem {spec.stem} "
        f"and {spec.image_size} pixels: {problem}; use the settings it was trained with (its first "
        f"tensors are {', '.join(names[:3]) or 'missing: it is empty'})"
    )


def check_hub_network(student: Classifier, path: Path) -> None:
    """Check that a network on the Hugging Face Hub has the architecture that is to be trained.

    Raises:
        UsageError: it has another.
        RunError: its description cannot be downloaded.
    """
    architecture = hub_network(path)["architecture"]
    if student.spec.name.partition(".")[0] != architecture:
        raise UsageError(
            f"init = {path} is {architecture}, and model = {student.spec.name}: set model to "
            f"{architecture}"
        )


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Read weights as they were saved, with or without those of a classifier.

    Raises:
        UsageError: there are no weights at `path`.
        RunError: the checkpoint is damaged, or the weights cannot be downloaded.
    """
    if is_hub_name(path):
        return hub_weights(path)
    if (path / "config.yaml").is_file():
        teacher = newest_checkpoint(path).part("teacher")
        prefix = "backbone."
        return {n.removeprefix(prefix): w for n, w in teacher.items() if n.startswith(prefix)}
    try:
        return read_weights(weights_file(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise UsageError(
            f"init = {path} is not a run folder, an exported folder or a file of weights "
            f"({one_line(error, 300)})"
        ) from None


def weights_file(path: Path) -> Path:
    """Return the file with the weights of a folder, or the file itself."""
    if not path.is_dir():
        return path
    return next((path / name for name in _FILES if (path / name).is_file()), path / _FILES[0])


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, or a state dict that was saved by `torch.save`.

    A state dict may stand under "state_dict" or "model", and its names may begin with "module.". A
    moving average ("state_dict_ema", "model_ema") is preferred, as in timm. Nothing but tensors and
    plain values is unpickled.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: it is no safetensors file.
        ValueError: it holds something other than tensors by name.
    """
    from timm.models import clean_state_dict, load_state_dict

    if path.suffix not in (".pth", ".pt", ".bin", ".ckpt", ".tar"):
        return dict(clean_state_dict(load_tensors(path)))
    try:
        weights = load_state_dict(str(path), weights_only=True)
    except (RuntimeError, EOFError, LookupError, AttributeError, pickle.PickleError) as error:
        raise ValueError(str(error) or type(error).__name__) from None
    if not isinstance(weights, Mapping) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError("it holds no tensors by name")
    return dict(weights)


def converted(weights: dict[str, Tensor], backbone: Any) -> dict[str, Tensor]:
    """Return weights under timm's names, as timm converts what authors published; else as they are.

    Args:
        weights: tensors under any names.
        backbone: the network that they are meant for.
    """
    module = sys.modules[type(backbone).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    try:
        return dict(convert(dict(weights), backbone)) if convert else weights
    except Exception:  # not weights of this family: each conversion fails in its own way
        return weights


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
