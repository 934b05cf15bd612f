"""How an image file becomes a network input, and the user's settings for it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from adautomix.data.color import Color
from adautomix.decoder.reading import Rules

SMALL = 96
"""Largest side in pixels at which the default crop is "pad"; above it, "resized"."""

MAX_PIXELS = 178_956_970
"""Default largest number of pixels per picture: 512 MiB of RGB, where Pillow raises an error."""

CROP_FRACTION = 0.875
"""Default side of the center crop as a fraction of the resized shorter side (224 / 256)."""

Crop = Literal["pad", "resized"]
CropSetting = Literal["auto", "pad", "resized", "off"]
Interpolation = Literal["bicubic", "bilinear"]
CacheSetting = Literal["exact", "off"] | int


def default_crop(image_size: int) -> Crop:
    """Return the default random crop for images of this side."""
    return "pad" if image_size <= SMALL else "resized"


@dataclass(frozen=True)
class Preparation:
    """How evaluation and prediction prepare an image file; recorded in `data.json`.

    Attributes:
        kind: "whole" resizes the shorter side to `resize`; "square" resizes the center square to
            `resize` × `resize`. Both then center-crop to the network's input size.
        resize: target side in pixels, see `kind`.
        interpolation: filter of every resize, with antialiasing.
        composite: composite transparent pictures on white instead of dropping the alpha channel.
    """

    kind: Literal["whole", "square"]
    resize: int
    interpolation: Interpolation = "bicubic"
    composite: bool = True

    @property
    def view(self) -> tuple[Any, ...]:
        """The view that the decoder takes, see `adautomix.decoder.views`."""
        return ("center", self.resize) if self.kind == "whole" else ("square",)

    def rules(self, max_pixels: int = MAX_PIXELS, crop_bottom: int = 0) -> Rules:
        """Return the rules for decoding a file."""
        return Rules(max_pixels, self.composite, crop_bottom, self.interpolation)

    def as_dict(self) -> dict[str, Any]:
        """Return the preparation as plain data for `data.json`."""
        return asdict(self)


def stored_side(image_size: int) -> int:
    """Return the side of stored squares, which leaves room for crops above the side `SMALL`."""
    return image_size if default_crop(image_size) == "pad" else round(image_size * 256 / 224)


def whole(
    image_size: int, crop_fraction: float | None = None, interpolation: Interpolation = "bicubic"
) -> Preparation:
    """Return the preparation whose center crop is `crop_fraction` of the resized shorter side."""
    return Preparation("whole", int(image_size / (crop_fraction or CROP_FRACTION)), interpolation)


def default_preparation(image_size: int) -> Preparation:
    """Return the default preparation for a network with this input size."""
    if default_crop(image_size) == "pad":
        return Preparation("square", stored_side(image_size))
    return whole(image_size)


def array_preparation(image_size: int, options: "PictureOptions") -> Preparation:
    """Return how a file is prepared for a network that was trained on arrays.

    Evaluation resizes whole array images to the network's input size, so the center square of a
    file is resized to it as well.
    """
    if options.recorded is not None:
        return options.recorded
    if image_size <= SMALL:
        return Preparation("square", image_size, options.interpolation)
    return whole(image_size, 1.0, options.interpolation)


def recorded_preparation(info: Mapping[str, Any]) -> Preparation:
    """Return the preparation recorded in `data.json` or in the `config.json` of an export.

    Older runs without a record used center squares, bilinear resizing and no compositing; they
    keep this preparation.
    """
    recorded = info.get("preparation")
    if recorded is None:
        return Preparation("square", stored_side(info["image_size"]), "bilinear", composite=False)
    names = {field.name for field in fields(Preparation)}
    return Preparation(**{name: value for name, value in recorded.items() if name in names})


@dataclass(frozen=True)
class PictureOptions:
    """The user's settings for reading pictures.

    Attributes:
        cache: "exact" caches decoded pictures at full size if they fit in memory; a number caches
            them downscaled to this shorter side; "off" decodes them at every read.
        max_pixels: largest number of pixels that a picture may have.
        crop: random crop of training images.
        interpolation: filter of random-resized crops and of evaluation.
        crop_fraction: side of evaluation's center crop as a fraction of the resized shorter side;
            None: 0.875.
        normalization: mean and standard deviation for normalization; None measures them on the
            training images.
        recorded: preparation of an earlier run, which takes precedence over the settings above.
    """

    cache: CacheSetting = "exact"
    max_pixels: int = MAX_PIXELS
    crop: CropSetting = "auto"
    interpolation: Interpolation = "bicubic"
    crop_fraction: float | None = None
    normalization: tuple[Color, Color] | None = None
    recorded: Preparation | None = None
