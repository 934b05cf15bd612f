"""From what a user names to a subject: a run folder, an exported network, or a timm model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adautomix.config import TrainConfig, architecture_of, make_config
from adautomix.data import ImageData
from adautomix.data.color import Color
from adautomix.device import pick_device
from adautomix.errors import UsageError
from adautomix.evaluation.target import EvalTarget, PixelNetwork, cut
from adautomix.rng import generator_at
from adautomix.runs.build import load_images
from adautomix.runs.trained import load_trained


@dataclass(frozen=True)
class EvalOptions:
    """What the user said of all subjects.

    Attributes:
        data: settings of the data set (`data`, `data_root`, `image_size`, …); a run has its own.
        weights: a safetensors file for a timm model; none: as timm makes it.
        pretrained: timm's published weights for a timm model.
        which: the checkpoint of a run.
        images: at most so many test images.
        batch_size: images a forward.
        seed: of every random number.
        out: folder for what is found; none: the run's own, or `runs/evaluated-<name>`.
        device: where to compute.
    """

    data: Mapping[str, Any]
    weights: Path | None = None
    pretrained: bool = False
    which: str = "last"
    images: int | None = None
    batch_size: int = 500
    seed: int = 0
    out: Path | None = None
    device: str = "auto"


def load_target(name: str, asked: EvalOptions) -> EvalTarget:
    """The networks and images that `name` stands for, in evaluation mode.

    Args:
        name: a run folder, a safetensors file or folder of `adautomix export`, or a timm model.
        asked: everything else.

    Raises:
        UsageError: there is nothing of that name, or its classes are not those of the data.
        RunError: a checkpoint is damaged.
    """
    path = Path(name)
    if (path / "config.yaml").is_file():
        return of_run(path, asked)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UsageError(f"{path} is not a run folder: it has no config.yaml")
    exported = path if path.is_dir() else path.parent if path.suffix == ".safetensors" else None
    if exported is not None:
        return of_export(exported, asked)
    return of_timm(name, asked)


def of_run(path: Path, asked: EvalOptions) -> EvalTarget:
    """Student and teacher of a run, on the test images of its own data or of others."""
    trained = load_trained(path, which=asked.which, device=asked.device)
    values = trained.config.resolved() | dict(asked.data)
    data = load_images(make_config(values))
    check_classes(trained.classes, data, path.name)
    mean, std = trained.card["mean"], trained.card["std"]
    networks = {
        name: PixelNetwork(model, mean, std, trained.method.eval_head)
        for name, model in trained.networks.items()
    }
    source = {
        "run": path.name,
        "checkpoint": asked.which,
        "step": trained.step,
        "method": trained.config.method,
        "training_seed": trained.config.seed,
    }
    data = replace(data, image_size=trained.card["image_size"])
    built = architecture_of(path)
    return subject(path.name, networks, data, asked, source, built, folder=path, run=path)


def of_export(folder: Path, asked: EvalOptions) -> EvalTarget:
    """A network that `adautomix export` wrote."""
    from adautomix.runs.export import load_exported

    model, config = load_exported(folder)
    data = load_images(data_settings(asked, {"image_size": config["image_size"]}))
    check_classes(config["classes"], data, folder.name)
    network = PixelNetwork(model, tuple(config["mean"]), tuple(config["std"]))
    built = architecture_of(folder)
    return subject(folder.name, {"network": network}, data, asked, config["source"], built)


def of_timm(name: str, asked: EvalOptions) -> EvalTarget:
    """A timm model by its name, with as many classes as the data have."""
    settings = data_settings(asked, {})
    wanted = settings.image_size or timm_image_size(name)
    data = load_images(settings.model_copy(update={"image_size": wanted}))
    model = build_timm(name, len(data.classes), data.image_size, asked)
    trained = asked.weights is not None or asked.pretrained
    mean, std = timm_colors(model) if trained else (data.mean, data.std)
    weights = str(asked.weights or ("published" if asked.pretrained else "random"))
    source = {"model": name, "weights": Path(weights).name}
    network = PixelNetwork(model, mean, std)
    built = {"model": name, "stem": "standard", "image_size": data.image_size}
    return subject(name, {"network": network}, data, asked, source, built)


def subject(
    name: str,
    networks: dict[str, PixelNetwork],
    data: ImageData,
    asked: EvalOptions,
    source: dict[str, Any],
    architecture: dict[str, Any],
    *,
    folder: Path | None = None,
    run: Path | None = None,
) -> EvalTarget:
    """Put together what was opened."""
    device = pick_device(asked.device)
    generator = generator_at(asked.seed, 0, "evaluation/images")
    return EvalTarget(
        name=name,
        folder=asked.out or folder or Path("runs") / f"evaluated-{name.replace('/', '-')}",
        networks={n: network.to(device).eval() for n, network in networks.items()},
        data=replace(data, test=cut(data.test, asked.images, generator)),
        device=device,
        batch_size=asked.batch_size,
        seed=asked.seed,
        source=source,
        architecture=architecture,
        run=run,
    )


def data_settings(asked: EvalOptions, defaults: Mapping[str, Any]) -> TrainConfig:
    """The settings of the data set that was named.

    Raises:
        UsageError: none was.
    """
    if "data" not in asked.data:
        raise UsageError("say what to evaluate on: --data a folder of images, digits or cifar100")
    return make_config({**defaults, "method": "vanilla", **asked.data})


def build_timm(name: str, classes: int, image_size: int, asked: EvalOptions) -> nn.Module:
    """A timm network with its weights.

    Raises:
        UsageError: no such network, or weights that do not fit it.
    """
    import timm
    from safetensors.torch import load_file

    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"{name} is no run folder, no exported network and no timm model")
    options: dict[str, Any] = {"num_classes": classes, "pretrained": asked.pretrained}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(asked.seed)
        try:  # networks of a fixed input size are told it, the others do not take it
            model: nn.Module = timm.create_model(name, img_size=image_size, **options)
        except TypeError:
            model = timm.create_model(name, **options)
    if asked.weights is not None:
        try:
            model.load_state_dict(load_file(asked.weights))
        except (OSError, RuntimeError) as error:
            raise UsageError(
                f"{asked.weights} does not fit {name} with {classes} classes: {first_line(error)}"
            ) from None
    return model


def first_line(error: Exception) -> str:
    """The first two lines of an error's text as one: PyTorch says what is wrong in the second."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])


def timm_image_size(name: str) -> int | None:
    """Pixels a side that the weights of a timm model were made for; None: it does not say."""
    import timm

    try:
        cfg = timm.get_pretrained_cfg(name)
    except (RuntimeError, KeyError):
        return None
    return int(cfg.input_size[-1]) if cfg else None


def timm_colors(model: Any) -> tuple[Color, Color]:
    """Mean and deviation that timm normalizes this network's images with."""
    cfg = model.pretrained_cfg
    return tuple(cfg["mean"]), tuple(cfg["std"])


def check_classes(known: list[str], data: ImageData, name: str) -> None:
    """See that the outputs of the network are the classes of the data, in their order.

    Raises:
        UsageError: they are not; the first that differs is named.
    """
    if len(known) != len(data.classes):
        raise UsageError(
            f"{name} tells {len(known)} classes apart and {data.name} has {len(data.classes)}"
        )
    for mine, theirs in zip(known, data.classes, strict=True):
        if mine != theirs:
            raise UsageError(f"{name} has a class {mine!r} where {data.name} has {theirs!r}")
