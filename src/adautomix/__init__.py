"""adautomix: train image classifiers with mixing augmentation.

The public names load what they need when they are first used, so that the command line answers
at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from adautomix.version import __version__

_HOME = {
    "RunResult": "adautomix.training",
    "TrainConfig": "adautomix.config",
    "build_model": "adautomix.models",
    "create_method": "adautomix.mix_loss",
    "load_config": "adautomix.config",
    "load_data": "adautomix.data",
    "load_trained": "adautomix.runs.trained",
    "resume": "adautomix.training",
    "train": "adautomix.training",
}

if TYPE_CHECKING:
    from adautomix import functional as mix
    from adautomix.config import TrainConfig as TrainConfig
    from adautomix.config import load_config as load_config
    from adautomix.data import load_data as load_data
    from adautomix.mix_loss import create_method as create_method
    from adautomix.models import build_model as build_model
    from adautomix.runs.trained import load_trained as load_trained
    from adautomix.training import RunResult as RunResult
    from adautomix.training import resume as resume
    from adautomix.training import train as train

__all__ = ["__version__", "mix", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "mix":
        return importlib.import_module("adautomix.functional")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'adautomix' has no attribute {name!r}")
