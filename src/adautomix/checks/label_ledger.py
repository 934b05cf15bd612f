"""Check that the label of every mixed image matches its pixels, by counting instead of estimating.

The images of a probe batch are indicators: image b is 1 in channel b and 0 in all other channels,
at every pixel. Whatever a mixer does, channel b of a mixed image is then the weight of image b at
each pixel, and its mean over the pixels is the weight of image b in the mix. Image b is also the
only image of class b, so that a soft label claims the same weights. If they differ, the label is
wrong.

Methods of this package may look for salient regions. For them the images have three more channels
of noise, and networks see these channels only. If a method's `label_rule` is not to count pixels,
its labels differ from the pixels by design, and only the pairing is checked. Some rules cannot be
checked by counting at all.
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

COLUMN_TITLES = (
    "mixer",
    "|label - pixels|",
    "λ in pixels",
    "images/mix",
    "pairings",
    "smoothing",
    "verdict",
)

ROUNDING = 1e-5
COLOR_CHANNELS = 3  # channels that networks see; the indicator channels follow them
SMALL_CNN: dict[str, Any] = {"model": "resnet18", "width": 0.125}
SMALL_TRANSFORMER = {
    "model": "vit_tiny_patch16_224",
    "width": 0.25,
    "model_options": {"patch_size": 4, "depth": 2},
}


@dataclass(frozen=True)
class CheckSettings:
    """The probe batches that a mixer is checked on.

    Attributes:
        batch_size: B, number of images per batch, and of classes.
        image_size: S, side of the images in pixels.
        batches: number of batches.
    """

    batch_size: int = 8
    image_size: int = 32
    batches: int = 20

    @property
    def tolerance(self) -> float:
        """Largest accepted difference: one pixel, by which λ of a binary mask may be rounded."""
        return 1 / self.image_size**2 + ROUNDING

    def indicator_images(self) -> Tensor:
        """Images `[B, B, S, S]`: image b is 1 in channel b and 0 elsewhere."""
        channels = torch.eye(self.batch_size)[:, :, None, None]
        return channels.expand(-1, -1, self.image_size, self.image_size).clone()

    def noise_images(self, generator: torch.Generator) -> Tensor:
        """Smooth noise `[B, 3, S, S]`, with salient regions at a different place in each image."""
        coarse = torch.randn(self.batch_size, COLOR_CHANNELS, 4, 4, generator=generator)
        size = (self.image_size, self.image_size)
        return F.interpolate(coarse, size=size, mode="bicubic")


@dataclass(frozen=True)
class LedgerRow:
    """The result for one mixer.

    Attributes:
        name: name of the mixer.
        verdict: the result in words.
        ok: whether the labels are correct.
        difference: largest |label - fraction of the pixels| over all mixes and images.
        lam: smallest and largest fraction of the pixels of an image in a mix.
        images: largest number of images in one mix.
        pairings: number of different sets of images that were mixed.
        smoothing: label smoothing that was found in the labels and removed.
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
        """The row as text, one value per title in `COLUMN_TITLES`."""
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
class LabelLedger:
    """The weight of each image in each mix, once by pixels and once by labels.

    Both are `[M, B + 1]` per batch; the last column is for classes without an image.

    Attributes:
        tolerance: largest accepted difference.
        smoothing: largest label smoothing that was found in a batch.
    """

    tolerance: float
    smoothing: float = 0.0
    pixels: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def add(self, images: Tensor, targets: Tensor) -> None:
        """Count one batch.

        Args:
            images: mixed indicator images `[M, B, H, W]`.
            targets: their labels `[M, K]`, K at least B.

        Raises:
            UsageError: the shapes do not match.
        """
        known = images.shape[1]
        if targets.ndim != 2 or len(targets) != len(images) or targets.shape[1] < known:
            raise UsageError(
                f"labels {list(targets.shape)} for {len(images)} mixes of {known} classes: "
                f"give the mixer {known} classes or more, or check a smaller batch"
            )
        pixels = F.pad(images.double().mean(dim=(2, 3)), (0, targets.shape[1] - known))
        labels, smoothing = remove_smoothing(targets.double(), pixels)
        self.smoothing = max(self.smoothing, smoothing)
        for weights, column in ((pixels, self.pixels), (labels, self.labels)):
            others = weights[:, known:].sum(dim=1, keepdim=True)
            column.append(torch.cat([weights[:, :known], others], dim=1))

    def row(self, name: str, note: str = "") -> LedgerRow:
        """Summarize all batches.

        Args:
            name: name of the mixer.
            note: text to append to the verdict if anything was mixed.
        """
        pixels, labels = torch.cat(self.pixels), torch.cat(self.labels)
        result = verdict(pixels, labels, self.tolerance)
        present = pixels > ROUNDING
        sets = {tuple(mix.nonzero().flatten().tolist()) for mix in present}
        pairings = sum(len(images) > 1 for images in sets)
        fractions = pixels[present]
        return LedgerRow(
            name=name,
            verdict=result + (note if pairings else ", nothing was mixed"),
            ok=result == MATCH,
            difference=float((pixels - labels).abs().max()),
            lam=(float(fractions.min()), float(fractions.max())) if len(fractions) else None,
            images=int(present.sum(dim=1).max()),
            pairings=pairings,
            smoothing=self.smoothing,
        )


