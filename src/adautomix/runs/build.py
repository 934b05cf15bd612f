"""Build the parts of a run from its settings: images, networks and batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adautomix.config import TrainConfig
from adautomix.data import ImageData, TrainBatches, load_data
from adautomix.data.balance import class_weights
from adautomix.data.sources.listing import count
from adautomix.data.split_record import SplitRecord
from adautomix.distributed import main_process_first, rank, world_size
from adautomix.ema import Teacher
from adautomix.errors import UsageError
from adautomix.methods import Method, find_method
from adautomix.models import (
    Classifier,
    build_model,
    convert_sync_batchnorm,
    has_batch_norm,
    part_up_to,
    set_frozen,
)
from adautomix.models.timm_weights import check_exportable
from adautomix.rng import seed_at
from adautomix.runs.input_settings import augmentation_policy, picture_options, random_erasing
from adautomix.runs.weights import load_backbone


def load_images(
    config: TrainConfig,
    *,
    progress: bool = True,
    data: Any = None,
    record: SplitRecord | None = None,
    evaluate_classes: Sequence[str] | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> ImageData:
    """Load the data set that the settings name; the main process fills the cache first.

    Args:
        config: the settings.
        progress: show a bar while images are decoded.
        data: PyTorch data sets to use instead of the one that the settings name.
        record: the splits of an earlier run, which are used as they are.
        evaluate_classes: see `load_data`.
        recorded: `data.json` of the run that is resumed or evaluated, which keeps its preparation
            of images.
    """
    with main_process_first():
        return load_data(
            config.data if data is None else data,
            root=config.data_root,
            download=config.download,
            class_level=config.class_level,
            class_names=config.class_names,
            image_size=config.image_size,
            per_class=config.per_class,
            test_fraction=config.test_fraction,
            val_fraction=config.val_fraction,
            seed=config.seed,
            skip_bad=config.skip_bad,
            workers=config.workers,
            progress=progress,
            record=record,
            evaluate_classes=evaluate_classes,
            pictures=picture_options(config, recorded),
        )


def build_networks(
    config: TrainConfig,
    *,
    num_classes: int,
    image_size: int,
    device: torch.device,
    from_checkpoint: bool = False,
) -> tuple[Classifier, Method, Teacher[Classifier]]:
    """Build the student, the method and the teacher as they are at the start of a run.

    Args:
        config: the settings.
        num_classes: number of classes.
        image_size: side of the input images in pixels.
        device: where to put the networks.
        from_checkpoint: weights will be loaded afterwards, so initial ones need not be.

    Returns:
        The student, the method and the teacher.

    Raises:
        UsageError: the network cannot be built, `init` does not fit it, it has no part that
            `freeze` names, or it could not be exported after its training.
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
        seed=seed,
    )
    if not from_checkpoint:
        check_exportable(student)
    if config.init and not from_checkpoint:
        student.origin = load_backbone(student, config.init)
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
        student = convert_sync_batchnorm(student)
    teacher = Teacher(student, config.teacher.buffers)
    if config.freeze is not None:
        student.frozen = part_up_to(student, config.freeze)
        set_frozen(student, teacher.model, student.frozen, frozen=True)
    return student, method.to(device), teacher


def check_smallest_part(
    config: TrainConfig, images: int, method: Method, student: nn.Module
) -> None:
    """Check that the smallest batch is large enough for the method and for batch norm.

    Args:
        config: the settings.
        images: number of training images.
        method: the mixing method.
        student: the network; without batch norm a single image is enough.

    Raises:
        UsageError: the smallest batch has too few images.
    """
    last = 0 if config.drop_last else images % config.batch_size
    smallest = last or config.batch_size
    batch_norm = has_batch_norm(student) or has_batch_norm(method)
    least = method.min_part(batch_norm=batch_norm)
    mixes = f"{method.name} mixes {method.min_batch} images and " if method.min_batch > 1 else ""
    if smallest < method.min_batch or smallest // (config.accumulate * world_size()) < least:
        raise UsageError(
            f"{mixes}{'batch norm' if batch_norm else 'training'} needs {least} per part, but a "
            f"batch has {count(smallest, 'image')}: choose another batch_size, "
            "accumulate or drop_last"
        )


def prepare_loss(config: TrainConfig, data: ImageData, method: Method) -> None:
    """Set what compares the network's output with labels, and how much each class weighs in it.

    Raises:
        UsageError: the method, or `loss`, does not fit data with several labels per image.
    """
    if config.loss == "cross_entropy" and data.multi_label:
        raise UsageError(
            "loss = cross_entropy needs one class per image, and these images have several labels: "
            "use bce"
        )
    method.use_loss(config.loss or ("bce" if data.multi_label else "cross_entropy"))
    method.weigh_classes(loss_weights(config, data))


def loss_weights(config: TrainConfig, data: ImageData) -> Tensor | None:
    """Return the weight of each class in the loss, on the device of the data; None: all alike."""
    if config.class_weights is None:
        return None
    labels = data.train.labels
    weights = class_weights(
        labels, len(data.classes), config.class_weights, config.class_weight_beta
    )
    return weights.to(labels.device)


def train_batches(config: TrainConfig, data: ImageData, device: torch.device) -> TrainBatches:
    """Build the training batches that the settings describe."""
    return TrainBatches(
        data,
        batch_size=config.batch_size,
        seed=config.seed,
        device=device,
        crop=config.crop,
        pad=config.pad,
        flip=config.flip,
        scale_min=config.scale_min,
        policy=augmentation_policy(config),
        erasing=random_erasing(config),
        repeats=config.repeats,
        workers=config.workers,
        drop_last=config.drop_last,
        sampler=config.sampler,
        rank=rank(),
        world_size=world_size(),
    )


def data_info(data: ImageData) -> dict[str, Any]:
    """The content of `data.json`: what prediction needs to know about the data, and its size."""
    return {
        "classes": list(data.classes),
        "image_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
        "train_images": len(data.train),
        "test_images": len(data.test),
        "bad_files": list(data.bad_files),
        **({"multi_label": True} if data.multi_label else {}),
        "preparation": data.preparation and data.preparation.as_dict(),
    }
