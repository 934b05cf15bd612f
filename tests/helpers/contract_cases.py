"""Methods with the settings that matter, whose mixes `test_contract.py` checks."""

from typing import Any

from adautomix.methods import Method
from adautomix.methods.alignmix import AlignMix
from adautomix.methods.attentivecutmix import AttentiveCutMix
from adautomix.methods.catchupmix import CatchUpMix
from adautomix.methods.comixup import CoMixup
from adautomix.methods.cutmix import CutMix
from adautomix.methods.cutout import Cutout
from adautomix.methods.fmix import FMix
from adautomix.methods.gridmix import GridMix
from adautomix.methods.guidedmixup import GuidedMixup
from adautomix.methods.manifoldmix import ManifoldMix
from adautomix.methods.mixture import Mixture
from adautomix.methods.mixup import Mixup
from adautomix.methods.mixup_cutmix import MixupCutMix
from adautomix.methods.puzzlemix import PuzzleMix
from adautomix.methods.regmixup import RegMixup
from adautomix.methods.resizemix import ResizeMix
from adautomix.methods.saliencygrafting import SaliencyGrafting
from adautomix.methods.saliencymix import SaliencyMix
from adautomix.methods.skmixup import SKMixup
from adautomix.methods.smoothmix import SmoothMix
from adautomix.methods.snapmix import SnapMix
from adautomix.methods.sumix import SUMix
from adautomix.methods.vanilla import Vanilla

CASES: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "vanilla": (Vanilla, {}),
    "mixup": (Mixup, {}),
    "regmixup": (RegMixup, {}),
    "skmixup": (SKMixup, {}),
    "skmixup: distribution": (SKMixup, {"warping": "distribution", "per_sample": False}),
    "cutmix": (CutMix, {}),
    "cutmix-each": (CutMix, {"per_sample": True}),
    "mixup+cutmix: mixup": (MixupCutMix, {"switch_prob": 0}),
    "mixup+cutmix: cutmix": (MixupCutMix, {"switch_prob": 1}),
    "mixup+cutmix-each": (MixupCutMix, {"prob": 0.8, "per_sample": True}),
    "mixture": (Mixture, {"mix": ("mixup", "cutmix", "smoothmix")}),
    "mixture-each": (
        Mixture,
        {
            "mix": ("mixup", "cutmix"),
            "options": {"mixup": {"per_sample": True}},
            "per_sample": True,
        },
    ),
    "cutout": (Cutout, {"size": 4, "holes": 2}),
    "manifoldmix": (ManifoldMix, {}),
    "manifoldmix-each": (ManifoldMix, {"per_sample": True}),
    "catchupmix": (CatchUpMix, {}),
    "catchupmix-each": (CatchUpMix, {"per_sample": True, "deepest": 2}),
    "fmix": (FMix, {"alpha": 1.0}),
    "fmix-each": (FMix, {"alpha": 1.0, "per_sample": True}),
    "fmix: isotropic-each": (FMix, {"alpha": 1.0, "spectrum": "isotropic", "per_sample": True}),
    "gridmix": (GridMix, {"alpha": 1.0}),
    "gridmix-each": (GridMix, {"alpha": 1.0, "per_sample": True}),
    "gridmix: cells": (GridMix, {"alpha": 1.0, "pattern": "cells"}),
    "gridmix: cells-each": (GridMix, {"alpha": 1.0, "pattern": "cells", "per_sample": True}),
    "resizemix": (ResizeMix, {}),
    "resizemix-each": (ResizeMix, {"per_sample": True}),
    "smoothmix": (SmoothMix, {}),
    "smoothmix-each": (SmoothMix, {"per_sample": True}),
    "smoothmix: square-each": (SmoothMix, {"pattern": "square", "per_sample": True}),
    "saliencymix": (SaliencyMix, {}),
    "saliencymix: residual-each": (
        SaliencyMix,
        {"detector": "spectral_residual", "per_sample": True},
    ),
    "attentivecutmix": (AttentiveCutMix, {}),
    "attentivecutmix: beta": (AttentiveCutMix, {"alpha": 2.0, "grid": 4}),
    "snapmix": (SnapMix, {}),
    "snapmix-each": (SnapMix, {"per_sample": True}),
    "guidedmixup": (GuidedMixup, {"prob": 1.0}),
    "guidedmixup: not now": (GuidedMixup, {"prob": 0.0}),
    "guidedmixup: gradient": (GuidedMixup, {"prob": 1.0, "saliency": "gradient"}),
    "sumix: mixup": (SUMix, {"mix": "mixup"}),
    "sumix-each": (SUMix, {"options": {"per_sample": True}}),
    "puzzlemix": (PuzzleMix, {}),
    "puzzlemix-each": (PuzzleMix, {"per_sample": True, "transport": False}),
    "comixup": (CoMixup, {"part": 4}),
    "saliencygrafting": (SaliencyGrafting, {}),
    "alignmix": (AlignMix, {}),
    "alignmix-each": (AlignMix, {"per_sample": True, "features": 1.0}),
}
