"""The table of methods: a new method is one file and one line here."""

from typing import Any

from adautomix.errors import UsageError, unknown_name
from adautomix.methods.adautomix import AdAutoMix
from adautomix.methods.alignmix import AlignMix
from adautomix.methods.attentivecutmix import AttentiveCutMix
from adautomix.methods.automix import AutoMix
from adautomix.methods.base import InputMixing, Method, MethodSettings, MixInputs
from adautomix.methods.comixup import CoMixup
from adautomix.methods.cutmix import CutMix
from adautomix.methods.cutout import Cutout
from adautomix.methods.dada import DADA
from adautomix.methods.fmix import FMix
from adautomix.methods.gridmix import GridMix
from adautomix.methods.guidedmixup import GuidedMixup
from adautomix.methods.manifoldmix import ManifoldMix
from adautomix.methods.meada import MEADA
from adautomix.methods.mixpro import MixPro
from adautomix.methods.mixup import Mixup
from adautomix.methods.mixup_cutmix import MixupCutMix
from adautomix.methods.puzzlemix import PuzzleMix
from adautomix.methods.recursivemix import RecursiveMix
from adautomix.methods.resizemix import ResizeMix
from adautomix.methods.saliencygrafting import SaliencyGrafting
from adautomix.methods.saliencymix import SaliencyMix
from adautomix.methods.samix import SAMix
from adautomix.methods.smmix import SMMix
from adautomix.methods.smoothmix import SmoothMix
from adautomix.methods.snapmix import SnapMix
from adautomix.methods.sumix import SUMix
from adautomix.methods.tokenmix import TokenMix
from adautomix.methods.tokenmixup import TokenMixup
from adautomix.methods.transmix import TransMix
from adautomix.methods.vanilla import Vanilla
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import MixParams

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Vanilla,
        Mixup,
        CutMix,
        MixupCutMix,
        Cutout,
        ManifoldMix,
        FMix,
        GridMix,
        ResizeMix,
        SmoothMix,
        RecursiveMix,
        SaliencyMix,
        AttentiveCutMix,
        SnapMix,
        PuzzleMix,
        CoMixup,
        SaliencyGrafting,
        AlignMix,
        GuidedMixup,
        SUMix,
        TransMix,
        TokenMix,
        TokenMixup,
        MixPro,
        SMMix,
        AutoMix,
        SAMix,
        AdAutoMix,
        DADA,
        MEADA,
    )
}


def find_method(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UsageError: no method of that name.
    """
    if name in METHODS:
        return METHODS[name]
    raise UsageError(unknown_name("method", name, METHODS, "`adautomix methods` lists them all"))


def suits(method: str, model: str) -> bool:
    """Whether a timm network of that name has what a method looks for.

    Some read the attention of all patches to all, which plain vision transformers have.
    """
    return "attention" not in find_method(method).needs or model.startswith(("vit", "deit"))


def build_method(name: str, options: dict[str, Any] | None = None, **common: Any) -> Method:
    """A method from its name, its own settings and what all methods share (see `Method`)."""
    cls = find_method(name)
    return cls(cls.Settings(**(options or {})), **common)


__all__ = [
    "METHODS",
    "InputMixing",
    "Method",
    "MethodSettings",
    "MixInputs",
    "MixParams",
    "Mixed",
    "build_method",
    "find_method",
    "suits",
]
