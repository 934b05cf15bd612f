"""Pictures of test images in rows, without captions."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

_MAX_SIDE = 112  # maximum side of an image in the picture, in pixels


def write_image_rows(images: Tensor, path: Path) -> None:
    """Write images `[R, C, 3, S, S]` in [0, 1] as a PNG file with R rows of C images."""
    from torchvision.utils import save_image

    tiles = resize_for_display(images.flatten(0, 1))
    save_image(tiles, path, nrow=images.shape[1], padding=6, pad_value=1)


def resize_for_display(images: Tensor) -> Tensor:
    """Return images `[B, 3, S, S]` enlarged by an integer factor, or shrunk if they are large."""
    side = images.shape[-1]
    if side > _MAX_SIDE:
        return F.interpolate(images, (_MAX_SIDE, _MAX_SIDE), mode="bilinear", antialias=True)
    return F.interpolate(images, scale_factor=_MAX_SIDE // side, mode="nearest")
