"""Prepare image files as network inputs, in the same way as evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adautomix.data.augment import center_crop, normalize
from adautomix.data.color import Color
from adautomix.data.preparation import MAX_PIXELS, Preparation, default_preparation
from adautomix.decoder.files import reason
from adautomix.decoder.reading import read_view
from adautomix.errors import UsageError


def prepare_images(
    paths: Sequence[Path],
    *,
    image_size: int,
    mean: Color,
    std: Color,
    preparation: Preparation | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Read image files as normalized network inputs.

    Args:
        paths: image files.
        image_size: side of the network's input in pixels.
        mean: per-channel mean, of pixels scaled to [0, 1].
        std: per-channel standard deviation, of pixels scaled to [0, 1].
        preparation: how a file becomes an input; None uses the default of a new run.
        max_pixels: largest number of pixels that a picture may have.

    Returns:
        float32 `[n, 3, image_size, image_size]`.

    Raises:
        UsageError: a file is missing or cannot be read.
    """
    how = preparation or default_preparation(image_size)
    pictures = torch.stack([read_image(path, image_size, how, max_pixels) for path in paths])
    return normalize(center_crop(pictures, image_size), mean, std)


def read_image(
    path: Path, image_size: int, preparation: Preparation, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Read and prepare one image file: uint8 `[3, S, S]` with S at least `image_size`.

    Raises:
        UsageError: the file is missing or cannot be read.
    """
    side = preparation.resize if preparation.kind == "square" else image_size
    try:
        image, _ = read_view(str(path), preparation.view, side, preparation.rules(max_pixels))
    except Exception as error:  # Pillow's plugins raise arbitrary exceptions
        raise UsageError(f"cannot read {path}: {reason(error)}") from None
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
