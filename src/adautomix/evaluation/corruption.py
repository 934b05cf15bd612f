"""Accuracy on corrupted images, by corruption and severity.

After Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*, ICLR 2019: the published arrays or folders of images where there are some, else
the same corruptions made from the test images (see `data/corrupted.py` for what differs).

The mean corruption error (mCE) of a result is the plain mean of the error over severities and
corruptions, as the field reports it for CIFAR. Normalized by AlexNet, as for ImageNet-C, it would
mean nothing on other data; `mce_against` normalizes by another network on the same images.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from adautomix.data import Split
from adautomix.data.corruptions.corrupted import CORRUPTIONS, KINDS, PAPER, Corrupters
from adautomix.data.corruptions.sources import Generated, Source, first_image, published
from adautomix.data.decoding.decoders import Decoders
from adautomix.errors import UsageError, unknown_name
from adautomix.evaluation.suite import (
    NotApplicableError,
    ResultCache,
    Suite,
    SuiteResult,
    SuiteSettings,
)
from adautomix.evaluation.target import EvalTarget, cut
from adautomix.models import evaluating

PICTURE = "corruptions.png"
GROUPS = {"all": CORRUPTIONS, "paper15": PAPER, **KINDS}
_PICTURED = 3  # the severity that is shown, or the one next to it


def listed(value: Any) -> Any:
    """Comma-separated words, or one number, as a list."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",")]
    return [value] if isinstance(value, int) else value


def known(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of corruptions and groups, checked."""
    choices = (*GROUPS, *CORRUPTIONS)
    for name in names:
        if name not in choices:
            raise ValueError(unknown_name("corruption", name, choices, f"use {', '.join(choices)}"))
    return names


def ascending(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Each number once, in order."""
    return tuple(sorted(set(numbers)))


class CorruptionSettings(SuiteSettings):
    """Which corruptions, and where from; how they are made changes no figure."""

    corruptions: Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(known)] = Field(
        default="all",
        min_length=1,
        validate_default=True,
        description=f"names or groups, comma-separated: {', '.join(GROUPS)}",
    )
    severities: Annotated[
        tuple[Annotated[int, Field(ge=1, le=5)], ...],
        BeforeValidator(listed),
        AfterValidator(ascending),
    ] = Field(
        default="1,2,3,4,5", min_length=1, validate_default=True, description="comma-separated"
    )
    folder: Path | None = Field(
        None, description="of CIFAR-10-C, ImageNet-C and the like; none: made from the test images"
    )
    workers: int | None = Field(
        None, ge=1, exclude=True, description="processes that make or decode; none: all cores"
    )
    keep: float = Field(
        16.0, ge=0, exclude=True, description="GiB of made images that are kept, more are not"
    )

    @property
    def names(self) -> list[str]:
        """The corruptions asked for, in the usual order, whether they are there or not."""
        wanted = {name for word in self.corruptions for name in GROUPS.get(word, (word,))}
        return [name for name in CORRUPTIONS if name in wanted]


class Robustness(BaseModel):
    """What one network made of corrupted images; shares are 0 to 1.

    Attributes:
        clean: accuracy on the test images as they are.
        accuracy: by corruption, at each of the severities; the error is 1 − accuracy.
        mean_accuracy: over severities and corruptions.
        mce: mean corruption error, not normalized: 1 − `mean_accuracy`.
    """

    clean: float
    accuracy: dict[str, list[float]]
    mean_accuracy: float
    mce: float


class CorruptionResult(SuiteResult):
    """`Robustness` of each network, by name.

    Attributes:
        source: "generated", or the name of the folder that was read.
        severities: ascending.
        networks: what was found.
    """

    source: str
    severities: list[int]
    networks: dict[str, Robustness]


def robustness(clean: float, accuracy: Mapping[str, Sequence[float]]) -> Robustness:
    """The means of accuracies by corruption, each at the same severities."""
    mean = fmean(fmean(values) for values in accuracy.values())
    found = {name: list(values) for name, values in accuracy.items()}
    return Robustness(clean=clean, accuracy=found, mean_accuracy=mean, mce=1 - mean)


