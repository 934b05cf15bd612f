"""Train image classifiers with mixing augmentation: AdAutoMix and its peers.

The public names are imported when they are first used, so that the command line answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from adautomix.version import __version__

if TYPE_CHECKING:
    from adautomix import functional as mix
    from adautomix.config import TeacherSettings, TrainConfig, load_config
    from adautomix.data import load_data
    from adautomix.errors import AdAutoMixError, RunError, UsageError
    from adautomix.evaluation.api import evaluate
    from adautomix.methods import Method
    from adautomix.methods import describe_methods as list_methods
    from adautomix.mix_loss import MixLoss, create_method
    from adautomix.mixing.ops import Mixed
    from adautomix.models import build_model, wrap_model
    from adautomix.runs.api import export, load
    from adautomix.runs.trained import TrainedRun
    from adautomix.training import RunResult, resume, train
    from adautomix.training.api import compare

_MODULES = {
    "AdAutoMixError": "adautomix.errors",
    "Method": "adautomix.methods",
    "MixLoss": "adautomix.mix_loss",
    "Mixed": "adautomix.mixing.ops",
    "RunError": "adautomix.errors",
    "RunResult": "adautomix.training",
    "TeacherSettings": "adautomix.config",
    "TrainConfig": "adautomix.config",
    "TrainedRun": "adautomix.runs.trained",
    "UsageError": "adautomix.errors",
    "build_model": "adautomix.models",
    "compare": "adautomix.training.api",
    "create_method": "adautomix.mix_loss",
    "evaluate": "adautomix.evaluation.api",
    "export": "adautomix.runs.api",
    "load": "adautomix.runs.api",
    "load_config": "adautomix.config",
    "load_data": "adautomix.data",
    "list_methods": "adautomix.methods:describe_methods",
    "mix": "adautomix.functional",
    "resume": "adautomix.training",
    "train": "adautomix.training",
    "wrap_model": "adautomix.models",
}
"""Where each public name is defined, as module or module:name."""

__all__ = [
    "AdAutoMixError",
    "Method",
    "MixLoss",
    "Mixed",
    "RunError",
    "RunResult",
    "TeacherSettings",
    "TrainConfig",
    "TrainedRun",
    "UsageError",
    "__version__",
    "build_model",
    "compare",
    "create_method",
    "evaluate",
    "export",
    "list_methods",
    "load",
    "load_config",
    "load_data",
    "mix",
    "resume",
    "train",
    "wrap_model",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'adautomix' has no attribute {name!r}")
    path, _, attribute = _MODULES[name].partition(":")
    module = importlib.import_module(path)
    value = module if name == "mix" else getattr(module, attribute or name)
    globals()[name] = value  # submodules of the same name would hide it otherwise
    return value


def __dir__() -> list[str]:
    return __all__
