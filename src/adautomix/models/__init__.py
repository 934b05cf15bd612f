"""Networks with named heads, pooled features and feature maps: timm's, and the user's own."""

from adautomix.models.arguments import check_build_arguments, check_replacements
from adautomix.models.build import build_model
from adautomix.models.classifier import Classifier, Features
from adautomix.models.families import default_stem, timm_plan
from adautomix.models.freezing import BACKBONE, part_up_to, set_frozen
from adautomix.models.modes import (
    evaluating,
    frozen_running_stats,
    has_batch_norm,
    repeated_updates,
    updates_running_stats,
)
from adautomix.models.spec import HEADS, ModelSpec, NetworkPart, Stem
from adautomix.models.strided_conv import SubsampledConv2d
from adautomix.models.sync_batch_norm import SyncBatchNorm2dCPU, convert_sync_batchnorm
from adautomix.models.transformer import Queries, ViTBlocks
from adautomix.models.wrap import WrappedClassifier, wrap_model

__all__ = [
    "BACKBONE",
    "HEADS",
    "Classifier",
    "Features",
    "ModelSpec",
    "NetworkPart",
    "Queries",
    "Stem",
    "SubsampledConv2d",
    "SyncBatchNorm2dCPU",
    "ViTBlocks",
    "WrappedClassifier",
    "build_model",
    "check_build_arguments",
    "check_replacements",
    "convert_sync_batchnorm",
    "default_stem",
    "evaluating",
    "frozen_running_stats",
    "has_batch_norm",
    "part_up_to",
    "repeated_updates",
    "set_frozen",
    "timm_plan",
    "updates_running_stats",
    "wrap_model",
]
