"""The corruption suite: accuracy on corrupted images, by corruption and severity.

After Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*, ICLR 2019. The images are the published arrays or folders if the user has them,
otherwise the same corruptions are applied to the test images (see `data/corruptions/corrupted.py`
for the differences).

The mean corruption error (mCE) is the plain mean of the error over severities and corruptions, as
is usual for CIFAR. The normalization by AlexNet, as for ImageNet-C, has no meaning for other data
sets; `mce_against` normalizes by another network on the same images.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from torch import Tensor

from adautomix.data import Split
from adautomix.data.corruptions.corrupted import (
    CATEGORIES,
    CORRUPTIONS,
    PAPER_CORRUPTIONS,
    CorrupterPool,
)
from adautomix.data.corruptions.sources import (
    CorruptionSource,
    GeneratedCorruptions,
    first_image,
    open_published,
)
from adautomix.data.decoding.decoders import DecoderPool
from adautomix.errors import UsageError, unknown_name
from adautomix.evaluation.suite import (
    NotApplicableError,
    ResultCache,
    Suite,
    SuiteResult,
    SuiteSettings,
    split_list,
)
from adautomix.evaluation.target import EvalTarget, take_sample
from adautomix.models import evaluating

PICTURE = "corruptions.png"
GROUPS = {"all": CORRUPTIONS, "paper15": PAPER_CORRUPTIONS, **CATEGORIES}
_PICTURE_SEVERITY = 3


def check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Check that all names are corruptions or groups of them.

    Raises:
        ValueError: a name is unknown; the message suggests the nearest one.
    """
    choices = (*GROUPS, *CORRUPTIONS)
    for name in names:
        if name not in choices:
            raise ValueError(unknown_name("corruption", name, choices, f"use {', '.join(choices)}"))
    return names


