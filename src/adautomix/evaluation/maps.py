"""The maps suite: where networks see the classes of a mix, by Grad-CAM of clean and mixed images.

The paper shows such maps (Fig. 11). Here two numbers accompany them, both means over the sources of
many mixes. A source n of a mix counts if its weight in the label is not 0, no other source of the
mix has its class y_n, and its map on the clean image is not 0 everywhere. With G(image) the map of
class y_n, at least 0 and enlarged to the image size:

- similarity: the cosine between G(mix) and G(source n) over the pixels, 0 to 1. It measures how
  much of the evidence in the clean image the network still sees at the same place in the mix. It is
  0 where G(mix) is 0.
- inside: the fraction of the sum of G(mix) at the pixels where the mask of source n is larger than
  that of every other source. It measures whether the network sees a class where the class is. A map
  without any information would have the fraction of these pixels, which is reported as `area`. Only
  for mixes with masks, and where G(mix) is not 0.

The mixes are made by the run's own method with its trained weights, or by plain Mixup and CutMix
for other networks and for runs that do not mix. Methods that move or shrink their sources
(ResizeMix, AlignMix) get lower similarities for that reason alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from adautomix.evaluation.grad_cam import MappedLayer, find_layer, grad_cam, load_captum
from adautomix.evaluation.mixing import (
    MIN_BATCH,
    Mixer,
    plain_mixer,
    run_mixer,
    shuffled_batches,
)
from adautomix.evaluation.suite import ResultCache, Suite, SuiteResult, SuiteSettings
from adautomix.evaluation.target import EvalTarget, PixelNetwork
from adautomix.methods import Mixed
from adautomix.pictures.image_grid import heat_tile, image_grid, image_tile, save_picture

PLAIN_METHODS = ("mixup", "cutmix")


class MapsSettings(SuiteSettings):
    """Which layer is mapped, and which mixes."""

    images: int = Field(128, ge=MIN_BATCH, description="number of test images to mix")
    layer: str | None = Field(
        None,
        description="path of the module to map in the timm model; none: the last stage",
    )
    mixes: Literal["own", "plain"] = Field(
        "own", description="mix by the run's own method, or by plain mixup and cutmix"
    )
    rows: int = Field(4, ge=1, le=8, description="number of mixes in a picture")


class Survival(BaseModel):
    """How much of the sources' maps is left in the mixes; the module docstring has the definitions.

    Attributes:
        similarity: mean cosine between a source's map on the mix and on the clean image, 0 to 1.
        inside: mean fraction of the map's sum where the source has the largest mask, 0 to 1.
        area: mean fraction of the pixels where it has the largest mask, 0 to 1.
        sources: number of sources that count.

    A mean over nothing is None.
    """

    similarity: float | None
    inside: float | None
    area: float | None
    sources: int


class NetworkMaps(BaseModel):
    """The results of one network.

    Attributes:
        layer: path of the module that was mapped.
        side: height of its map in positions, before it is enlarged.
        survival: results by mixing method.
        pictures: file name of a picture with a few of the maps, by mixing method.
    """

    layer: str
    side: int
    survival: dict[str, Survival]
    pictures: dict[str, str]


class MapsResult(SuiteResult):
    """The results of each network, by network name."""

    networks: dict[str, NetworkMaps]


@dataclass(frozen=True)
class MappedNetwork:
    """A network with its name and the layer that Grad-CAM is applied to."""

    name: str
    network: PixelNetwork
    layer: MappedLayer

    def maps(self, pixels: Tensor, classes: Tensor) -> Tensor:
        """Return the maps `[B, H, W]` of one class `[B]` per image `[B, 3, H, W]`."""
        return grad_cam(self.network, self.layer, pixels, classes)


class SourceMaps(NamedTuple):
    """The maps of the N sources of M mixes.

    Attributes:
        classes: classes of the sources, int64 `[M, N]`.
        clean: map of that class on the clean source, `[M, N, H, W]`.
        mixed: map of that class on the mix, `[M, N, H, W]`.
    """

    classes: Tensor
    clean: Tensor
    mixed: Tensor


class SourceScores(NamedTuple):
    """Scores of each source that counts, float64 `[n]`; NaN where a score is not defined."""

    similarity: Tensor
    inside: Tensor
    area: Tensor


def run_maps(target: EvalTarget, settings: MapsSettings, cache: ResultCache) -> MapsResult:
    """Map each network on each kind of mix, and draw a few maps."""
    load_captum()
    mixers = requested_mixers(target, settings)
    pixels, _ = next(image_batches(target, settings))
    layers = {
        name: find_layer(network, pixels[:2], settings.layer)
        for name, network in target.networks.items()
    }
    cache.set_total(len(layers) * len(mixers))
    networks = {}
    for name, layer in layers.items():
        result = NetworkMaps(layer=layer.path, side=layer.side, survival={}, pictures={})
        for method, mixer in mixers.items():
            mapped = MappedNetwork(name, target.networks[name], layer)
            measure = partial(measure_survival, mapped, target, settings, mixer)
            result.survival[method] = Survival(**cache.get(f"{name}, {method}", measure))
            result.pictures[method] = f"{name}-{method}.webp"
            path = cache.output_path(result.pictures[method])
            draw_picture(mapped, target, settings, mixer, path)
        networks[name] = result
    return MapsResult(networks=networks)


# ---------------------------------------------------------------------- mixes


def requested_mixers(target: EvalTarget, settings: MapsSettings) -> dict[str, Mixer]:
    """Return the mixers by name: the run's own method if it mixes images, else plain methods."""
    if target.run is not None and settings.mixes == "own":
        own = run_mixer(target)
        _, _, mixed = next(mixed_batches(target, settings, own))
        if mixed.perm.shape[1] > 1:
            return {own.method.name: own}
    return {name: plain_mixer(name, target) for name in PLAIN_METHODS}


