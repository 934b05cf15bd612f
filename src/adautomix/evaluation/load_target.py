"""Load an evaluation target by name: a run folder, an exported model or a timm model."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adautomix.config import TrainConfig, architecture_of, make_config
from adautomix.data import ImageData
from adautomix.data.color import Color
from adautomix.data.split_record import SplitRecord
from adautomix.device import pick_device
from adautomix.errors import AdAutoMixWarning, UsageError, nearest_name
from adautomix.evaluation.target import EvalTarget, PixelNetwork, take_sample
from adautomix.models.memory import fitting_batch, forward_bytes, one_image
from adautomix.rng import generator_at
from adautomix.runs.build import load_images
from adautomix.runs.export import load_exported
from adautomix.runs.folder import RunFolder
from adautomix.runs.trained import TrainedRun, load_trained
from adautomix.text import printable

SPLIT_SETTINGS = ("per_class", "test_fraction", "val_fraction", "class_level", "class_names")
"""Settings that decide which image is in which split and class."""


@dataclass(frozen=True)
class EvalOptions:
    """Options that apply to all targets of an evaluation.

    Attributes:
        data: settings of the data set (`data`, `data_root`, `image_size`, …). They override those
            of a run; other targets require `data`.
        weights: safetensors file with the weights of a timm model; None keeps its initial weights.
        pretrained: load timm's published weights into a timm model.
        checkpoint: which checkpoint of a run to evaluate.
        images: maximum number of test images; None uses all.
        batch_size: images per forward pass; fewer if they would take more than `max_memory`.
        seed: random seed.
        out: folder for the results; None uses the run folder, or `runs/evaluated-<name>` for
            other targets.
        device: "auto", "cpu", "cuda", …
        max_memory: bound on the memory of a forward pass in GiB.
    """

    data: Mapping[str, Any]
    weights: Path | None = None
    pretrained: bool = False
    checkpoint: str = "last"
    images: int | None = None
    batch_size: int = 500
    seed: int = 0
    out: Path | None = None
    device: str = "auto"
    max_memory: float = 1.0


def load_target(name: str, options: EvalOptions) -> EvalTarget:
    """Return the networks, in evaluation mode, and the images that a name stands for.

    Args:
        name: a run folder, a folder or safetensors file written by `adautomix export`, or the
            name of a timm model.
        options: data set, weights, device and so on.

    Raises:
        UsageError: there is no such target, or its classes differ from those of the data set.
        RunError: a checkpoint is damaged.
    """
    path = Path(name)
    if (path / "config.yaml").is_file():
        return target_from_run(path, options)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UsageError(f"{path} is not a run folder: it has no config.yaml")
    exported = path if path.is_dir() else path.parent if path.suffix == ".safetensors" else None
    if exported is not None:
        return target_from_export(exported, options)
    return target_from_timm(name, options)


def target_from_run(path: Path, options: EvalOptions) -> EvalTarget:
    """Return student and teacher of a run, with the run's own data set or another one."""
    trained = load_trained(path, checkpoint=options.checkpoint, device=options.device)
    data = load_run_images(trained, options)
    check_classes(trained.classes, data, path.name)
    mean, std = trained.data_info["mean"], trained.data_info["std"]
    return make_target(
        path.name,
        networks={
            name: PixelNetwork(model, mean, std, trained.method.eval_head)
            for name, model in trained.networks.items()
        },
        data=replace(data, image_size=trained.data_info["image_size"]),
        options=options,
        source={
            "run": path.name,
            "checkpoint": options.checkpoint,
            "step": trained.step,
            "method": trained.config.method,
            "training_seed": trained.config.seed,
        },
        architecture=architecture_of(path),
        folder=path,
        run=path,
    )


