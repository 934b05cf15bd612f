"""Load data sets by name, by path or from Python objects, and read normalized batches from them.

`load_data` returns an `ImageData` with the splits; `TrainBatches` and `eval_batches` read them.
"""

from adautomix.data.batches import Batch, Erasing, TrainBatches, eval_batches, pixel_batches
from adautomix.data.dataset import ImageData, Split
from adautomix.data.load import DATASETS, load_data
from adautomix.data.preparation import CropSetting, PictureOptions

__all__ = [
    "DATASETS",
    "Batch",
    "CropSetting",
    "Erasing",
    "ImageData",
    "PictureOptions",
    "Split",
    "TrainBatches",
    "eval_batches",
    "load_data",
    "pixel_batches",
]