def image_batches(target: EvalTarget, settings: MapsSettings) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images to mix and their labels, the same at every call."""
    return shuffled_batches(target, settings.images, target.generator("maps/images"))


def mixed_batches(
    target: EvalTarget, settings: MapsSettings, mixer: Mixer
) -> Iterator[tuple[Tensor, Tensor, Mixed]]:
    """Yield the images, their labels, and their mixes, the same at every call."""
    generator = target.generator("maps/mixes")
    for pixels, labels in image_batches(target, settings):
        yield pixels, labels, mixer.mix(pixels, labels, mixer.make_params(pixels, generator))


# ---------------------------------------------------------------------- scores


def source_maps(mapped: MappedNetwork, pixels: Tensor, labels: Tensor, mixed: Mixed) -> SourceMaps:
    """Return the maps of all sources of some mixes of the images `[B, 3, H, W]`."""
    classes = labels[mixed.perm]
    # Map each clean image once, even if it is a source of several mixes.
    rows, row_of_source = mixed.perm.unique(return_inverse=True)
    clean = mapped.maps(pixels[rows], labels[rows])[row_of_source]
    on_mix = [mapped.maps(mixed.images, classes[:, n]) for n in range(classes.shape[1])]
    return SourceMaps(classes, clean, torch.stack(on_mix, dim=1))


def score_sources(maps: SourceMaps, mixed: Mixed) -> SourceScores:
    """Return the scores of each source that counts; the module docstring has the definitions."""
    counted = counted_sources(maps, mixed)
    clean, on_mix = (scale_to_one(each)[counted].double() for each in (maps.clean, maps.mixed))
    similarity = F.cosine_similarity(clean.flatten(1), on_mix.flatten(1), dim=1)
    masks = mixed.masks
    if masks is None:
        undefined = torch.full_like(similarity, torch.nan)
        return SourceScores(similarity, undefined, undefined)
    region = largest(masks)[counted].double()
    inside = (on_mix * region).sum(dim=(1, 2)) / on_mix.sum(dim=(1, 2))
    area = region.mean(dim=(1, 2)).where(inside.isfinite(), torch.nan)
    return SourceScores(similarity, inside, area)


def counted_sources(maps: SourceMaps, mixed: Mixed) -> Tensor:
    """Return which sources count, bool `[M, N]`: unique class, weight above 0, map not empty."""
    unique = (maps.classes[:, :, None] == maps.classes[:, None, :]).sum(dim=2) == 1
    return unique & (mixed.lam > 0) & (maps.clean.amax(dim=(2, 3)) > 0)


def largest(masks: Tensor) -> Tensor:
    """Return where each source has the largest mask, bool `[M, N, H, W]`; a tie counts for none."""
    if masks.shape[1] == 1:
        return torch.ones_like(masks, dtype=torch.bool)
    first, second = masks.topk(2, dim=1).values.split(1, dim=1)
    unique: Tensor = (masks == first) & (first > second)
    return unique


def scale_to_one(maps: Tensor) -> Tensor:
    """Return maps `[..., H, W]` divided by their maximum; maps that are 0 everywhere stay 0."""
    maximum = maps.amax(dim=(-2, -1), keepdim=True)
    return maps / maximum.where(maximum > 0, 1)


def measure_survival(
    mapped: MappedNetwork, target: EvalTarget, settings: MapsSettings, mixer: Mixer
) -> dict[str, float | int | None]:
    """Return the means over all sources that count, as the fields of a `Survival`."""
    batches = [
        score_sources(source_maps(mapped, pixels, labels, mixed), mixed)
        for pixels, labels, mixed in mixed_batches(target, settings, mixer)
    ]
    means = {
        name: float(torch.cat([getattr(scores, name) for scores in batches]).nanmean())
        for name in SourceScores._fields
    }
    sources = sum(len(scores.similarity) for scores in batches)
    return {name: None if math.isnan(mean) else mean for name, mean in means.items()} | {
        "sources": sources
    }


# ---------------------------------------------------------------------- picture


def draw_picture(
    mapped: MappedNetwork, target: EvalTarget, settings: MapsSettings, mixer: Mixer, path: Path
) -> None:
    """Draw a few mixes: the sources and the mix, and below them all maps."""
    pixels, labels, mixed = next(mixed_batches(target, settings, mixer))
    shown = first_mixes(mixed, labels[mixed.perm], settings.rows)
    maps = source_maps(mapped, pixels, labels, shown)
    clean, on_mix = (scale_to_one(each).cpu().numpy() for each in (maps.clean, maps.mixed))
    images, mixes = (each.float().cpu().numpy() for each in (pixels, shown.images))
    perm, classes = shown.perm.tolist(), maps.classes.tolist()
    blocks = []
    for m, sources in enumerate(perm):
        names = [target.classes[k] for k in classes[m]]
        lam = "λ " + ", ".join(f"{value:.2f}" for value in shown.lam[m].tolist())
        originals = [image_tile(images[b], names[n]) for n, b in enumerate(sources)]
        source_tiles = [heat_tile(clean[m, n], over=images[b]) for n, b in enumerate(sources)]
        mix_tiles = [heat_tile(on_mix[m, n], names[n], over=mixes[m]) for n in range(len(sources))]
        blocks.append([[*originals, image_tile(mixes[m], lam)], [*source_tiles, *mix_tiles]])
    titles = {0: "originals and maps", len(perm[0]): f"maps of the {mapped.name} on the mix"}
    save_picture(image_grid(blocks, titles), path)


def first_mixes(mixed: Mixed, classes: Tensor, count: int) -> Mixed:
    """Return the first mixes; those with sources of different classes `[M, N]` come first."""
    repeated = classes.sort(dim=1).values.diff(dim=1).eq(0).any(dim=1)
    rows = repeated.byte().argsort(stable=True)[:count]
    return mixed.rows(rows)


SUITE = Suite(
    name="maps",
    summary="Grad-CAM of clean and mixed images, and how much of the maps is left in a mix",
    run=run_maps,
    Result=MapsResult,
    Settings=MapsSettings,
)