def load_run_images(trained: TrainedRun, options: EvalOptions) -> ImageData:
    """Return the images that a run trained on, with its own splits, or those of another data set.

    The run's record of its splits is used wherever it applies, also for a copy of its images at
    another place, so that training images are never taken for test images.

    Raises:
        UsageError: images have vanished or changed since the run started, or settings would draw
            other splits.
    """
    own, info = trained.config.data, trained.data_info
    config = make_config(trained.config.resolved() | dict(options.data))
    folder = RunFolder(trained.folder)
    if not same_source(config.data, own):
        record = moved_splits(folder, Path(config.data))
        if record is None:
            return load_images(config, evaluate_classes=trained.classes, recorded=info)
        return load_images(config, record=record, recorded=info)
    record = folder.splits()
    redrawing = [name for name in SPLIT_SETTINGS if name in options.data]
    if record is not None and redrawing:
        raise UsageError(
            f"{redrawing[0]} would draw other splits than {folder.path.name} trained on: leave it "
            "out, or name other images with --data"
        )
    return load_images(config, record=record, recorded=info)


def same_source(one: str, other: str) -> bool:
    """Whether two values of the setting `data` are the same name or path."""
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def moved_splits(folder: RunFolder, place: Path) -> SplitRecord | None:
    """Return a run's splits of the same images at another place; None if they are not there."""
    if not place.is_dir():
        return None
    try:
        record = folder.splits(place.absolute())
    except UsageError:
        return None
    return record if record is not None and record.listing is not None else None


def target_from_export(folder: Path, options: EvalOptions) -> EvalTarget:
    """Return a model written by `adautomix export`."""
    model, config = load_exported(folder)
    settings = data_settings(options, {"image_size": config["image_size"]})
    data = load_images(settings, evaluate_classes=config["classes"], recorded=config)
    check_classes(config["classes"], data, folder.name)
    network = PixelNetwork(model, tuple(config["mean"]), tuple(config["std"]))
    return make_target(
        folder.name,
        networks={"network": network},
        data=data,
        options=options,
        source=config["source"],
        architecture=architecture_of(folder),
    )


def target_from_timm(name: str, options: EvalOptions) -> EvalTarget:
    """Return a timm model with one output per class of the data set."""
    check_timm_name(name)
    settings = data_settings(options, {})
    image_size = settings.image_size or timm_image_size(name)
    sized = settings.model_copy(update={"image_size": image_size})
    data = load_images(sized, evaluate_classes=())
    model = build_timm(name, len(data.classes), data.image_size, options)
    trained = options.weights is not None or options.pretrained
    if not trained:
        warnings.warn(
            f"{name} has random weights, so its scores say nothing: pass --weights FILE or "
            "--pretrained, or name a run folder",
            AdAutoMixWarning,
            stacklevel=2,
        )
    mean, std = timm_normalization(model) if trained else (data.mean, data.std)
    weights = str(options.weights or ("published" if options.pretrained else "random"))
    return make_target(
        name,
        networks={"network": PixelNetwork(model, mean, std)},
        data=data,
        options=options,
        source={"model": name, "weights": Path(weights).name},
        architecture={"model": name, "stem": "standard", "image_size": data.image_size},
    )


def make_target(
    name: str,
    *,
    networks: dict[str, PixelNetwork],
    data: ImageData,
    options: EvalOptions,
    source: dict[str, Any],
    architecture: dict[str, Any],
    folder: Path | None = None,
    run: Path | None = None,
) -> EvalTarget:
    """Return a target with its networks on the device and its test images sampled."""
    device = pick_device(options.device)
    networks = {n: network.to(device).eval() for n, network in networks.items()}
    image = one_image(data.image_size, device)
    size = max(forward_bytes(network, image) for network in networks.values())
    generator = generator_at(options.seed, 0, "evaluation/images")
    return EvalTarget(
        name=name,
        folder=options.out or folder or Path("runs") / f"evaluated-{name.replace('/', '-')}",
        networks=networks,
        data=replace(data, test=take_sample(data.test, options.images, generator)),
        device=device,
        batch_size=fitting_batch(options.batch_size, size, options.max_memory),
        seed=options.seed,
        source=source,
        architecture=architecture,
        run=run,
    )


