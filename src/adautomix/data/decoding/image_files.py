"""Picture files made ready for a network, as evaluation would make them."""

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
    """Normalized float32 images `[n, 3, image_size, image_size]`.

    Args:
        paths: image files.
        image_size: pixels per side.
        mean: of pixels in [0, 1].
        std: of pixels in [0, 1].
        preparation: how a file becomes an input; None: as that of a new run is by default.
        max_pixels: larger pictures are refused.

    Raises:
        UsageError: a file is missing or cannot be read; it is named.
    """
    how = preparation or default_preparation(image_size)
    pictures = torch.stack([read_image(path, image_size, how, max_pixels) for path in paths])
    return normalize(center_crop(pictures, image_size), mean, std)


def read_image(
    path: Path, image_size: int, preparation: Preparation, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """One image file as its preparation makes it, uint8 `[3, S, S]` with S at least `image_size`.

    Raises:
        UsageError: the file is missing or cannot be read.
    """
    side = preparation.resize if preparation.kind == "square" else image_size
    try:
        image, _ = read_view(str(path), preparation.view, side, preparation.rules(max_pixels))
    except Exception as error:  # Pillow raises what its plugins raise
        raise UsageError(f"cannot read {path}: {reason(error)}") from None
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