def mce_against(network: Robustness, baseline: Robustness) -> float | None:
    """The mCE of a network with another in the place of AlexNet; below 1 it is the sturdier.

    The errors at all severities of a corruption are summed and divided by those of the baseline,
    then averaged over corruptions. None where they were not tried on the same, or the baseline
    makes no error under one corruption.
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
    subject: EvalTarget, settings: CorruptionSettings, parts: ResultCache
) -> CorruptionResult:
    """Score each network on the clean images, then corruption by corruption."""
    with open_source(subject, settings) as source:
        names = present(settings, source)
        parts.expect(1 + len(names) * len(settings.severities))
        clean = parts.get("clean", partial(top1, subject, subject.data.test))
        found = {
            name: [
                parts.get(
                    f"{name} {severity}", partial(corrupted_top1, subject, source, name, severity)
                )
                for severity in settings.severities
            ]
            for name in names
        }
        draw_picture(subject, source, names, pictured(settings.severities), parts)
    return CorruptionResult(
        source=source.name,
        severities=list(settings.severities),
        networks={
            network: robustness(
                clean[network],
                {name: [score[network] for score in scores] for name, scores in found.items()},
            )
            for network in subject.networks
        },
    )


@contextmanager
def open_source(subject: EvalTarget, settings: CorruptionSettings) -> Iterator[Source]:
    """The corrupted images, while the processes that make or decode them are there."""
    size = subject.data.image_size
    if settings.folder is not None:
        with Decoders(settings.workers) as decoders:
            yield published(settings.folder, subject.classes, image_size=size, decoders=decoders)
        return
    with Corrupters(settings.workers) as corrupters:
        try:
            source = Generated(
                subject.data.test,
                image_size=size,
                seed=subject.seed,
                corrupters=corrupters,
                keep=settings.keep * 2**30,
            )
        except UsageError as error:
            raise NotApplicableError(str(error)) from None
        yield source


def present(settings: CorruptionSettings, source: Source) -> list[str]:
    """The corruptions asked for; of a group, those that the source has.

    Raises:
        UsageError: one asked for by name is not there, or none is.
    """
    found = [name for name in settings.names if name in source.corruptions]
    named = [name for name in settings.corruptions if name in CORRUPTIONS]
    absent = [name for name in named if name not in found] or ([] if found else settings.names)
    if absent:
        raise UsageError(
            f"{source.name} has no {absent[0]}: it has {', '.join(source.corruptions)}"
        )
    return found


def corrupted_top1(
    subject: EvalTarget, source: Source, corruption: str, severity: int
) -> dict[str, float]:
    """Top-1 of each network, 0 to 1, under one corruption.

    Of published images at most as many as there are test images are used: the same ones, where
    they are equally many in the same order.
    """
    split = source.split(corruption, severity)
    return top1(subject, cut(split, len(subject.data.test), subject.generator("images")))


def top1(subject: EvalTarget, split: Split) -> dict[str, float]:
    """Top-1 of each network on a split, 0 to 1."""
    right = dict.fromkeys(subject.networks, 0)
    with evaluating(*subject.networks.values()):
        for pixels, labels in subject.batches(split):
            for name, network in subject.networks.items():
                right[name] += int((network(pixels).argmax(dim=1) == labels).sum())
    return {name: count / len(split) for name, count in right.items()}


def pictured(severities: Sequence[int]) -> int:
    """The severity that is shown: 3, or the one nearest to it."""
    return min(severities, key=lambda severity: abs(severity - _PICTURED))


def draw_picture(
    subject: EvalTarget, source: Source, names: Sequence[str], severity: int, parts: ResultCache
) -> None:
    """The first test image as it is, then under every corruption."""
    from adautomix.pictures.tiles import write_tiles

    tiles = {"clean": first_image(subject.data.test)}
    tiles |= {name.replace("_", " "): source.first(name, severity) for name in names}
    write_tiles(tiles, parts.picture(PICTURE))


CORRUPTION = Suite(
    name="corruption",
    summary="accuracy under 19 corruptions at 5 severities, and the mean corruption error",
    run=run_corruption,
    Result=CorruptionResult,
    Settings=CorruptionSettings,
)
