"""Per-channel mean and standard deviation of pixels, for any subset of images."""

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Moments = npt.NDArray[np.float64]
Color = tuple[float, float, float]


def image_moments(pixels: Pixels) -> Moments:
    """Return per-channel mean and mean square of each image's pixels, scaled to [0, 1].

    The moments of a set of images of equal size are the averages of the images' moments.

    Args:
        pixels: uint8 `[n, S, S, 3]`.

    Returns:
        float64 `[n, 2, 3]`: mean and mean square per channel.
    """
    values = pixels.reshape(len(pixels), -1, 3).astype(np.float32)
    values /= 255  # in place, as the square: a chunk of large squares takes 50 MB
    mean = values.mean(1)
    values *= values
    return np.stack([mean, values.mean(1)], 1).astype(np.float64)


def mean_and_std(moments: Moments) -> tuple[Color, Color]:
    """Return per-channel mean and standard deviation over all images with these moments.

    Args:
        moments: float64 `[n, 2, 3]`, see `image_moments`.
    """
    mean, square = moments.mean(0)
    std = np.sqrt(np.maximum(square - mean**2, 0)).clip(min=1 / 255)  # never 0, for flat color
    return _color(mean), _color(std)


def _color(values: npt.NDArray[np.float64]) -> Color:
    red, green, blue = values.tolist()
    return red, green, blue
