"""Operations of automatic augmentation on RGB pictures, with given magnitudes.

Names and magnitudes follow torchvision's `v2.RandAugment`, which calls the same Pillow functions;
"SolarizeAdd" follows timm, and "Hue" follows `v2.ColorJitter`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageEnhance, ImageOps

from adautomix.decoder.views import RESAMPLE

Picture = Image.Image
Fill = tuple[int, int, int]


def _affine(image: Picture, matrix: tuple[float, ...], fill: Fill, resample: str) -> Picture:
    """Sample each pixel (x, y) of the result at (ax + by + c, dx + ey + f)."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, RESAMPLE[resample], fillcolor=fill
    )


def _shear_x(image: Picture, value: float, fill: Fill, resample: str) -> Picture:
    return _affine(image, (1, value, 0, 0, 1, 0), fill, resample)


def _shear_y(image: Picture, value: float, fill: Fill, resample: str) -> Picture:
    return _affine(image, (1, 0, 0, value, 1, 0), fill, resample)


def _translate_x(image: Picture, value: float, fill: Fill, resample: str) -> Picture:
    return _affine(image, (1, 0, value, 0, 1, 0), fill, resample)


def _translate_y(image: Picture, value: float, fill: Fill, resample: str) -> Picture:
    return _affine(image, (1, 0, 0, 0, 1, value), fill, resample)


def _rotate(image: Picture, value: float, fill: Fill, resample: str) -> Picture:
    return image.rotate(value, RESAMPLE[resample], fillcolor=fill)


GEOMETRIC: dict[str, Callable[[Picture, float, Fill, str], Picture]] = {
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
}
"""Operations that move pixels; they take a fill color and a resampling filter."""


def _hue(image: Picture, value: float) -> Picture:
    """Shift the hue by a fraction of the color circle, -0.5 to 0.5."""
    hue, saturation, brightness = image.convert("HSV").split()
    turned = hue.point([(level + int(value * 255)) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, brightness)).convert("RGB")


def _posterize(image: Picture, value: float) -> Picture:
    """Keep the given number of most significant bits per channel, 0 to 8."""
    bits = int(value)
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def _solarize_add(image: Picture, value: float) -> Picture:
    """Add `value` to channel values below 128."""
    table = [min(255, level + int(value)) if level < 128 else level for level in range(256)]
    return image.point(table * 3)


COLOR: dict[str, Callable[[Picture, float], Picture]] = {
    "Identity": lambda image, _: image,
    "Brightness": lambda image, value: ImageEnhance.Brightness(image).enhance(value),
    "Color": lambda image, value: ImageEnhance.Color(image).enhance(value),
    "Contrast": lambda image, value: ImageEnhance.Contrast(image).enhance(value),
    "Sharpness": lambda image, value: ImageEnhance.Sharpness(image).enhance(value),
    "Posterize": _posterize,
    "Solarize": lambda image, value: ImageOps.solarize(image, value),  # type: ignore[arg-type]
    "SolarizeAdd": _solarize_add,
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Hue": _hue,
}
"""Operations that change colors; a factor of 1 leaves the picture unchanged."""


def apply_operations(
    image: Picture, operations: Sequence[Sequence[Any]], fill: Sequence[int]
) -> Picture:
    """Apply operations to a picture, one after the other.

    Args:
        image: RGB picture.
        operations: `[name, value]` each, or `[name, value, resample]` for geometric operations.
        fill: color of pixels that come from outside the picture.
    """
    red, green, blue = fill
    for name, value, *resample in operations:
        if name in GEOMETRIC:
            image = GEOMETRIC[name](image, value, (red, green, blue), *resample)
        else:
            image = COLOR[name](image, value)
    return image