def data_settings(options: EvalOptions, defaults: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of the data set that the options name.

    Raises:
        UsageError: the options name no data set.
    """
    if "data" not in options.data:
        raise UsageError(
            "no data set to evaluate on: pass --data with a folder of images, digits or cifar100"
        )
    return make_config({**defaults, "method": "vanilla", **options.data})


def check_timm_name(name: str) -> None:
    """Check that a target, which is no folder, is the name of a timm model.

    Raises:
        UsageError: it is not; the message names the nearest run folder or model.
    """
    import timm

    if timm.is_model(name.partition(".")[0]):
        return
    parent = Path(name).parent
    beside = sorted(path.name for path in parent.iterdir()) if parent.is_dir() else []
    near = nearest_name(Path(name).name, beside)
    known = str(parent / near) if near else nearest_name(name, timm.list_models())
    hint = f"did you mean {known}?" if known else "name one of these"
    raise UsageError(f"{name} is not a run folder, an exported model or a timm model: {hint}")


def build_timm(name: str, classes: int, image_size: int, options: EvalOptions) -> nn.Module:
    """Return a timm model with its weights.

    Raises:
        UsageError: there is no such model, or the weights do not fit it.
    """
    import timm

    arguments: dict[str, Any] = {"num_classes": classes, "pretrained": options.pretrained}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        try:  # only models with a fixed input size accept `img_size`
            model: nn.Module = timm.create_model(name, img_size=image_size, **arguments)
        except TypeError:
            model = timm.create_model(name, **arguments)
    if options.weights is not None:
        load_weights(model, options.weights, f"{name} with {classes} classes")
    return model


def load_weights(model: nn.Module, file: Path, what: str) -> None:
    """Load a safetensors file into a network.

    Raises:
        UsageError: the file cannot be read, or was not written from such a network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"cannot read {file} ({' '.join(str(error).split())}): --weights takes a safetensors "
            "file"
        ) from None
    expected = {name: value.shape for name, value in model.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    if found != expected:
        raise UsageError(
            f"{file} does not fit {what}: it has {first_names(found)}, where the network has "
            f"{first_names(expected)}; name the network that the file was saved from"
        )
    model.load_state_dict(weights)


def first_names(shapes: Mapping[str, Any]) -> str:
    """Return the first three names of tensors with their shapes, and how many there are."""
    named = [f"{printable(name)} {list(shape)}" for name, shape in sorted(shapes.items())[:3]]
    return f"{', '.join(named)} … ({len(shapes)} tensors)"


def timm_image_size(name: str) -> int | None:
    """Return the image size that a timm model was trained with, or None if timm does not know."""
    import timm

    try:
        cfg = timm.get_pretrained_cfg(name)
    except (RuntimeError, KeyError):
        return None
    return int(cfg.input_size[-1]) if cfg else None


def timm_normalization(model: Any) -> tuple[Color, Color]:
    """Return the mean and standard deviation that timm normalizes this model's images with."""
    cfg = model.pretrained_cfg
    return tuple(cfg["mean"]), tuple(cfg["std"])


def check_classes(classes: Sequence[str], data: ImageData, name: str) -> None:
    """Check that the outputs of a network are the classes of the data set, in the same order.

    Raises:
        UsageError: they differ; the message names the first difference.
    """
    if len(classes) != len(data.classes):
        raise UsageError(
            f"{name} has {len(classes)} classes and {data.name} has {len(data.classes)}: "
            "evaluate on the data set that the network was trained for"
        )
    for own, other in zip(classes, data.classes, strict=True):
        if own != other:
            raise UsageError(
                f"{name} has a class {own!r} where {data.name} has {other!r}: evaluate on a data "
                "set with the same classes in the same order"
            )
