"""Check mixers of other libraries: call them on probe batches and read what they return."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adautomix.checks.label_ledger import CheckSettings, LabelLedger, LedgerRow
from adautomix.checks.script import load_named
from adautomix.errors import UsageError
from adautomix.methods import Mixed
from adautomix.rng import seeded

Mixer = Callable[[Tensor, Tensor], Any]


def check_mixer(
    mixer: Mixer,
    settings: CheckSettings | None = None,
    *,
    name: str | None = None,
    seed: int = 0,
) -> LedgerRow:
    """Compare labels and pixels of a mixer from timm, torchvision, kornia or anywhere else.

    The mixer is called with float images `[B, B, S, S]` and labels 0 to B - 1. It may return

    - images and labels, soft `[M, K]` or class indices `[M]`, as timm and torchvision do;
    - a `Mixed`, as the functions of `adautomix.functional` do;
    - images, labels, the partners' labels and λ, the weight of the first labels;
    - images and rows of (label, partner's label, λ), `[M, 3]` or several of these, as kornia does.
      Its mixers differ in whose weight λ is: the verdict says which interpretation fits.

    It must accept any number of channels, so leave normalization and the like out of it.

    Args:
        mixer: called once per batch; it may work in place.
        settings: what the mixer is checked on.
        name: name of the row; the default is the name of the object.
        seed: seed of PyTorch's, NumPy's and Python's global generators during the check.

    Raises:
        UsageError: the mixer fails on such a batch or returns something else.
    """
    settings = settings or CheckSettings()
    name = name or str(getattr(mixer, "__name__", type(mixer).__name__))
    ledgers: dict[str, LabelLedger] = {}
    with seeded(seed), torch.no_grad():
        for _ in range(settings.batches):
            images, interpretations = call_mixer(mixer, name, settings.indicator_images())
            for note, targets in interpretations.items():
                ledgers.setdefault(note, LabelLedger(settings.tolerance)).add(images, targets)
    rows = [ledger.row(name, note=note) for note, ledger in ledgers.items()]
    return min(rows, key=lambda row: row.difference or 0)


def check_address(address: str, settings: CheckSettings | None = None) -> LedgerRow:
    """Check a mixer by its address; see `load_named` and `check_mixer`.

    The address may name the mixer itself, or a class or a function without arguments that makes
    it.

    Raises:
        UsageError: there is no such object, or it cannot be checked.
    """
    mixer = load_named(address)
    if inspect.isclass(mixer) or (inspect.isfunction(mixer) and not requires_arguments(mixer)):
        mixer = mixer()
    if not callable(mixer):
        raise UsageError(f"{address} cannot be called: name a mixer or a function that makes one")
    return check_mixer(mixer, settings, name=address)


def requires_arguments(function: Callable[..., Any]) -> bool:
    """Whether a function cannot be called without arguments."""
    parameters = inspect.signature(function).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in variadic for p in parameters)


def call_mixer(mixer: Mixer, name: str, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mix one batch; return the images and the soft labels under each possible interpretation.

    Raises:
        UsageError: the mixer fails or returns something else.
    """
    batch = len(images)
    try:
        result = mixer(images, torch.arange(batch))
    except Exception as error:
        raise UsageError(
            f"{name} failed on images {list(images.shape)} with labels 0 to {batch - 1} "
            f"({type(error).__name__}: {error}): it should accept any number of channels and "
            f"{batch} classes"
        ) from error
    match result:
        case Mixed():
            return result.images, {"": result.targets}
        case (Tensor() as mixed, Tensor() as targets):
            return mixed, interpret_labels(targets, batch)
        case (Tensor() as mixed, Tensor() as first, Tensor() as second, lam):
            return mixed, {"": mix_labels(first, second, lam, batch)}
    raise UsageError(
        f"{name} returned {type(result).__name__}, not (images, labels): wrap it in a function "
        "that does"
    )


def interpret_labels(targets: Tensor, batch: int) -> dict[str, Tensor]:
    """Soft labels `[M, K]` by interpretation, which is a note for the verdict.

    Class indices and soft labels have one interpretation. For rows of (label, partner's label, λ)
    λ may be the weight of the first label or of the second.

    Args:
        targets: class indices `[M]`, soft labels `[M, K]`, or rows `[..., B, 3]`.
        batch: B, the number of images and classes.
    """
    if targets.ndim == 1:
        return {"": F.one_hot(targets.long(), batch).float()}
    if targets.shape[-1] != 3:
        return {"": targets}
    rounds = [triples.unbind(dim=1) for triples in targets.reshape(-1, batch, 3)]
    lam_of_first = [mix_labels(first, second, lam, batch) for first, second, lam in rounds]
    lam_of_second = [mix_labels(second, first, lam, batch) for first, second, lam in rounds]
    return {
        ", λ is the weight of the first label": torch.stack(lam_of_first).mean(dim=0),
        ", λ is the weight of the second label": torch.stack(lam_of_second).mean(dim=0),
    }


def mix_labels(first: Tensor, second: Tensor, lam: Tensor | float, classes: int) -> Tensor:
    """Soft labels `λ · first + (1 - λ) · second`, `[B, K]`.

    Args:
        first: class indices `[B]` or soft labels `[B, K]`.
        second: the same for the partners.
        lam: λ, one value or one per row.
        classes: K.
    """
    first, second = (
        F.one_hot(labels.long(), classes) if labels.ndim == 1 else labels
        for labels in (first, second)
    )
    weight = torch.as_tensor(lam).reshape(-1, 1)
    return weight * first + (1 - weight) * second
