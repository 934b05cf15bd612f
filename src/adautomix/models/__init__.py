"""Any timm network behind one small wrapper: named heads, pooled features, stage feature maps."""

from adautomix.models.build import build_model
from adautomix.models.classifier import Classifier, Features
from adautomix.models.families import suited_stem, timm_plan
from adautomix.models.modes import evaluating, frozen_statistics, has_batch_norm, keeps_statistics
from adautomix.models.narrow import SkippingConv2d
from adautomix.models.spec import HEADS, ModelSpec, Stem
from adautomix.models.transformer import Blocks, Queries
from adautomix.models.wrap import WrappedClassifier, wrap_model

__all__ = [
    "HEADS",
    "Blocks",
    "Classifier",
    "Features",
    "ModelSpec",
    "Queries",
    "SkippingConv2d",
    "Stem",
    "WrappedClassifier",
    "build_model",
    "evaluating",
    "frozen_statistics",
    "has_batch_norm",
    "keeps_statistics",
    "suited_stem",
    "timm_plan",
    "wrap_model",
]
