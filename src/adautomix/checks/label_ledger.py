"""The ledger of labels: whether a mix's labels are what its pixels say.

Shares are counted, not estimated. Image b of a batch is 1 in channel b and 0 in all others, at
every pixel: whatever a mixer does, channel b of a mix is the weight of image b at each pixel, and
its mean over the pixels the share of that image. Image b is also the only one of class b, so that
a soft label is a claim about the same shares. Where the two differ, the label is wrong.

Our own methods may look for salient parts: they are given noise in three more channels, which are
all that a network sees. Where a method's `label_rule` is not to count pixels, labels differ from
pixels by design and only the pairing is judged; some rules are not countable at all.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adautomix.config import make_config, merge
from adautomix.errors import UsageError
from adautomix.methods import LabelRule, Method, Mixed, suits
from adautomix.rng import generator_at, seeded
from adautomix.runs.build import build_networks

MATCH = "labels match pixels"
WRONG_PAIRING = "wrong pairing: labels name images that were not mixed in"

TITLES = (
    "mixer",
    "|label - pixels|",
    "λ in pixels",
    "images/mix",
    "pairings",
    "smoothing",
    "verdict",
)

ROUNDING = 1e-5
COLOURS = 3  # channels that networks see, ahead of those that are counted
SMALL_CNN: dict[str, Any] = {"model": "resnet18", "width": 0.125}
SMALL_TRANSFORMER = {
    "model": "vit_tiny_patch16_224",
    "width": 0.25,
    "model_options": {"patch_size": 4, "depth": 2},
}


@dataclass(frozen=True)
class Trial:
    """What a mixer is tried on.

    Attributes:
        batch: B, images per batch, and classes.
        size: S, image side in pixels.
        batches: how many.
    """

    batch: int = 8
    size: int = 32
    batches: int = 20

    @property
    def tolerance(self) -> float:
        """A difference that is none: one pixel, by which masks of zeros and ones may round λ."""
        return 1 / self.size**2 + ROUNDING

    def planes(self) -> Tensor:
        """Images that are known by their channel, `[B, B, S, S]`."""
        planes = torch.eye(self.batch)[:, :, None, None]
        return planes.expand(-1, -1, self.size, self.size).clone()

    def pictures(self, generator: torch.Generator) -> Tensor:
        """Colored clouds, `[B, 3, S, S]`: each has its salient parts somewhere else."""
        coarse = torch.randn(self.batch, COLOURS, 4, 4, generator=generator)
        return F.interpolate(coarse, size=(self.size, self.size), mode="bicubic")


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
        return (
            self.name,
            f"{self.difference:.4f}",
            "{:.3f} to {:.3f}".format(*self.lam),
            str(self.images),
            str(self.pairings),
            f"{self.smoothing:.2g}",
            self.verdict,
        )


@dataclass
class Count:
    """Shares of the images in each mix, by pixels and by labels, `[M, B + 1]` a batch.

    The last column is for classes of which there is no image.

    Attributes:
        tolerance: difference that is none.
        smoothing: the most that was found in the labels of a batch.
    """

    tolerance: float
    smoothing: float = 0.0
    pixels: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def add(self, images: Tensor, targets: Tensor) -> None:
        """Count one batch: mixed planes `[M, B, H, W]` and their labels `[M, K]`, K >= B.

        Raises:
            UsageError: the shapes do not fit.
        """
        known = images.shape[1]
        if targets.ndim != 2 or len(targets) != len(images) or targets.shape[1] < known:
            raise UsageError(
                f"labels {list(targets.shape)} for {len(images)} mixes of {known} classes: "
                f"give the mixer {known} classes or more, or check a smaller batch"
            )
        pixels = F.pad(images.double().mean(dim=(2, 3)), (0, targets.shape[1] - known))
        labels, smoothing = without_smoothing(targets.double(), pixels)
        self.smoothing = max(self.smoothing, smoothing)
        for shares, counted in ((pixels, self.pixels), (labels, self.labels)):
            others = shares[:, known:].sum(dim=1, keepdim=True)
            counted.append(torch.cat([shares[:, :known], others], dim=1))

    def row(self, name: str, note: str = "") -> LedgerRow:
        """The figures of all batches and what they mean; `note` is added to the verdict."""
        pixels, labels = torch.cat(self.pixels), torch.cat(self.labels)
        found = verdict(pixels, labels, self.tolerance)
        there = pixels > ROUNDING
        sets = {tuple(mix.nonzero().flatten().tolist()) for mix in there}
        pairings = sum(len(images) > 1 for images in sets)
        return LedgerRow(
            name=name,
            verdict=found + (note if pairings else ", nothing was mixed"),
            ok=found == MATCH,
            difference=float((pixels - labels).abs().max()),
            lam=(float(pixels[there].min()), float(pixels[there].max())) if there.any() else None,
            images=int(there.sum(dim=1).max()),
            pairings=pairings,
            smoothing=self.smoothing,
        )


def without_smoothing(targets: Tensor, shares: Tensor) -> tuple[Tensor, float]:
    """Labels `[M, K]` with their smoothing taken out, and how much it was.

    Smoothing by ε leaves ε/K in every entry, also of classes that were not mixed in.

    Args:
        targets: `[M, K]`.
        shares: of the pixels, `[M, K]`.
    """
    absent = targets[shares <= ROUNDING]
    floor = float(absent.min()) if len(absent) else 0.0
    smoothing = floor * targets.shape[1]
    sums_to_one = bool((targets.sum(dim=1) - 1).abs().max() < ROUNDING)
    if not (sums_to_one and floor > ROUNDING and smoothing < 1):
        return targets, 0.0
    return (targets - floor) / (1 - smoothing), smoothing


def verdict(pixels: Tensor, labels: Tensor, tolerance: float) -> str:
    """What the labels of all mixes are, in words; both are `[M, B + 1]`."""
    excess = labels - pixels
    off = ~(excess.abs() <= tolerance).all(dim=1)  # NaN is no match
    if not off.any():
        return MATCH
    pixels, labels, excess = pixels[off], labels[off], excess[off]
    there = pixels > ROUNDING
    two = there.sum(dim=1) == 2
    other_way = torch.where(there, 1 - pixels, 0)
    if two.any() and ((other_way - labels)[two].abs() <= tolerance).all():
        return "swapped λ: each image has the weight of the other"
    absent = (labels > tolerance) & ~there
    unnamed = (pixels > tolerance) & (labels <= ROUNDING)
    if (absent.any(dim=1) & unnamed.any(dim=1)).any():
        return WRONG_PAIRING
    if unnamed.any():
        return "incomplete: labels leave out images that were mixed in"
    if ((labels.sum(dim=1) - 1).abs() > tolerance).any():
        return "labels do not sum to 1"
    own = off.nonzero() % (pixels.shape[1] - 1)
    if (there.gather(1, own) & (excess.gather(1, own) < 0)).all():
        return "unclipped λ: labels give the pasted image more than its pixels"
    return "labels differ from pixels"


# ---------------------------------------------------------------------- our methods


@contextmanager
def seeing_colors(*networks: nn.Module | None) -> Iterator[None]:
    """Within it networks see the first three channels of images that have more."""

    def colors(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][:, :COLOURS], *args[1:])

    with ExitStack() as hooks:
        for network in filter(None, networks):
            for module in network.modules():
                if isinstance(module, nn.Conv2d) and module.in_channels == COLOURS:
                    hooks.enter_context(module.register_forward_pre_hook(colors))
        yield


def mixes_of(
    method: Method, trial: Trial, student: Any = None, teacher: Any = None
) -> Iterator[Mixed]:
    """Mixed planes of a method at steps 0, 1, 2, …, as the student would learn from them.

    Args:
        method: any method.
        trial: what it is tried on.
        student: the network that it may look into, built for such images and B classes.
        teacher: its moving average.

    Raises:
        UsageError: the batch is smaller than a mix.
    """
    pictures = trial.pictures(generator_at(method.seed, 0, "ledger"))
    images = torch.cat([pictures, trial.planes()], dim=1)
    targets = torch.eye(trial.batch)
    with torch.no_grad(), seeing_colors(student, teacher, method):
        for step in range(trial.batches):
            params = method.params_for_step(images.shape, step)
            mixed = method.mix_batch(images, targets, student, teacher, params)
            yield replace(mixed, images=mixed.images[:, COLOURS:])
            # Some keep their mixes, for other images to meet at the next step.
            method.losses(images, targets, student, teacher, step)
            images, targets = images.roll(1, dims=0), targets.roll(1, dims=0)


def realized_lam(mixed: Mixed) -> Tensor:
    """The share of the pixels that each source has, `[M, N]`, as the method says itself."""
    masks = mixed.masks
    return mixed.lam if masks is None else masks.mean(dim=(2, 3))


def check_method(
    method: Method, trial: Trial | None = None, *, student: Any = None, teacher: Any = None
) -> LedgerRow:
    """Count the mixes of one of our methods; for the arguments see `mixes_of`.

    Raises:
        UsageError: the batch is smaller than a mix.
    """
    if not method.label_rule.countable:
        return LedgerRow(method.name, f"not counted: {method.label_note}", ok=True)
    trial = trial or Trial()
    count = Count(trial.tolerance)
    for mixed in mixes_of(method, trial, student, teacher):
        count.add(mixed.images, mixed.targets)
    row = count.row(method.name)
    if method.label_rule is not LabelRule.PIXELS and row.verdict != WRONG_PAIRING:
        return replace(row, verdict=f"by design: {method.label_note}", ok=True)
    return row


def check_methods(
    names: Sequence[str], values: dict[str, Any] | None = None, trial: Trial | None = None
) -> list[LedgerRow]:
    """Count the mixes of several of our methods, with small networks where they need any.

    Args:
        names: of `adautomix methods`.
        values: nested settings that are not the defaults.
        trial: what they are tried on.

    Raises:
        UsageError: unknown method or setting.
    """
    trial = trial or Trial()
    rows = []
    for name in names:
        network = SMALL_CNN if suits(name, SMALL_CNN["model"]) else SMALL_TRANSFORMER
        config = make_config(merge(network, values or {}) | {"method": name})
        with seeded(config.seed):
            student, method, teacher = build_networks(
                config,
                num_classes=trial.batch,
                image_size=trial.size,
                device=torch.device("cpu"),
            )
            rows.append(check_method(method, trial, student=student, teacher=teacher.model))
    return rows
