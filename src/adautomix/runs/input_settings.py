"""How images become the inputs of a run's network: its settings, or those of its weights."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from adautomix.config import TrainConfig
from adautomix.data import Erasing, PictureOptions
from adautomix.data.color import Color
from adautomix.data.policies import (
    Policy,
    auto_augment,
    color_jitter,
    rand_augment,
    trivial_augment,
)
from adautomix.data.preparation import CacheSetting, Interpolation, recorded_preparation
from adautomix.errors import UsageError
from adautomix.runs.hub import hub_network, is_hub_name


@dataclass(frozen=True)
class WeightsInput:
    """What a set of weights expects of its input.

    Attributes:
        mean: for pixels from 0 to 1.
        std: for pixels from 0 to 1.
        interpolation: filter that its images were resized with.
        crop_fraction: side of the center crop as a fraction of the resized shorter side.
    """

    mean: Color
    std: Color
    interpolation: Interpolation
    crop_fraction: float


def picture_options(
    config: TrainConfig, recorded: Mapping[str, Any] | None = None
) -> PictureOptions:
    """Return how pictures are read and normalized.

    Args:
        config: the settings.
        recorded: `data.json` of the run that is resumed or evaluated: it keeps what it did.

    Raises:
        UsageError: `init` does not say what its weights expect.
    """
    cache = cast(
        CacheSetting, config.cache if config.cache in ("exact", "off") else int(config.cache)
    )
    if recorded is not None:
        preparation = recorded_preparation(recorded)
        return PictureOptions(
            cache,
            config.max_pixels,
            config.crop,
            preparation.interpolation,
            normalization=(tuple(recorded["mean"]), tuple(recorded["std"])),
            recorded=preparation,
        )
    weights = weights_input(config) if config.pretrained or config.init else None
    interpolation = weights.interpolation if weights else "bicubic"
    return PictureOptions(
        cache,
        config.max_pixels,
        config.crop,
        interpolation if config.interpolation == "auto" else config.interpolation,
        config.crop_fraction or (weights.crop_fraction if weights else None),
        normalization(config, weights),
    )


def normalization(config: TrainConfig, weights: WeightsInput | None) -> tuple[Color, Color] | None:
    """Return mean and standard deviation, or None to measure those of the training images."""
    if config.normalize == "auto":
        return (weights.mean, weights.std) if weights else None
    if config.normalize == "data":
        return None
    if config.normalize == "model":
        weights = weights or weights_input(config)
        return weights.mean, weights.std
    values = [float(value) for value in config.normalize.split(",")]
    if min(values[3:]) <= 0:
        raise UsageError(
            f"normalize = {config.normalize}: the last three, the deviations, must be above 0"
        )
    return color(values[:3]), color(values[3:])


def weights_input(config: TrainConfig) -> WeightsInput:
    """Return what the weights that a run starts from expect, or else those that timm has.

    Raises:
        UsageError: `init` does not say it, or timm does not know the model.
    """
    if config.init is not None and is_hub_name(config.init):
        return described_input(hub_network(config.init)["pretrained_cfg"], config.init)
    if config.init is not None and config.init.is_dir():
        return recorded_input(config.init)
    import timm

    try:
        cfg = timm.get_pretrained_cfg(config.model)
    except (RuntimeError, KeyError):
        cfg = None
    if cfg is None:
        raise UsageError(
            f"timm has no weights of {config.model}, whose mean and deviation are asked for: set "
            "normalize to data or to six numbers"
        )
    return timm_input(asdict(cfg))


def timm_input(cfg: Mapping[str, Any]) -> WeightsInput:
    """Return what the weights that one of timm's `pretrained_cfg` describes expect.

    Raises:
        LookupError, TypeError, ValueError: the description is incomplete or not valid.
    """
    bilinear = cfg["interpolation"] == "bilinear"
    interpolation: Interpolation = "bilinear" if bilinear else "bicubic"
    mean, std, fraction = color(cfg["mean"]), color(cfg["std"]), float(cfg.get("crop_pct", 0.875))
    if not all(map(math.isfinite, (*mean, *std, fraction))) or min(*std, fraction) <= 0:
        raise ValueError("mean, std and crop_pct must be finite, and the last two above 0")
    return WeightsInput(mean, std, interpolation, min(1.0, fraction))


def described_input(cfg: Any, where: Path) -> WeightsInput:
    """Return what the weights that a description in timm's format belongs to expect.

    Raises:
        UsageError: the description is incomplete or not valid.
    """
    try:
        return timm_input(cfg)
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(
            f"{where} does not say how its network's images were prepared: {error}"
        ) from None


def recorded_input(folder: Path) -> WeightsInput:
    """Return what the network of a run folder or an exported folder expects.

    Raises:
        UsageError: the folder does not say it.
    """
    name = "data.json" if (folder / "data.json").is_file() else "config.json"
    try:
        info = json.loads((folder / name).read_text(encoding="utf-8"))
        if "pretrained_cfg" in info:  # timm's format
            return described_input(info["pretrained_cfg"], folder / name)
        preparation = recorded_preparation(info)
        fraction = min(1.0, info["image_size"] / preparation.resize)
        mean, std = color(info["mean"]), color(info["std"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"{folder / name} does not say how its network's images were prepared: {error}"
        ) from None
    return WeightsInput(mean, std, preparation.interpolation, fraction)


def color(values: Any) -> Color:
    """Return a value per channel as a tuple.

    Raises:
        ValueError: there are not three values.
    """
    red, green, blue = values
    return float(red), float(green), float(blue)


def augmentation_policy(config: TrainConfig) -> Policy | None:
    """Return the automatic augmentation that the settings name; None without one."""
    if config.augment == "randaugment":
        chosen = config.randaugment
        return rand_augment(
            chosen.space, chosen.operations, chosen.magnitude, chosen.std, chosen.probability
        )
    if config.augment == "trivialaugment":
        return trivial_augment()
    if config.augment == "autoaugment":
        return auto_augment(config.autoaugment.policy)
    if config.augment == "colorjitter":
        jitter = config.colorjitter
        return color_jitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    return None


def random_erasing(config: TrainConfig) -> Erasing | None:
    """Return the random erasing that the settings ask for; None without it."""
    return Erasing(config.random_erasing, config.erasing_fill) if config.random_erasing else None
