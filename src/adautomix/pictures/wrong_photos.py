"""Small pictures of test images that a network got wrong."""

from pathlib import Path

import torch
from PIL import Image

from adautomix.class_results import ClassResults
from adautomix.data.dataset import Split
from adautomix.errors import RunError

_MAX_SIDE = 160  # of a picture, in pixels
_QUALITY = 80  # of WebP, 0 to 100


def write_wrong_photos(
    results: ClassResults, split: Split, folder: Path, prefix: str
) -> ClassResults:
    """Write a picture of each listed wrong image, and return the results with their names.

    Args:
        results: the results of one network.
        split: the images that the results are about.
        folder: folder of the pictures, created if it is missing.
        prefix: beginning of their names, such as "teacher".

    Returns:
        The results, in which each wrong image names its picture. An image that can no longer be
        read is left without one.
    """
    if not results.wrong:
        return results
    folder.mkdir(parents=True, exist_ok=True)
    wrong = []
    for number, one in enumerate(results.wrong, 1):
        name = f"{prefix}-{number:02d}.webp"
        wrote = _write(split, one.row, folder / name)
        wrong.append(one.model_copy(update={"picture": name if wrote else None}))
    return results.model_copy(update={"wrong": wrong})


def _write(split: Split, row: int, path: Path) -> bool:
    """Write one image of a split; False if it cannot be read."""
    try:
        images, _ = next(iter(split.read([torch.tensor([row], device=split.labels.device)])))
    except RunError:
        return False
    picture = Image.fromarray(images[0].permute(1, 2, 0).cpu().numpy())
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    picture.save(path, "webp", quality=_QUALITY, method=4)
    return True
