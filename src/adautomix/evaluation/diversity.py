"""The diversity suite: how much mixes of the same images differ.

The paper shows mixes of the same images over training, those of AdAutoMix next to those of AutoMix
(Fig. 14). The numbers for such pictures are mean distances, one for masks and one for images:

- Distance of two masks: at each pixel half of Σ_n |M_n - M'_n|, which is the fraction of the pixel
  that moved to another source; averaged over pixels, 0 to 1. For two sources it is the mean of
  |M_1 - M'_1|.
- Distance of two images: |x - x'| averaged over pixels and channels, for pixels in [0, 1].

The spread is the mean over all pairs among several mixes of the same images, each with its own
random parameters (λ, box, …) and the same sources. Over training, the same images, sources and λ
are mixed with the weights of the method at each kept checkpoint; the mean is over all pairs of
checkpoints, and over consecutive ones. For methods without masks, the mask is λ at every pixel.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from adautomix.evaluation.mixing import (
    MIN_BATCH,
    Mixer,
    run_mixer,
    shuffled_batches,
    source_weights,
)
from adautomix.evaluation.suite import (
    NotApplicableError,
    ResultCache,
    Suite,
    SuiteResult,
    SuiteSettings,
)
from adautomix.evaluation.target import EvalTarget
from adautomix.methods import Mixed, MixParams
from adautomix.pictures.image_grid import (
    Tile,
    heat_tile,
    image_grid,
    image_tile,
    save_picture,
)
from adautomix.runs.checkpoint import epoch_checkpoint_name, kept_epochs
from adautomix.subsample import subsample

TOO_FEW_CHECKPOINTS = (
    "the run kept fewer than two checkpoints; train with --keep-every 5, for example, to compare "
    "the same mixes over training"
)


class DiversitySettings(SuiteSettings):
    """How many mixes are compared."""

    images: int = Field(32, ge=MIN_BATCH, le=64, description="number of test images to mix")
    draws: int = Field(
        4, ge=2, le=16, description="mixes per image for the spread, with different parameters"
    )
    checkpoints: int = Field(
        8, ge=2, le=16, description="maximum number of checkpoints to compare, evenly spaced"
    )
    rows: int = Field(3, ge=1, le=6, description="number of mixes in the picture")


class Spread(BaseModel):
    """Mean distances of mixes of the same images, 0 to 1.

    They are None if the method never mixes the same images twice.

    Attributes:
        masks: mean distance of the masks.
        images: mean distance of the mixed images.
    """

    masks: float | None
    images: float | None


class TrainingDistances(BaseModel):
    """Mean distances of masks over training, 0 to 1.

    Attributes:
        pairwise: mean over all pairs of checkpoints.
        consecutive: distance of each checkpoint after the first from the one before.
        picture: file name of a picture of some mixes.
    """

    pairwise: float
    consecutive: list[float]
    picture: str


class DiversityResult(SuiteResult):
    """The diversity of the mixes of one run.

    Attributes:
        method: name of the mixing method.
        mixes: number of mixes compared.
        draws: number of draws of the random parameters for each mix.
        spread: distances over draws.
        epochs: epochs of the checkpoints compared, ascending.
        training: distances over checkpoints; None if there are fewer than two.
        note: why there are no distances over training; empty if there are.
    """

    method: str
    mixes: int
    draws: int
    spread: Spread
    epochs: list[int]
    training: TrainingDistances | None
    note: str


def run_diversity(
    target: EvalTarget, settings: DiversitySettings, cache: ResultCache
) -> DiversityResult:
    """Measure the spread over draws and, if checkpoints were kept, the distances over training.

    Raises:
        NotApplicableError: the target is not a run.
    """
    if target.run is None:
        raise NotApplicableError(f"diversity needs a run, and {target.name} is not one")
    mixer = run_mixer(target)
    epochs = subsample(kept_epochs(target.run), settings.checkpoints)
    several = len(epochs) > 1
    cache.set_total(1 + several)
    spread = cache.get("spread", lambda: measure_spread(target, settings, mixer))
    training = None
    if several:
        picture = cache.output_path(f"{cache.digest}.webp")
        task = f"epochs {', '.join(map(str, epochs))}"
        training = cache.get(task, lambda: compare_checkpoints(target, settings, epochs, picture))
    return DiversityResult(
        method=mixer.method.name,
        draws=settings.draws,
        mixes=spread["mixes"],
        spread=Spread(masks=spread["masks"], images=spread["images"]),
        epochs=epochs,
        training=None if training is None else TrainingDistances(**training),
        note="" if several else TOO_FEW_CHECKPOINTS,
    )


def image_batches(
    target: EvalTarget, settings: DiversitySettings
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images to mix and their labels, the same at every call."""
    return shuffled_batches(target, settings.images, target.generator("diversity/images"))


# ---------------------------------------------------------------------- over draws


def measure_spread(
    target: EvalTarget, settings: DiversitySettings, mixer: Mixer
) -> dict[str, float | int | None]:
    """Return the mean distances over all pairs of draws, and the number of mixes."""
    generator = target.generator("diversity/spread")
    masks, images = [], []
    for pixels, labels in image_batches(target, settings):
        draws = draw_params(mixer, pixels, settings.draws, generator)
        mixes = with_same_sources([mixer.mix(pixels, labels, params) for params in draws])
        masks.append(mask_distance(torch.stack([source_weights(mixed) for mixed in mixes])))
        images.append(image_distance(torch.stack([mixed.images for mixed in mixes])))
    distances = {"masks": torch.cat(masks), "images": torch.cat(images)}
    count = len(distances["masks"])
    return {"mixes": count} | {
        name: float(values.mean()) if count else None for name, values in distances.items()
    }


