"""From settings to the parts of a run: images, networks, batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adautomix.config import TrainConfig
from adautomix.data import ImageData, TrainBatches, load_data
from adautomix.errors import UsageError
from adautomix.methods import Method, find_method
from adautomix.models import Classifier, build_model
from adautomix.processes import main_first, rank, share_batch_norm, world
from adautomix.rng import seed_at
from adautomix.training.checkpoint import load_checkpoint
from adautomix.training.teacher import Teacher


def load_images(config: TrainConfig, *, progress: bool = True) -> ImageData:
    """The data set that a run asks for."""
    with main_first():
        return load_data(
            config.data,
            root=config.data_root,
            download=config.download,
            image_size=config.image_size,
            per_class=config.per_class,
            test_fraction=config.test_fraction,
            val_fraction=config.val_fraction,
            seed=config.seed,
            skip_bad=config.skip_bad,
            workers=config.workers,
            progress=progress,
        )


def build_networks(
    config: TrainConfig,
    *,
    num_classes: int,
    image_size: int,
    device: torch.device,
    from_checkpoint: bool = False,
) -> tuple[Classifier, Method, Teacher[Classifier]]:
    """The student, the method and the teacher at the start of a run.

    With `from_checkpoint` weights will be loaded over them: no others are fetched or read.
    """
    cls = find_method(config.method)
    seed = seed_at(config.seed, 0, "weights")
    student = build_model(
        config.model,
        num_classes,
        stem=config.stem_for(image_size),
        width=config.width,
        pretrained=config.pretrained and not from_checkpoint,
        image_size=image_size,
        drop_path=config.drop_path,
        heads=cls.heads,
        options=config.model_options,
        generator_seed=seed,
    )
    if config.init and not from_checkpoint:
        load_backbone(student, config.init)
    torch.manual_seed(seed)
    method = cls(
        config.method_settings,
        num_classes=num_classes,
        seed=config.seed,
        label_smoothing=config.label_smoothing,
        model=student,
    )
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    student = student.to(device, memory_format=layout)  # type: ignore[call-overload]
    if config.sync_bn:
        student = share_batch_norm(student)
    return student, method.to(device), Teacher(student, config.teacher.buffers)


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
    if told := misfit(student.backbone.state_dict(), weights):
        spec = student.spec
        raise UsageError(
            f"init = {path} is not the backbone of {spec.name}, width {spec.width:g}, stem "
            f"{spec.stem}, {spec.image_size} pixels: {told}; leave these settings to init, or set "
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


def check_smallest_part(config: TrainConfig, images: int, method: Method) -> None:
    """See that the smallest batch can be mixed and that each part of it suits batch norm.

    Raises:
        UsageError: it has too few images.
    """
    last = 0 if config.drop_last else images % config.batch_size
    smallest = last or config.batch_size
    if smallest < method.min_batch or smallest // (config.accumulate * world()) < 2:
        raise UsageError(
            f"{method.name} mixes {method.min_batch} images and batch norm needs 2 a part, and a "
            f"batch has {smallest}: choose another batch_size, accumulate or drop_last"
        )


def train_batches(config: TrainConfig, data: ImageData, device: torch.device) -> TrainBatches:
    """The training batches that the settings ask for."""
    return TrainBatches(
        data,
        batch_size=config.batch_size,
        seed=config.seed,
        device=device,
        crop=config.crop,
        pad=config.pad,
        flip=config.flip,
        scale_min=config.scale_min,
        drop_last=config.drop_last,
        rank=rank(),
        world=world(),
    )


def data_card(data: ImageData) -> dict[str, Any]:
    """What a prediction needs to know of the data, and what a reader wants to."""
    return {
        "classes": list(data.classes),
        "image_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
        "train_images": len(data.train),
        "test_images": len(data.test),
        "bad_files": list(data.bad_files),
    }
