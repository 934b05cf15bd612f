"""Any timm network behind one small wrapper: named heads, pooled features, stage feature maps."""

from adautomix.models.build import build_model
from adautomix.models.classifier import Classifier, Features
from adautomix.models.families import default_stem, timm_plan
from adautomix.models.modes import (
    evaluating,
    frozen_running_stats,
    has_batch_norm,
    repeated_updates,
    updates_running_stats,
)
from adautomix.models.narrow import SkippingConv2d
from adautomix.models.spec import HEADS, ModelSpec, Stem
from adautomix.models.transformer import Queries, ViTBlocks
from adautomix.models.wrap import WrappedClassifier, wrap_model

__all__ = [
    "HEADS",
    "Classifier",
    "Features",
    "ModelSpec",
    "Queries",
    "SkippingConv2d",
    "Stem",
    "ViTBlocks",
    "WrappedClassifier",
    "build_model",
    "default_stem",
    "evaluating",
    "frozen_running_stats",
    "has_batch_norm",
    "repeated_updates",
    "timm_plan",
    "updates_running_stats",
    "wrap_model",
]
