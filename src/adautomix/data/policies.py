"""Policies of automatic augmentation, which draw random operations for a whole batch.

RandAugment, TrivialAugment, AutoAugment and color jitter draw the operations and magnitudes of each
image here. Decoding processes apply them with Pillow, as torchvision's `v2` transforms do with PIL
images. Operations and magnitudes are read from torchvision's tables, except for the variants of
RandAugment from timm and OpenMixup.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

Operation = tuple[Any, ...]
"""Name, magnitude and, for a geometric operation, the name of the resampling filter."""

Space = Literal["timm", "torchvision", "openmixup"]
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
FACTORS = ("Brightness", "Color", "Contrast", "Sharpness")

TIMM_FILL = (124, 116, 104)
"""ImageNet's mean color, with which timm fills pixels moved in from outside the image."""

OPENMIXUP_FILL = (114, 123, 125)
"""CIFAR-100's mean color in BGR order, which OpenMixup fills RGB images with."""

BLACK = (0, 0, 0)
"""Default fill color of torchvision."""


@dataclass(frozen=True)
class Policy:
    """A policy that draws random operations.

    Attributes:
        draw: maps an image's random numbers in [0, 1) and its side in pixels to its operations.
        numbers: random numbers needed per image.
        fill: color of pixels that are moved in from outside the image.
    """

    draw: Callable[[Sequence[float], int], list[Operation]]
    numbers: int
    fill: tuple[int, int, int]

    def operations(
        self, batch: int, size: int, generator: torch.Generator
    ) -> list[list[Operation]]:
        """Draw the operations of each image of a batch.

        Args:
            batch: number of images.
            size: side of the images in pixels.
            generator: CPU random number generator.
        """
        numbers = torch.rand(batch, self.numbers, dtype=torch.float64, generator=generator)
        return [self.draw(row, size) for row in numbers.tolist()]


# ---------------------------------------------------------------------- RandAugment


Level = Callable[[float, float, int], float]
"""Maps magnitude (0 to 10), sign (-1 or 1) and image side in pixels to an operation's value."""

# timm's "increasing" operations, which rand-m9-mstd0.5-inc1 draws from.
_TIMM: dict[str, Level] = {
    "AutoContrast": lambda m, s, n: 0,
    "Equalize": lambda m, s, n: 0,
    "Invert": lambda m, s, n: 0,
    "Rotate": lambda m, s, n: s * (m / 10 * 30),
    "Posterize": lambda m, s, n: 4 - int(m / 10 * 4),
    "Solarize": lambda m, s, n: 256 - min(256, int(m / 10 * 256)),
    "SolarizeAdd": lambda m, s, n: min(128, int(m / 10 * 110)),
    "Color": lambda m, s, n: max(0.1, 1 + s * (m / 10 * 0.9)),
    "Contrast": lambda m, s, n: max(0.1, 1 + s * (m / 10 * 0.9)),
    "Brightness": lambda m, s, n: max(0.1, 1 + s * (m / 10 * 0.9)),
    "Sharpness": lambda m, s, n: max(0.1, 1 + s * (m / 10 * 0.9)),
    "ShearX": lambda m, s, n: s * (m / 10 * 0.3),
    "ShearY": lambda m, s, n: s * (m / 10 * 0.3),
    "TranslateX": lambda m, s, n: s * (m / 10 * 0.45) * n,
    "TranslateY": lambda m, s, n: s * (m / 10 * 0.45) * n,
}

# The CIFAR-100 recipes of OpenMixup for DeiT, ViT, Swin and ConvNeXt.
_OPENMIXUP: dict[str, Level] = {
    "AutoContrast": lambda m, s, n: 0,
    "Equalize": lambda m, s, n: 0,
    "Identity": lambda m, s, n: 0,
    "Rotate": lambda m, s, n: s * (m / 10 * 30),
    "Posterize": lambda m, s, n: math.ceil(4 + m / 10 * 4),
    "Solarize": lambda m, s, n: 256 - 256 * m / 10,
    "Color": lambda m, s, n: 1 + s * (0.05 + 0.9 * m / 10),
    "Contrast": lambda m, s, n: 1 + s * (0.05 + 0.9 * m / 10),
    "Brightness": lambda m, s, n: 1 + s * (0.05 + 0.9 * m / 10),
    "Sharpness": lambda m, s, n: 1 + s * (0.05 + 0.9 * m / 10),
    "ShearX": lambda m, s, n: s * (m / 10 * 0.3),
    "ShearY": lambda m, s, n: s * (m / 10 * 0.3),
    "TranslateX": lambda m, s, n: s * (m / 10 * 0.3) * n,
    "TranslateY": lambda m, s, n: s * (m / 10 * 0.3) * n,
}