def ascending(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Return each number once, in ascending order."""
    return tuple(sorted(set(numbers)))


Names = Annotated[tuple[str, ...], BeforeValidator(split_list), AfterValidator(check_names)]
Severities = Annotated[
    tuple[Annotated[int, Field(ge=1, le=5)], ...],
    BeforeValidator(split_list),
    AfterValidator(ascending),
]


class CorruptionSettings(SuiteSettings):
    """Which corruptions to apply, and where the images come from.

    `workers` and `keep` only affect speed and disk space, so they are not part of the record.
    """

    corruptions: Names = Field(
        default="all",
        min_length=1,
        validate_default=True,
        description=f"corruptions or groups, comma-separated; groups are {', '.join(GROUPS)}",
    )
    severities: Severities = Field(
        default="1,2,3,4,5",
        min_length=1,
        validate_default=True,
        description="severities from 1 (mild) to 5 (severe), comma-separated",
    )
    folder: Path | None = Field(
        None,
        description="folder with CIFAR-10-C, ImageNet-C or similar; none: corrupt the test images",
    )
    workers: int | None = Field(
        None,
        ge=1,
        exclude=True,
        description="processes that corrupt or decode images; none: one per core",
    )
    keep: float = Field(
        16.0,
        ge=0,
        exclude=True,
        description="cache the corrupted images on disk if they need at most this many GiB",
    )

    @property
    def names(self) -> list[str]:
        """The requested corruptions in the usual order, whether or not the source has them."""
        requested = {name for word in self.corruptions for name in GROUPS.get(word, (word,))}
        return [name for name in CORRUPTIONS if name in requested]


class Robustness(BaseModel):
    """The accuracy of one network on corrupted images, 0 to 1.

    Attributes:
        clean: accuracy on the original test images.
        accuracy: accuracy at each severity, by corruption; the error is 1 - accuracy.
        mean_accuracy: mean over severities and corruptions.
        mce: mean corruption error without normalization: 1 - `mean_accuracy`.
    """

    clean: float
    accuracy: dict[str, list[float]]
    mean_accuracy: float
    mce: float


class CorruptionResult(SuiteResult):
    """The robustness of each network.

    Attributes:
        source: "generated", or the name of the folder with the images.
        severities: severities in ascending order.
        networks: results by network name.
    """

    source: str
    severities: list[int]
    networks: dict[str, Robustness]


def summarize(clean: float, accuracy: Mapping[str, Sequence[float]]) -> Robustness:
    """Return the means of accuracies by corruption, each at the same severities."""
    mean = fmean(fmean(values) for values in accuracy.values())
    by_corruption = {name: list(values) for name, values in accuracy.items()}
    return Robustness(clean=clean, accuracy=by_corruption, mean_accuracy=mean, mce=1 - mean)


def mce_against(network: Robustness, baseline: Robustness) -> float | None:
    """Return the mCE normalized by a baseline instead of AlexNet; below 1 is more robust.

    The errors of a corruption are summed over severities and divided by those of the baseline;
    the ratios are averaged over corruptions.

    Returns:
        The normalized mCE; None if the two were scored on different corruptions or severities, or
        if the baseline makes no error under one corruption.
    """
    if {n: len(v) for n, v in network.accuracy.items()} != {
        n: len(v) for n, v in baseline.accuracy.items()
    }:
        return None
    errors = {name: sum(1 - a for a in values) for name, values in network.accuracy.items()}
    bases = {name: sum(1 - a for a in values) for name, values in baseline.accuracy.items()}
    if not all(bases.values()):
        return None
    return fmean(errors[name] / bases[name] for name in errors)


def run_corruption(
    target: EvalTarget, settings: CorruptionSettings, cache: ResultCache
) -> CorruptionResult:
    """Score each network on the original images, then on each corruption and severity."""
    with open_source(target, settings) as source:
        names = available(settings, source)
        cache.set_total(1 + len(names) * len(settings.severities))
        clean = cache.get("clean", partial(top1, target, target.data.test))
        scores = {
            name: [
                cache.get(
                    f"{name} {severity}", partial(corrupted_top1, target, source, name, severity)
                )
                for severity in settings.severities
            ]
            for name in names
        }
        draw_picture(target, source, names, picture_severity(settings.severities), cache)
    return CorruptionResult(
        source=source.name,
        severities=list(settings.severities),
        networks={
            network: summarize(
                clean[network],
                {name: [score[network] for score in values] for name, values in scores.items()},
            )
            for network in target.networks
        },
    )


@contextmanager
def open_source(target: EvalTarget, settings: CorruptionSettings) -> Iterator[CorruptionSource]:
    """Yield the source of corrupted images, with the processes that make or decode them.

    Raises:
        NotApplicableError: the test images cannot be corrupted: they are too small, or the library
            is not installed.
    """
    size = target.data.image_size
    if settings.folder is not None:
        with DecoderPool(settings.workers) as decoders:
            yield open_published(
                settings.folder, target.classes, image_size=size, decoders=decoders
            )
        return
    with CorrupterPool(settings.workers) as corrupters:
        try:
            source = GeneratedCorruptions(
                target.data.test,
                image_size=size,
                seed=target.seed,
                corrupters=corrupters,
                keep=settings.keep * 2**30,
            )
        except UsageError as error:
            raise NotApplicableError(str(error)) from None
        yield source


def available(settings: CorruptionSettings, source: CorruptionSource) -> list[str]:
    """Return the requested corruptions; of a group, only those that the source has.

    Raises:
        UsageError: a corruption requested by name is missing, or all of them are.
    """
    names = [name for name in settings.names if name in source.corruptions]
    by_name = [name for name in settings.corruptions if name in CORRUPTIONS]
    missing = [name for name in by_name if name not in names] or ([] if names else settings.names)
    if missing:
        raise UsageError(
            f"{source.name} has no {missing[0]}: it has {', '.join(source.corruptions)}"
        )
    return names


def corrupted_top1(
    target: EvalTarget, source: CorruptionSource, corruption: str, severity: int
) -> dict[str, float]:
    """Return the top-1 accuracy of each network, 0 to 1, under one corruption.

    At most as many published images are used as there are test images. They are the same images
    if the published set is equally large and in the same order.
    """
    split = source.split(corruption, severity)
    return top1(target, take_sample(split, len(target.data.test), target.generator("images")))


def top1(target: EvalTarget, split: Split) -> dict[str, float]:
    """Return the top-1 accuracy of each network on a split, 0 to 1."""
    correct = dict.fromkeys(target.networks, 0)
    with evaluating(*target.networks.values()):
        for pixels, labels in target.batches(split):
            for name, network in target.networks.items():
                correct[name] += int((network(pixels).argmax(dim=1) == labels).sum())
    return {name: count / len(split) for name, count in correct.items()}


def picture_severity(severities: Sequence[int]) -> int:
    """Return the severity to draw: 3, or the nearest one that was scored."""
    return min(severities, key=lambda severity: abs(severity - _PICTURE_SEVERITY))


def draw_picture(
    target: EvalTarget,
    source: CorruptionSource,
    names: Sequence[str],
    severity: int,
    cache: ResultCache,
) -> None:
    """Draw the first test image in its original form, then under every corruption."""
    images = {"clean": first_image(target.data.test)}
    images |= {name.replace("_", " "): source.first(name, severity) for name in names}
    write_examples(images, cache.output_path(PICTURE))


def write_examples(images: Mapping[str, Tensor], path: Path) -> None:
    """Write a PNG file with images uint8 `[3, S, S]`, five per row, captioned by their names."""
    from adautomix.pictures.image_grid import image_grid, image_tile, save_picture

    tiles = [image_tile(image.numpy(), name) for name, image in images.items()]
    rows = [[tiles[start : start + 5]] for start in range(0, len(tiles), 5)]
    # At this size, 20 images of noise with 256 colors stay below 150 kB.
    picture = image_grid(rows, widths=[100] * 5, tile=80, text_size=11)
    save_picture(picture, path, max_bytes=150_000)


SUITE = Suite(
    name="corruption",
    summary="accuracy under 19 corruptions at 5 severities, and the mean corruption error",
    run=run_corruption,
    Result=CorruptionResult,
    Settings=CorruptionSettings,
)
