"""The ledger of labels: whether a mix's labels are what its pixels say.

The batch is made so that shares can be counted instead of estimated. Image b is 1 in channel b and
0 in all others, at every pixel: whatever a mixer does, channel b of its outcome is the weight of
image b at each pixel, and the mean over the pixels its share. Image b is also the only one of class
b, so a soft label is a claim about the same shares. Where the two differ, the label is wrong.

A method that looks for salient parts is shown noise in three channels and then mixes the planes.

Not seen: shares of mixed features (such methods say `label_by = "features"`), and mixers that take
three channels and no others: leave normalisation and the like out of what is checked.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adautomix.checks.script import load_named
from adautomix.checks.seeded import seeded
from adautomix.config import make_config, merge
from adautomix.errors import UsageError
from adautomix.methods import Method, Mixed, find_method
from adautomix.training.setup import build_networks

MATCH = "labels match pixels"
ROUNDING = 1e-5
SMALL_CNN = {"model": "resnet18", "width": 0.125}
SMALL_TRANSFORMER = {
    "model": "vit_tiny_patch16_224",
    "width": 0.25,
    "model_options": {"patch_size": 4, "depth": 2},
}

TITLES = ("mixer", "|label - pixels|", "λ", "images", "pairings", "smoothing", "verdict")

Mixer = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class LedgerRow:
    """What was counted for one mixer.

    Attributes:
        name: of the mixer.
        verdict: in words.
        ok: whether labels are what they should be.
        difference: largest |label - share of the pixels| over all mixes and images.
        lam: smallest and largest share of the pixels that an image had in a mix.
        images: most images in one mix.
        pairings: how many different sets of images were mixed.
        smoothing: label smoothing found in the labels and taken out.
    """

    name: str
    verdict: str
    ok: bool
    difference: float | None = None
    lam: tuple[float, float] | None = None
    images: int = 0
    pairings: int = 0
    smoothing: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """The row as text, under `TITLES`."""
        if self.difference is None or self.lam is None:
            return self.name, "-", "-", "-", "-", "-", self.verdict
        low, high = self.lam
        return (
            self.name,
            f"{self.difference:.1e}",
            f"{low:.3f} to {high:.3f}",
            str(self.images),
            str(self.pairings),
            f"{self.smoothing:.2g}",
            self.verdict,
        )


@dataclass
class Count:
    """Shares of the images in each mix, by pixels and by labels, `[B]` a row.

    Attributes:
        tolerance: difference that is none: one pixel of the mix, beside rounding.
    """

    tolerance: float
    pixels: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    smoothing: float = 0.0

    def add(self, images: Tensor, targets: Tensor) -> None:
        """Count one batch: planes mixed `[M, B, H, W]`, and their labels `[M, K]` with K >= B.

        Raises:
            UsageError: the shapes do not fit.
        """
        known = images.shape[1]
        if len(targets) != len(images) or targets.shape[1] < known:
            raise UsageError(
                f"labels {list(targets.shape)} for {len(images)} mixes of {known} classes: "
                f"give the mixer {known} classes or more, or check a smaller batch"
            )
        targets, self.smoothing = without_smoothing(targets.double())
        shares = images.double().mean(dim=(2, 3))
        self.pixels.append(F.pad(shares, (0, targets.shape[1] - known)))
        self.labels.append(targets)

    def row(self, name: str, label_by: str = "pixels", note: str = "") -> LedgerRow:
        """The figures of all batches and what they mean."""
        pixels, labels = torch.cat(self.pixels), torch.cat(self.labels)
        difference = float((pixels - labels).abs().max())
        verdict = MATCH
        if not difference <= self.tolerance:  # NaN is no match
            verdict = self._verdict(pixels, labels, difference, label_by)
        there = pixels > ROUNDING
        sets = {tuple(row.nonzero().flatten().tolist()) for row in there}
        return LedgerRow(
            name=name,
            verdict=verdict + note,
            ok=verdict == MATCH or label_by != "pixels",
            difference=difference,
            lam=(float(pixels[there].min()), float(pixels[there].max())) if there.any() else None,
            images=int(there.sum(dim=1).max()),
            pairings=sum(len(images) > 1 for images in sets),
            smoothing=self.smoothing,
        )

    def _verdict(self, pixels: Tensor, labels: Tensor, difference: float, label_by: str) -> str:
        if label_by != "pixels":
            return f"label by {label_by}, pixels say up to {difference:.3f} else"
        absent = (labels > self.tolerance) & (pixels <= ROUNDING)
        unnamed = (pixels > self.tolerance) & (labels <= ROUNDING)
        if (absent.any(dim=1) & unnamed.any(dim=1)).any():
            return f"wrong pairing: labels name images that were not mixed in ({difference:.3f})"
        return f"labels differ from pixels by up to {difference:.3f}"


def planes(batch: int, size: int) -> Tensor:
    """Images that are known by their channel, `[B, B, S, S]`."""
    return torch.eye(batch)[:, :, None, None].expand(batch, batch, size, size).clone()


def pictures(batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Coloured clouds, `[B, 3, S, S]`: each has its salient parts somewhere else."""
    coarse = torch.randn(batch, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bicubic")


def one_pixel(size: int) -> float:
    """The share of one pixel: what a mask of zeros and ones may have to round λ by."""
    return 1 / size**2 + ROUNDING


def without_smoothing(targets: Tensor) -> tuple[Tensor, float]:
    """Labels `[M, K]` with their smoothing taken out, and how much it was.

    Smoothing by ε leaves ε/K in every entry, also of classes that were not mixed.
    """
    floor = float(targets.min())
    smoothing = floor * targets.shape[1]
    sums_to_one = bool((targets.sum(dim=1) - 1).abs().max() < ROUNDING)
    if not (sums_to_one and 0 < smoothing < 1):
        return targets, 0.0
    return (targets - floor) / (1 - smoothing), smoothing


# ---------------------------------------------------------------------- our methods


def check_method(
    method: Method,
    *,
    student: Any = None,
    teacher: Any = None,
    batch: int = 8,
    size: int = 32,
    batches: int = 20,
) -> LedgerRow:
    """Count the mixes of one of our methods, at steps 0, 1, 2, …

    A method whose label is by design something else than the share of the pixels names it in a
    class attribute `label_by` ("attention", "saliency", "λ"); "features" are not in the pixels.

    Args:
        method: any method.
        student: the network that it may look into, built for such images and B classes.
        teacher: its moving average.
        batch: B, images and classes.
        size: S, image side in pixels.
        batches: steps counted.

    Raises:
        UsageError: the batch is smaller than a mix.
    """
    label_by = getattr(method, "label_by", "pixels")
    if label_by == "features":
        return LedgerRow(method.name, "not in pixels: features are mixed", ok=True)
    count = Count(one_pixel(size))
    shown = pictures(batch, size, torch.Generator().manual_seed(method.seed))
    targets = torch.eye(batch)
    with torch.no_grad():
        for step in range(batches):
            draw = method.draw_at(shown.shape, step)
            seen = method.look(shown, targets, student, teacher, draw)
            mixed = method.mix(planes(batch, size), targets, draw, **seen)
            count.add(mixed.images, mixed.targets)
    return count.row(method.name, label_by)


def check_methods(
    names: Sequence[str],
    values: dict[str, Any] | None = None,
    *,
    batch: int = 8,
    size: int = 32,
    batches: int = 20,
) -> list[LedgerRow]:
    """Count the mixes of several of our methods, with small networks where they need any.

    Args:
        names: of `adautomix methods`.
        values: nested settings that are not the defaults.
        batch: B, images and classes.
        size: S, image side in pixels.
        batches: steps counted.

    Raises:
        UsageError: unknown method or setting.
    """
    rows = []
    for name in names:
        needs_attention = "attention" in find_method(name).needs
        network = SMALL_TRANSFORMER if needs_attention else SMALL_CNN
        config = make_config(merge(network, values or {}) | {"method": name})
        with seeded(config.seed):
            student, method, teacher = build_networks(
                config, num_classes=batch, image_size=size, device=torch.device("cpu")
            )
            rows.append(
                check_method(
                    method,
                    student=student,
                    teacher=teacher.model,
                    batch=batch,
                    size=size,
                    batches=batches,
                )
            )
    return rows


# ---------------------------------------------------------------------- anybody's mixers


def check_object(
    mixer: Mixer,
    *,
    name: str | None = None,
    batch: int = 8,
    size: int = 32,
    batches: int = 20,
    seed: int = 0,
) -> LedgerRow:
    """Count the mixes of a mixer from anywhere: timm, torchvision, kornia, a function.

    Called with float images `[B, B, S, S]` and labels 0 … B-1, it may return

    - images and soft labels `[M, K]`, as timm's and torchvision's do, or a `Mixed`;
    - images, labels, partners' labels and λ, the weight of the first, as in many a script;
    - images and rows of (label, partner's label, λ), `[M, 3]` or several of these, as kornia's do.
      Its mixers do not agree on whose weight λ is: the verdict says which reading fits.

    Args:
        mixer: called afresh for every batch; it may work in place.
        name: how the row calls it.
        batch: B, images and classes.
        size: S, image side in pixels.
        batches: calls counted.
        seed: of PyTorch's, NumPy's and Python's random numbers meanwhile.

    Raises:
        UsageError: it fails on such a batch, or returns something else.
    """
    name = name or str(getattr(mixer, "__name__", type(mixer).__name__))
    counts: dict[str, Count] = {}
    with seeded(seed), torch.no_grad():
        for _ in range(batches):
            images, readings = call_mixer(mixer, name, planes(batch, size))
            for reading, targets in readings.items():
                counts.setdefault(reading, Count(one_pixel(size))).add(images, targets)
    rows = [count.row(name, note=reading) for reading, count in counts.items()]
    return min(rows, key=lambda row: row.difference or 0.0)


def check_named(address: str, **counted: int) -> LedgerRow:
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
    return check_object(mixer, name=address, **counted)


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
    if isinstance(result, Mixed):
        return result.images, {"": result.targets}
    if isinstance(result, tuple | list) and len(result) == 4:
        mixed, first, second, lam = result
        return mixed, {"": two_labels(first, second, lam, batch)}
    if isinstance(result, tuple | list) and len(result) == 2:
        mixed, targets = result
        return mixed, label_readings(targets, batch)
    raise UsageError(f"{name} returned no (images, targets): wrap it in a function that does")


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
