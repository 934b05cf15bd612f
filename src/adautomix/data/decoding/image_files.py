"""Picture files made ready for a network, as evaluation would make them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adautomix.data.augment import center_crop, normalize
from adautomix.data.dataset import Color
from adautomix.data.decoding.worker import decode, reason
from adautomix.data.image_folder import stored_side
from adautomix.errors import UsageError


def prepare_images(paths: Sequence[Path], *, image_size: int, mean: Color, std: Color) -> Tensor:
    """Normalized float32 images `[n, 3, image_size, image_size]`.

    Args:
        paths: image files.
        image_size: pixels per side.
        mean: of pixels in [0, 1].
        std: of pixels in [0, 1].

    Raises:
        UsageError: a file is missing or cannot be read; it is named.
    """
    squares = [read_image(path, stored_side(image_size)) for path in paths]
    return normalize(center_crop(torch.stack(squares), image_size), mean, std)


def read_image(path: Path, side: int) -> Tensor:
    """The center square of one image file, uint8 `[3, side, side]`."""
    try:
        pixels = np.array(decode(str(path), side))
    except Exception as error:  # Pillow raises what its plugins raise
        raise UsageError(f"cannot read {path}: {reason(error)}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)
