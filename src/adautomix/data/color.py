"""Mean and deviation of pixels, a value a channel, of any subset of images at once."""

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Moments = npt.NDArray[np.float64]
Color = tuple[float, float, float]


def image_moments(pixels: Pixels) -> Moments:
    """Mean and mean square of the pixels in [0, 1] of images `[n, S, S, 3]`: `[n, 2, 3]`.

    Those of any set of images of one size are the means of theirs.
    """
    values = pixels.reshape(len(pixels), -1, 3).astype(np.float32) / 255
    return np.stack([values.mean(1), (values * values).mean(1)], 1).astype(np.float64)


def mean_and_std(moments: Moments) -> tuple[Color, Color]:
    """Mean and deviation of all pixels of the images with these moments."""
    mean, square = moments.mean(0)
    std = np.sqrt(np.maximum(square - mean**2, 0)).clip(min=1 / 255)  # of one flat color: not 0
    return _color(mean), _color(std)


def _color(values: npt.NDArray[np.float64]) -> Color:
    red, green, blue = values.tolist()
    return red, green, blue