def rand_augment(
    space: Space, operations: int, magnitude: float, std: float, probability: float
) -> Policy:
    """RandAugment: operations drawn with replacement, each with its own magnitude.

    Cubuk et al., *RandAugment: Practical automated data augmentation with a reduced search space*,
    NeurIPS 2020.

    Args:
        space: "timm" draws from the 15 operations of timm's `rand-…-inc1` with a bilinear or
            bicubic filter; "openmixup" from the 14 of its CIFAR-100 recipes, bicubic;
            "torchvision" from those of `v2.RandAugment`, nearest.
        operations: number of operations per image.
        magnitude: 0 to 10; for "torchvision" the number of a bin, 0 to 30.
        std: standard deviation of the magnitude; "torchvision" has none.
        probability: probability of applying each operation; "torchvision" always applies them.
    """
    if space == "torchvision":
        return _torchvision_rand_augment(operations, round(magnitude))
    table, fill = (_TIMM, TIMM_FILL) if space == "timm" else (_OPENMIXUP, OPENMIXUP_FILL)
    names = list(table)

    def draw(numbers: Sequence[float], side: int) -> list[Operation]:
        drawn = []
        for start in range(0, len(numbers), 6):
            chosen, applied, radius, angle, negative, filtered = numbers[start : start + 6]
            if applied >= probability:
                continue
            # Box-Muller: a normally distributed magnitude.
            normal = math.sqrt(-2 * math.log(1 - radius)) * math.cos(2 * math.pi * angle)
            level = min(10.0, max(0.0, magnitude + std * normal))
            name = names[int(chosen * len(names))]
            value = table[name](level, -1.0 if negative < 0.5 else 1.0, side)
            bicubic = space == "openmixup" or filtered < 0.5
            drawn.append(_operation(name, value, "bicubic" if bicubic else "bilinear"))
        return drawn

    return Policy(draw, 6 * operations, fill)


def _torchvision_rand_augment(operations: int, magnitude: int) -> Policy:
    from torchvision.transforms import v2  # late: it takes a second

    table = v2.RandAugment._AUGMENTATION_SPACE
    names, bins = list(table), v2.RandAugment().num_magnitude_bins

    def draw(numbers: Sequence[float], side: int) -> list[Operation]:
        return [
            _from_table(table, names[int(chosen * len(names))], magnitude, bins, negative, side)
            for chosen, negative in zip(numbers[::2], numbers[1::2], strict=True)
        ]

    return Policy(draw, 2 * operations, BLACK)


# ---------------------------------------------------------------------- the others


def trivial_augment() -> Policy:
    """TrivialAugment (wide): one operation with a uniformly drawn magnitude.

    Müller and Hutter, *TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation*, ICCV
    2021; torchvision's `v2.TrivialAugmentWide`.
    """
    from torchvision.transforms import v2  # late: it takes a second

    table = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    names, bins = list(table), v2.TrivialAugmentWide().num_magnitude_bins

    def draw(numbers: Sequence[float], side: int) -> list[Operation]:
        chosen, level, negative = numbers
        name = names[int(chosen * len(names))]
        return [_from_table(table, name, int(level * bins), bins, negative, side)]

    return Policy(draw, 3, BLACK)


def auto_augment(policy: Literal["imagenet", "cifar10"]) -> Policy:
    """AutoAugment: one of 25 learned pairs of operations.

    Cubuk et al., *AutoAugment: Learning Augmentation Policies from Data*, CVPR 2019; torchvision's
    `v2.AutoAugment`.

    Args:
        policy: the data set that the pairs were learned for.
    """
    from torchvision.transforms import v2  # late: it takes a second

    transform = v2.AutoAugment(v2.AutoAugmentPolicy(policy))
    table, pairs = transform._AUGMENTATION_SPACE, transform._policies

    def draw(numbers: Sequence[float], side: int) -> list[Operation]:
        pair = pairs[int(numbers[0] * len(pairs))]
        applied, negative = numbers[1:3], numbers[3:5]
        return [
            _from_table(table, name, magnitude or 0, 10, negative[k], side)
            for k, (name, probability, magnitude) in enumerate(pair)
            if applied[k] < probability
        ]

    return Policy(draw, 5, BLACK)


def color_jitter(brightness: float, contrast: float, saturation: float, hue: float) -> Policy:
    """Color jitter: random brightness, contrast, saturation and hue, applied in random order.

    It matches torchvision's `v2.ColorJitter`.

    Args:
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: range of the factor, as for brightness.
        saturation: range of the factor, as for brightness.
        hue: the shift is uniform in [-hue, hue], as a fraction of the color circle.
    """
    ranges = {"Brightness": brightness, "Contrast": contrast, "Color": saturation}
    changed = {name: spread for name, spread in ranges.items() if spread}

    def draw(numbers: Sequence[float], side: int) -> list[Operation]:
        values = dict(zip(ranges, numbers, strict=False))
        drawn: list[Operation] = []
        for name, spread in changed.items():
            low, high = max(0.0, 1 - spread), 1 + spread
            drawn.append((name, low + (high - low) * values[name]))
        if hue:
            drawn.append(("Hue", hue * (2 * numbers[3] - 1)))
        # Sorting by independent uniform numbers is a uniformly random order.
        order = sorted(range(len(drawn)), key=lambda k: numbers[4 + k])
        return [drawn[k] for k in order]

    return Policy(draw, 8, BLACK)


def _from_table(
    table: Any, name: str, level: int, bins: int, negative: float, side: int
) -> Operation:
    """Return an operation with a magnitude from torchvision's tables."""
    magnitudes, signed = table[name]
    values = magnitudes(bins, side, side)
    value = 0.0 if values is None else float(values[level])
    value = -value if signed and negative <= 0.5 else value
    if name in FACTORS:
        value += 1
    elif name == "Solarize":
        value *= 255
    elif name in ("TranslateX", "TranslateY"):
        value = -int(value)  # torchvision shifts the content, the decoder the sampling position
    return _operation(name, value, "nearest")


def _operation(name: str, value: float, resample: str) -> Operation:
    return (name, value, resample) if name in GEOMETRIC else (name, value)
