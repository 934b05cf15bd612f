"""How different the mixes of the same images are: draw by draw, and checkpoint by checkpoint.

The paper shows mixes of the same images over training, AdAutoMix's beside AutoMix's (Fig. 14). The
numbers behind such pictures are mean distances, with one distance for masks and one for images:

- of two masks, at each pixel half of Σ_n |M_n - M'_n|, the share of the pixel that has gone to
  another source, averaged over pixels: 0 to 1. For two images it is the mean |M_1 - M'_1|.
- of two images, |x - x'| averaged over pixels and channels, pixels in [0, 1].

Spread: the mean over all pairs among several mixes of the same images, each with a draw of its own
(λ, box, …) and the same sources. Over training: the same images, sources and λ, mixed with what
the method had learned at each kept checkpoint; the mean over all pairs of checkpoints and over
those that follow each other. Where a method has no masks, they are λ at every pixel.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from adautomix.evaluation.mixing import FEWEST, Mixer, own_mixer, shuffled_batches, weights_of
from adautomix.evaluation.suite import (
    NotApplicableError,
    ResultCache,
    Suite,
    SuiteResult,
    SuiteSettings,
)
from adautomix.evaluation.target import EvalTarget
from adautomix.methods import Mixed, MixParams
from adautomix.pictures.sheet import Tile, heat_tile, image_tile, write_sheet
from adautomix.pictures.thin import thin
from adautomix.runs.checkpoint import epoch_checkpoint_name, kept_epochs

TOO_FEW = (
    "the run kept fewer than two checkpoints; train with --keep-every 5, say, to see the same "
    "mixes over training"
)


class DiversitySettings(SuiteSettings):
    """How many mixes are compared."""

    images: int = Field(32, ge=FEWEST, le=64, description="test images that are mixed")
    draws: int = Field(4, ge=2, le=16, description="mixes of the same images for the spread")
    checkpoints: int = Field(
        8, ge=2, le=16, description="at most so many of the kept ones, evenly spread"
    )
    rows: int = Field(3, ge=1, le=6, description="mixes in the picture")


class Spread(BaseModel):
    """Mean distances of mixes of the same images: of the masks and of the pixels, 0 to 1.

    A mean over no mix, where a method never mixes the same images twice, is None.
    """

    masks: float | None
    images: float | None


class Training(BaseModel):
    """Mean distances of masks over training, 0 to 1.

    Attributes:
        pairwise: of any two checkpoints.
        consecutive: of each checkpoint after the first and the one before.
        picture: file of some of the mixes.
    """

    pairwise: float
    consecutive: list[float]
    picture: str


class DiversityResult(SuiteResult):
    """What was found of the mixes of one run.

    Attributes:
        method: that mixed.
        mixes: how many were compared.
        draws: of each.
        spread: over draws.
        epochs: of the checkpoints that were compared, ascending.
        training: over them; None where there are fewer than two.
        note: why there are no figures over training; empty where there are.
    """

    method: str
    mixes: int
    draws: int
    spread: Spread
    epochs: list[int]
    training: Training | None
    note: str


def run_diversity(
    subject: EvalTarget, settings: DiversitySettings, parts: ResultCache
) -> DiversityResult:
    """The spread over draws and, where checkpoints were kept, the distances over training.

    Raises:
        NotApplicableError: the subject is no run.
    """
    if subject.run is None:
        raise NotApplicableError(f"diversity needs a run, and {subject.name} is none")
    mixer = own_mixer(subject)
    epochs = thin(kept_epochs(subject.run), settings.checkpoints)
    several = len(epochs) > 1
    parts.expect(1 + several)
    spread = parts.get("spread", lambda: spread_of(subject, settings, mixer))
    training = None
    if several:
        picture = parts.picture(f"{parts.name.rpartition('/')[2]}.webp")
        over = f"epochs {', '.join(map(str, epochs))}"
        training = parts.get(over, lambda: over_training(subject, settings, epochs, picture))
    return DiversityResult(
        method=mixer.method.name,
        draws=settings.draws,
        mixes=spread["mixes"],
        spread=Spread(masks=spread["masks"], images=spread["images"]),
        epochs=epochs,
        training=None if training is None else Training(**training),
        note="" if several else TOO_FEW,
    )


def batches_of(subject: EvalTarget, settings: DiversitySettings) -> Iterator[tuple[Tensor, Tensor]]:
    """The images that are mixed and their labels, always the same."""
    return shuffled_batches(subject, settings.images, subject.generator("diversity/images"))


# ---------------------------------------------------------------------- over draws


def spread_of(
    subject: EvalTarget, settings: DiversitySettings, mixer: Mixer
) -> dict[str, float | int | None]:
    """Mean distances over the pairs of draws, and of how many mixes."""
    generator = subject.generator("diversity/spread")
    masks, images = [], []
    for pixels, labels in batches_of(subject, settings):
        mixes = same_sources(
            [
                mixer.mix(pixels, labels, params)
                for params in draws_of(mixer, pixels, settings, generator)
            ]
        )
        masks.append(of_masks(torch.stack([weights_of(mixed) for mixed in mixes])))
        images.append(of_images(torch.stack([mixed.images for mixed in mixes])))
    found = {"masks": torch.cat(masks), "images": torch.cat(images)}
    count = len(found["masks"])
    return {"mixes": count} | {
        name: float(distances.mean()) if count else None for name, distances in found.items()
    }


def draws_of(
    mixer: Mixer, pixels: Tensor, settings: DiversitySettings, generator: torch.Generator
) -> Iterator[MixParams]:
    """Several draws for a batch, all with the sources of the first."""
    first = mixer.make_params(pixels, generator)
    names = [field.name for field in dataclasses.fields(first) if field.name.endswith("perm")]
    sources = {name: getattr(first, name) for name in names}
    yield first
    for _ in range(settings.draws - 1):
        yield dataclasses.replace(mixer.make_params(pixels, generator), **sources)


def same_sources(mixes: Sequence[Mixed]) -> list[Mixed]:
    """Those mixes whose sources are the same in all draws: a few methods choose them by a draw."""
    perms = torch.stack([mixed.perm for mixed in mixes])
    same = (perms == perms[0]).flatten(2).all(dim=2).all(dim=0)
    return [mixed.rows(same) for mixed in mixes]


# ---------------------------------------------------------------------- over training


def over_training(
    subject: EvalTarget, settings: DiversitySettings, epochs: Sequence[int], picture: Path
) -> dict[str, float | list[float] | str]:
    """Mean distances over checkpoints, and a picture of them."""
    at_checkpoints = [list(mixes_at(subject, settings, epoch)) for epoch in epochs]
    masks = torch.stack([torch.cat([weights_of(m) for m in each]).cpu() for each in at_checkpoints])
    draw_picture(subject, settings, epochs, [each[0] for each in at_checkpoints], picture)
    following = [float(of_masks(masks[k : k + 2]).mean()) for k in range(len(masks) - 1)]
    return {
        "pairwise": float(of_masks(masks).mean()),
        "consecutive": following,
        "picture": picture.name,
    }


def mixes_at(subject: EvalTarget, settings: DiversitySettings, epoch: int) -> Iterator[Mixed]:
    """The mixes of each batch as the method made them after so many epochs: always one draw."""
    mixer = own_mixer(subject, epoch_checkpoint_name(epoch))
    generator = subject.generator("diversity/training")
    for pixels, labels in batches_of(subject, settings):
        yield mixer.mix(pixels, labels, mixer.make_params(pixels, generator))


# ---------------------------------------------------------------------- distances


def of_masks(masks: Tensor) -> Tensor:
    """Mean distance of the masks `[K, M, N, H, W]` of each mix over pairs of the K, `[M]`."""
    return mean_distance(masks).sum(dim=1).mean(dim=(1, 2)) / 2


def of_images(images: Tensor) -> Tensor:
    """Mean distance of the images `[K, M, C, H, W]` of each mix over pairs of the K, `[M]`."""
    return mean_distance(images).mean(dim=(1, 2, 3))


def mean_distance(values: Tensor) -> Tensor:
    """Mean |v_i - v_j| over all pairs of K ≥ 2 values, element by element: `[K, …]` to `[…]`."""
    # In order, value k is the larger in k pairs and the smaller in K - 1 - k.
    count = len(values)
    signs = 2 * torch.arange(count, device=values.device, dtype=values.dtype) - (count - 1)
    total: Tensor = torch.tensordot(signs, values.sort(dim=0).values, dims=1)
    return total / (count * (count - 1) / 2)


# ---------------------------------------------------------------------- picture


def draw_picture(
    subject: EvalTarget,
    settings: DiversitySettings,
    epochs: Sequence[int],
    mixes: Sequence[Mixed],
    path: Path,
) -> None:
    """A block a mix: its sources, then the mix at each checkpoint with the first mask below."""
    pixels, labels = next(batches_of(subject, settings))
    images, classes = pixels.float().cpu().numpy(), labels.tolist()
    blocks = []
    for m in range(min(settings.rows, len(mixes[0].perm))):
        sources = zip(mixes[0].perm[m].tolist(), mixes[0].lam[m].tolist(), strict=True)
        above: list[Tile | None] = [
            image_tile(images[b], f"λ {share:.2f} {subject.classes[classes[b]]}")
            for b, share in sources
        ]
        below: list[Tile | None] = [None] * len(above)
        for mixed in mixes:
            mask = weights_of(mixed)[m, 0].cpu().numpy()
            above.append(image_tile(mixed.images[m].float().cpu().numpy()))
            below.append(heat_tile(mask, f"mean {mask.mean():.2f}"))
        blocks.append([above, below])
    ways = mixes[0].perm.shape[1]
    titles = {0: "sources"} | {ways + k: f"epoch {epoch}" for k, epoch in enumerate(epochs)}
    write_sheet(blocks, path, titles)


DIVERSITY = Suite(
    name="diversity",
    summary="how far mixes of the same images differ: by draw, and over training",
    run=run_diversity,
    Result=DiversityResult,
    Settings=DiversitySettings,
)
