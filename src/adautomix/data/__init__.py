"""Data sets by name, or a folder of images, to normalised batches on the device.

`load_data` gives an `ImageData` of decoded splits; `TrainBatches` and `eval_batches` read them.
"""

from adautomix.data.load import DATASETS, load_data
from adautomix.data.pipeline import Batch, CropSetting, TrainBatches, eval_batches, pixel_batches
from adautomix.data.sets import ImageData, Split

__all__ = [
    "DATASETS",
    "Batch",
    "CropSetting",
    "ImageData",
    "Split",
    "TrainBatches",
    "eval_batches",
    "load_data",
    "pixel_batches",
]
