"""Anybody's mixers: called on a batch of the ledger, and what they return read as soft labels."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adautomix.checks.label_ledger import Count, LedgerRow, Trial
from adautomix.checks.script import load_named
from adautomix.errors import UsageError
from adautomix.methods import Mixed
from adautomix.rng import seeded

Mixer = Callable[[Tensor, Tensor], Any]


def check_object(
    mixer: Mixer, trial: Trial | None = None, *, name: str | None = None, seed: int = 0
) -> LedgerRow:
    """Count the mixes of a mixer from anywhere: timm, torchvision, kornia, a function.

    Called with float images `[B, B, S, S]` and labels 0 … B-1, it may return

    - images and labels, soft `[M, K]` or classes `[M]`, as timm's and torchvision's do;
    - a `Mixed`, as the functions of `adautomix.functional` do;
    - images, labels, partners' labels and λ, the weight of the first, as in many a script;
    - images and rows of (label, partner's label, λ), `[M, 3]` or several of these, as kornia's do.
      Its mixers do not agree on whose weight λ is: the verdict says which reading fits.

    It is to take any number of channels: leave normalization and the like out of what is checked.

    Args:
        mixer: called afresh for every batch; it may work in place.
        trial: what it is tried on.
        name: how the row calls it.
        seed: of PyTorch's, NumPy's and Python's random numbers meanwhile.

    Raises:
        UsageError: it fails on such a batch, or returns something else.
    """
    trial = trial or Trial()
    name = name or str(getattr(mixer, "__name__", type(mixer).__name__))
    counts: dict[str, Count] = {}
    with seeded(seed), torch.no_grad():
        for _ in range(trial.batches):
            images, readings = call_mixer(mixer, name, trial.planes())
            for reading, targets in readings.items():
                counts.setdefault(reading, Count(trial.tolerance)).add(images, targets)
    rows = [count.row(name, note=reading) for reading, count in counts.items()]
    return min(rows, key=lambda row: row.difference or 0)


def check_named(address: str, trial: Trial | None = None) -> LedgerRow:
    """Count the mixes of an object by its address, see `load_named` and `check_object`.

    A class, and a function without arguments, makes the mixer.

    Raises:
        UsageError: there is no such object, or it cannot be checked.
    """
    mixer = load_named(address)
    if inspect.isclass(mixer) or (inspect.isfunction(mixer) and not takes_arguments(mixer)):
        mixer = mixer()
    if not callable(mixer):
        raise UsageError(f"{address} cannot be called: name a mixer or a function that makes one")
    return check_object(mixer, trial, name=address)


def takes_arguments(function: Callable[..., Any]) -> bool:
    """Whether a function cannot be called without any."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in kinds for p in parameters)


def call_mixer(mixer: Mixer, name: str, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The mixes of one batch and their soft labels, by each way that they can be read."""
    batch = len(images)
    try:
        result = mixer(images, torch.arange(batch))
    except Exception as error:
        raise UsageError(
            f"{name} failed on images {list(images.shape)} with labels 0 to {batch - 1} "
            f"({type(error).__name__}: {error}): it should take any number of channels and know "
            f"{batch} classes"
        ) from error
    match result:
        case Mixed():
            return result.images, {"": result.targets}
        case (Tensor() as mixed, Tensor() as targets):
            return mixed, label_readings(targets, batch)
        case (Tensor() as mixed, Tensor() as first, Tensor() as second, lam):
            return mixed, {"": two_labels(first, second, lam, batch)}
    raise UsageError(
        f"{name} returned {type(result).__name__}, not (images, labels): wrap it in a function "
        "that does"
    )


def label_readings(targets: Tensor, batch: int) -> dict[str, Tensor]:
    """Soft labels as they are; rows of (label, partner's label, λ) with λ the weight of either."""
    if targets.ndim == 1:
        return {"": F.one_hot(targets.long(), batch).float()}
    if targets.shape[-1] != 3:
        return {"": targets}
    rounds = [triples.unbind(dim=1) for triples in targets.reshape(-1, batch, 3)]
    of_first = [two_labels(first, second, lam, batch) for first, second, lam in rounds]
    of_second = [two_labels(second, first, lam, batch) for first, second, lam in rounds]
    return {
        ", λ is the weight of the first label": torch.stack(of_first).mean(dim=0),
        ", λ is the weight of the second label": torch.stack(of_second).mean(dim=0),
    }


def two_labels(first: Tensor, second: Tensor, lam: Tensor | float, classes: int) -> Tensor:
    """`λ · first + (1 - λ) · second` as soft labels `[B, K]`; both are class indices or soft."""
    first, second = (
        F.one_hot(labels.long(), classes) if labels.ndim == 1 else labels
        for labels in (first, second)
    )
    share = torch.as_tensor(lam).reshape(-1, 1)
    return share * first + (1 - share) * second
