"""The table of methods: a new method is one file and one line here."""

import dataclasses
from typing import Any

from torch import nn

from adautomix.errors import UsageError, unknown_name
from adautomix.methods.adautomix import AdAutoMix
from adautomix.methods.alignmix import AlignMix
from adautomix.methods.attentivecutmix import AttentiveCutMix
from adautomix.methods.augmix import AugMix
from adautomix.methods.automix import AutoMix
from adautomix.methods.base import InputMixing, Method, MethodSettings, MixInputs
from adautomix.methods.cards import card_sections, card_text, cards_page
from adautomix.methods.catchupmix import CatchUpMix
from adautomix.methods.comixup import CoMixup
from adautomix.methods.cutmix import CutMix
from adautomix.methods.cutout import Cutout
from adautomix.methods.dada import DADA
from adautomix.methods.facts import LabelRule, Paper, Requirement
from adautomix.methods.fmix import FMix
from adautomix.methods.fracmix import FracMix
from adautomix.methods.gridmix import GridMix
from adautomix.methods.guidedmixup import GuidedMixup
from adautomix.methods.manifoldmix import ManifoldMix
from adautomix.methods.meada import MEADA
from adautomix.methods.mergemix import MergeMix
from adautomix.methods.mixpro import MixPro
from adautomix.methods.mixture import Mixture
from adautomix.methods.mixup import Mixup
from adautomix.methods.mixup_cutmix import MixupCutMix
from adautomix.methods.puzzlemix import PuzzleMix
from adautomix.methods.recursivemix import RecursiveMix
from adautomix.methods.regmixup import RegMixup
from adautomix.methods.resizemix import ResizeMix
from adautomix.methods.saliencygrafting import SaliencyGrafting
from adautomix.methods.saliencymix import SaliencyMix
from adautomix.methods.samix import SAMix
from adautomix.methods.skmixup import SKMixup
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
        RegMixup,
        SKMixup,
        CutMix,
        MixupCutMix,
        Mixture,
        Cutout,
        AugMix,
        ManifoldMix,
        CatchUpMix,
        FMix,
        GridMix,
        ResizeMix,
        SmoothMix,
        FracMix,
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
        MergeMix,
        AutoMix,
        SAMix,
        AdAutoMix,
        DADA,
        MEADA,
    )
}


def find_method(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        UsageError: there is no method of that name.
    """
    if name in METHODS:
        return METHODS[name]
    raise UsageError(unknown_name("method", name, METHODS, "`adautomix methods` lists them all"))


def suits(method: str, model: str) -> bool:
    """Whether a timm network of that name has what a method requires.

    Attention between all patches is found only in plain vision transformers.
    """
    needs_attention = Requirement.PATCH_ATTENTION in find_method(method).requires
    return not needs_attention or model.startswith(("vit", "deit"))


def build_method(
    name: str,
    options: dict[str, Any] | None = None,
    *,
    num_classes: int,
    seed: int = 0,
    label_smoothing: float = 0.0,
    model: nn.Module | None = None,
) -> Method:
    """Create a method from its name and its settings; see `Method` for the other arguments."""
    cls = find_method(name)
    return cls(
        cls.Settings(**(options or {})),
        num_classes=num_classes,
        seed=seed,
        label_smoothing=label_smoothing,
        model=model,
    )


def describe(method: type[Method]) -> dict[str, Any]:
    """Return all facts of a method as plain data that JSON can hold.

    Enum members become their lower-case values, sets become sorted lists, and `step_cycle` is that
    of the default settings.
    """
    settings = method.Settings()
    return {
        "name": method.name,
        "summary": method.summary,
        "paper": dataclasses.asdict(method.paper) if method.paper else None,
        "requires": sorted(requirement.value for requirement in method.requires),
        "cost": method.cost,
        "label_rule": method.label_rule.value,
        "label_note": method.label_note,
        "step_cycle": settings.step_cycle,
        "heads": list(method.heads),
        "uses_teacher": method.uses_teacher,
        "input_mixing": issubclass(method, InputMixing),
        "settings": settings.model_dump(mode="json"),
        "card": card_sections(method),
    }


def method_card(name: str) -> str:
    """Return the card of a method as text: paper, formulas, needs, cost, settings, evidence.

    Raises:
        UsageError: there is no method of that name.
    """
    return card_text(find_method(name))


def methods_page() -> str:
    """Return the cards of all methods as one Markdown page."""
    return cards_page(METHODS.values())


def describe_methods() -> list[dict[str, Any]]:
    """Return the facts of every method, in the order of the table; see `describe`."""
    return [describe(method) for method in METHODS.values()]


__all__ = [
    "METHODS",
    "InputMixing",
    "LabelRule",
    "Method",
    "MethodSettings",
    "MixInputs",
    "MixParams",
    "Mixed",
    "Paper",
    "Requirement",
    "build_method",
    "describe",
    "describe_methods",
    "find_method",
    "method_card",
    "methods_page",
    "suits",
]