def remove_smoothing(targets: Tensor, pixels: Tensor) -> tuple[Tensor, float]:
    """Labels `[M, K]` without label smoothing, and the amount ε of smoothing.

    Smoothing adds ε/K to every entry, also for classes that were not mixed in.

    Args:
        targets: labels `[M, K]`.
        pixels: weights by pixels, `[M, K]`.
    """
    absent = targets[pixels <= ROUNDING]
    floor = float(absent.min()) if len(absent) else 0.0
    smoothing = floor * targets.shape[1]
    sums_to_one = bool((targets.sum(dim=1) - 1).abs().max() < ROUNDING)
    if not (sums_to_one and floor > ROUNDING and smoothing < 1):
        return targets, 0.0
    return (targets - floor) / (1 - smoothing), smoothing


def verdict(pixels: Tensor, labels: Tensor, tolerance: float) -> str:
    """Describe in words how labels and pixels compare.

    Args:
        pixels: weights by pixels, `[M, B + 1]`.
        labels: weights by labels, `[M, B + 1]`.
        tolerance: largest accepted difference.
    """
    excess = labels - pixels
    wrong = ~(excess.abs() <= tolerance).all(dim=1)  # also where a label is NaN
    if not wrong.any():
        return MATCH
    pixels, labels, excess = pixels[wrong], labels[wrong], excess[wrong]
    present = pixels > ROUNDING
    two = present.sum(dim=1) == 2
    swapped = torch.where(present, 1 - pixels, 0)
    if two.any() and ((swapped - labels)[two].abs() <= tolerance).all():
        return "swapped λ: each image has the weight of the other"
    extra = (labels > tolerance) & ~present
    missing = (pixels > tolerance) & (labels <= ROUNDING)
    if (extra.any(dim=1) & missing.any(dim=1)).any():
        return WRONG_PAIRING
    if missing.any():
        return "incomplete: labels leave out images that were mixed in"
    if ((labels.sum(dim=1) - 1).abs() > tolerance).any():
        return "labels do not sum to 1"
    # Row b of a batch is image b with something pasted in.
    base = wrong.nonzero() % (pixels.shape[1] - 1)
    if (present.gather(1, base) & (excess.gather(1, base) < 0)).all():
        return "unclipped λ: labels give the pasted image more than its pixels"
    return "labels differ from pixels"


# ---------------------------------------------------------------------- methods of this package


@contextmanager
def color_channels_only(*networks: nn.Module | None) -> Iterator[None]:
    """Let networks see only the first three channels of images that have more."""

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][:, :COLOR_CHANNELS], *args[1:])

    with ExitStack() as hooks:
        for network in filter(None, networks):
            for module in network.modules():
                if isinstance(module, nn.Conv2d) and module.in_channels == COLOR_CHANNELS:
                    hooks.enter_context(module.register_forward_pre_hook(select))
        yield


def mix_batches(
    method: Method,
    settings: CheckSettings,
    student: Any = None,
    teacher: Any = None,
) -> Iterator[Mixed]:
    """Yield the mixes that the student would learn from at steps 0, 1, 2, …

    Args:
        method: the method.
        settings: the probe batches.
        student: a network for such images and B classes, if the method uses one.
        teacher: its moving average, if the method uses one.

    Raises:
        UsageError: the method needs more images than a batch has.
    """
    noise = settings.noise_images(generator_at(method.seed, 0, "ledger"))
    images = torch.cat([noise, settings.indicator_images()], dim=1)
    targets = torch.eye(settings.batch_size)
    with torch.no_grad(), color_channels_only(student, teacher, method):
        for step in range(settings.batches):
            params = method.params_for_step(images.shape, step)
            mixed = method.mix_batch(images, targets, student, teacher, params)
            yield replace(mixed, images=mixed.images[:, COLOR_CHANNELS:])
            # Some methods keep their mixes and mix them with other images in the next step.
            method.losses(images, targets, student, teacher, step)
            images, targets = images.roll(1, dims=0), targets.roll(1, dims=0)


def claimed_fractions(mixed: Mixed) -> Tensor:
    """The fraction of the pixels of each source, `[M, N]`, according to the method itself."""
    masks = mixed.masks
    return mixed.lam if masks is None else masks.mean(dim=(2, 3))


def check_method(
    method: Method,
    settings: CheckSettings | None = None,
    *,
    student: Any = None,
    teacher: Any = None,
) -> LedgerRow:
    """Compare labels and pixels of a method; see `mix_batches` for the arguments.

    Raises:
        UsageError: the method needs more images than a batch has.
    """
    if not method.label_rule.countable:
        return LedgerRow(method.name, f"not counted: {method.label_note}", ok=True)
    settings = settings or CheckSettings()
    ledger = LabelLedger(settings.tolerance)
    for mixed in mix_batches(method, settings, student, teacher):
        ledger.add(mixed.images, mixed.targets)
    row = ledger.row(method.name)
    if method.label_rule is not LabelRule.PIXELS and row.verdict != WRONG_PAIRING:
        return replace(row, verdict=f"by design: {method.label_note}", ok=True)
    return row


def check_methods(
    names: Sequence[str],
    values: dict[str, Any] | None = None,
    settings: CheckSettings | None = None,
) -> list[LedgerRow]:
    """Compare labels and pixels of several methods, with small networks.

    Args:
        names: names of methods.
        values: settings of a run that differ from the defaults, nested as in a YAML file.
        settings: the probe batches.

    Raises:
        UsageError: unknown method or setting.
    """
    settings = settings or CheckSettings()
    rows = []
    for name in names:
        network = SMALL_CNN if suits(name, SMALL_CNN["model"]) else SMALL_TRANSFORMER
        config = make_config(merge(network, values or {}) | {"method": name})
        with seeded(config.seed):
            student, method, teacher = build_networks(
                config,
                num_classes=settings.batch_size,
                image_size=settings.image_size,
                device=torch.device("cpu"),
            )
            row = check_method(method, settings, student=student, teacher=teacher.model)
        rows.append(row)
    return rows
