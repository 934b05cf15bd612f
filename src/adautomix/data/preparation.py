"""How an image file becomes the input of a network, and what a user can set about it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from adautomix.data.color import Color
from adautomix.decoder.reading import Rules

SMALL = 96
"""Up to this side, images are shifted within padding; larger ones are zoomed into."""

MAX_PIXELS = 178_956_970
"""Pixels of one picture above which it is refused: 512 MiB of decoded RGB, Pillow's limit."""

CROP_FRACTION = 0.875
"""Side of the center crop as a fraction of the resized shorter side: 224 of 256."""

Crop = Literal["pad", "resized"]
CropSetting = Literal["auto", "pad", "resized", "off"]
Interpolation = Literal["bicubic", "bilinear"]
CacheSetting = Literal["exact", "off"] | int


def default_crop(image_size: int) -> Crop:
    """The random crop that suits images of this side."""
    return "pad" if image_size <= SMALL else "resized"


@dataclass(frozen=True)
class Preparation:
    """What evaluation and prediction do with an image file, as `data.json` records it.

    Attributes:
        kind: "whole" resizes the shorter side to `resize`; "square" resizes the center square to
            `resize` × `resize`. The center of the network's side is cropped in both.
        resize: see `kind`, in pixels.
        interpolation: filter of every resize, with antialiasing.
        composite: put transparent pictures on white; otherwise their alpha channel is dropped.
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
        """How files become pictures."""
        return Rules(max_pixels, self.composite, crop_bottom, self.interpolation)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `data.json`."""
        return asdict(self)


def stored_side(image_size: int) -> int:
    """Side of the squares kept for a network that sees `image_size`: room to crop from."""
    return image_size if default_crop(image_size) == "pad" else round(image_size * 256 / 224)


def whole(
    image_size: int, crop_fraction: float | None = None, interpolation: Interpolation = "bicubic"
) -> Preparation:
    """Resize the shorter side so that the center crop takes `crop_fraction` of it."""
    return Preparation("whole", int(image_size / (crop_fraction or CROP_FRACTION)), interpolation)


def default_preparation(image_size: int) -> Preparation:
    """What suits a network of this input size if nothing else is known."""
    if default_crop(image_size) == "pad":
        return Preparation("square", stored_side(image_size))
    return whole(image_size)


def array_preparation(image_size: int, options: "PictureOptions") -> Preparation:
    """How a file is prepared for a network that was trained on images that came as arrays.

    Evaluation resizes whole arrays to the network's side, so the center square of a file is.
    """
    if options.recorded is not None:
        return options.recorded
    if image_size <= SMALL:
        return Preparation("square", image_size, options.interpolation)
    return whole(image_size, 1.0, options.interpolation)


def recorded_preparation(info: Mapping[str, Any]) -> Preparation:
    """What `data.json` or the `config.json` of an export says.

    Runs that say nothing are of before whole pictures were read: they keep what they did, which
    was center squares, bilinear enlargement, and no transparency.
    """
    recorded = info.get("preparation")
    if recorded is None:
        return Preparation("square", stored_side(info["image_size"]), "bilinear", composite=False)
    names = {field.name for field in fields(Preparation)}
    return Preparation(**{name: value for name, value in recorded.items() if name in names})


@dataclass(frozen=True)
class PictureOptions:
    """What a user can set about how pictures are read.

    Attributes:
        cache: "exact" keeps decoded pictures at their full size if they fit in memory; a number
            keeps them with their shorter side shrunk to it; "off" decodes at every reading.
        max_pixels: larger pictures are refused.
        crop: the random crop of training images.
        interpolation: filter of random-resized crops and of evaluation.
        crop_fraction: side of evaluation's center crop as a fraction of the resized shorter side;
            None: 0.875.
        normalization: mean and standard deviation to normalize with; None measures those of the
            training images.
        recorded: preparation of an earlier run, which wins over the settings above.
    """

    cache: CacheSetting = "exact"
    max_pixels: int = MAX_PIXELS
    crop: CropSetting = "auto"
    interpolation: Interpolation = "bicubic"
    crop_fraction: float | None = None
    normalization: tuple[Color, Color] | None = None
    recorded: Preparation | None = None