def draw_params(
    mixer: Mixer, pixels: Tensor, draws: int, generator: torch.Generator
) -> Iterator[MixParams]:
    """Yield several random parameters for a batch, all with the permutations of the first."""
    first = mixer.make_params(pixels, generator)
    names = [field.name for field in dataclasses.fields(first) if field.name.endswith("perm")]
    permutations = {name: getattr(first, name) for name in names}
    yield first
    for _ in range(draws - 1):
        yield dataclasses.replace(mixer.make_params(pixels, generator), **permutations)


def with_same_sources(mixes: Sequence[Mixed]) -> list[Mixed]:
    """Return the mixes that have the same sources in all draws; some methods choose them anew."""
    perms = torch.stack([mixed.perm for mixed in mixes])
    same = (perms == perms[0]).flatten(2).all(dim=2).all(dim=0)
    return [mixed.rows(same) for mixed in mixes]


# ---------------------------------------------------------------------- over training


def compare_checkpoints(
    target: EvalTarget, settings: DiversitySettings, epochs: Sequence[int], picture: Path
) -> dict[str, float | list[float] | str]:
    """Draw mixes at several checkpoints, and return the fields of `TrainingDistances`."""
    mixes = [list(mixes_at(target, settings, epoch)) for epoch in epochs]
    masks = torch.stack(
        [torch.cat([source_weights(mixed) for mixed in batches]).cpu() for batches in mixes]
    )
    draw_picture(target, settings, epochs, [batches[0] for batches in mixes], picture)
    consecutive = [float(mask_distance(masks[k : k + 2]).mean()) for k in range(len(masks) - 1)]
    return {
        "pairwise": float(mask_distance(masks).mean()),
        "consecutive": consecutive,
        "picture": picture.name,
    }


def mixes_at(target: EvalTarget, settings: DiversitySettings, epoch: int) -> Iterator[Mixed]:
    """Yield the mixes of each batch with the weights after an epoch and the same parameters."""
    mixer = run_mixer(target, epoch_checkpoint_name(epoch))
    generator = target.generator("diversity/training")
    for pixels, labels in image_batches(target, settings):
        yield mixer.mix(pixels, labels, mixer.make_params(pixels, generator))


# ---------------------------------------------------------------------- distances


def mask_distance(masks: Tensor) -> Tensor:
    """Return the mean distance `[M]` over pairs of the K masks `[K, M, N, H, W]` of each mix."""
    return mean_difference(masks).sum(dim=1).mean(dim=(1, 2)) / 2


def image_distance(images: Tensor) -> Tensor:
    """Return the mean distance `[M]` over pairs of the K images `[K, M, C, H, W]` of each mix."""
    return mean_difference(images).mean(dim=(1, 2, 3))


def mean_difference(values: Tensor) -> Tensor:
    """Return the elementwise mean of |v_i - v_j| over pairs of K ≥ 2 values, `[K, …]` to `[…]`."""
    # In sorted order, value k is the larger one in k pairs and the smaller one in K - 1 - k.
    count = len(values)
    signs = 2 * torch.arange(count, device=values.device, dtype=values.dtype) - (count - 1)
    total: Tensor = torch.tensordot(signs, values.sort(dim=0).values, dims=1)
    return total / (count * (count - 1) / 2)


# ---------------------------------------------------------------------- picture


def draw_picture(
    target: EvalTarget,
    settings: DiversitySettings,
    epochs: Sequence[int],
    mixes: Sequence[Mixed],
    path: Path,
) -> None:
    """Draw, for each mix, its sources and the mix at each checkpoint above its first mask."""
    pixels, labels = next(image_batches(target, settings))
    images, classes = pixels.float().cpu().numpy(), labels.tolist()
    blocks = []
    for m in range(min(settings.rows, len(mixes[0].perm))):
        sources = zip(mixes[0].perm[m].tolist(), mixes[0].lam[m].tolist(), strict=True)
        above: list[Tile | None] = [
            image_tile(images[b], f"λ {lam:.2f} {target.classes[classes[b]]}") for b, lam in sources
        ]
        below: list[Tile | None] = [None] * len(above)
        for mixed in mixes:
            mask = source_weights(mixed)[m, 0].cpu().numpy()
            above.append(image_tile(mixed.images[m].float().cpu().numpy()))
            below.append(heat_tile(mask, f"mean {mask.mean():.2f}"))
        blocks.append([above, below])
    sources_per_mix = mixes[0].perm.shape[1]
    titles = {0: "sources"}
    titles |= {sources_per_mix + k: f"epoch {epoch}" for k, epoch in enumerate(epochs)}
    save_picture(image_grid(blocks, titles), path)


SUITE = Suite(
    name="diversity",
    summary="how much mixes of the same images differ, by random parameters and over training",
    run=run_diversity,
    Result=DiversityResult,
    Settings=DiversitySettings,
)
