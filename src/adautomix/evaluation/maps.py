"""Where networks see the classes of a mix: Grad-CAM of clean images and of mixes of them.

The paper shows such maps (Fig. 11); here two numbers go with them, means over the sources of many
mixes. A source n of a mix counts if it has a share in the label, no other source of the mix has
its class y_n, and its map on the clean image is not 0 everywhere. With G(image) the map of y_n,
at least 0, as large as the image:

- similarity: the cosine of G(mix) and G(source n) over the pixels, 0 to 1. How much of what the
  network saw in the clean image it still sees, at the same place, in the mix. 0 where G(mix) is 0.
- inside: the share of the sum of G(mix) at the pixels where the mask of source n is larger than
  that of every other source. Whether the network sees a class where it is. A map that knows
  nothing has there the share of these pixels, which is given beside it as `area`. Only for mixes
  with masks, and where G(mix) is not 0.

The mixes are those of the run's own method with what it had learned, or plain Mixup and CutMix for
a network from elsewhere and where the run mixes nothing. Methods that move or shrink their sources
(ResizeMix, AlignMix) score lower similarities for that alone.
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
from adautomix.evaluation.mixing import FEWEST, Mixer, own_mixer, plain_mixer, shuffled_batches
from adautomix.evaluation.suite import ResultCache, Suite, SuiteResult, SuiteSettings
from adautomix.evaluation.target import EvalTarget, PixelNetwork
from adautomix.methods import Mixed
from adautomix.pictures.sheet import heat_tile, image_tile, write_sheet

PLAIN = ("mixup", "cutmix")


class MapsSettings(SuiteSettings):
    """What is mapped, and of how many mixes."""

    images: int = Field(128, ge=FEWEST, description="test images that are mixed with one another")
    layer: str | None = Field(
        None, description="path of the mapped module in the timm network; none: the last stage"
    )
    mixes: Literal["own", "plain"] = Field(
        "own", description="of the run's method, or plain mixup and cutmix for any network"
    )
    rows: int = Field(4, ge=1, le=8, description="mixes in a picture")


class Survival(BaseModel):
    """What is left of the maps of the sources; see the module for what is meant.

    Attributes:
        similarity: mean cosine of a source's map on the mix and on the clean image, 0 to 1.
        inside: mean share of the map's sum where the source has the largest mask, 0 to 1.
        area: mean share of the pixels where it has, 0 to 1.
        sources: how many sources counted.

    A mean over nothing is None.
    """

    similarity: float | None
    inside: float | None
    area: float | None
    sources: int


class NetworkMaps(BaseModel):
    """The maps of one network.

    Attributes:
        layer: path of the module that was mapped.
        side: of its map, in pixels, before it was enlarged.
        survival: by the method that mixed.
        pictures: file of a few of the maps, by the method that mixed.
    """

    layer: str
    side: int
    survival: dict[str, Survival]
    pictures: dict[str, str]


class MapsResult(SuiteResult):
    """The maps of each network, by name."""

    networks: dict[str, NetworkMaps]


@dataclass(frozen=True)
class MappedNetwork:
    """A network by its name, and the layer that is mapped."""

    name: str
    network: PixelNetwork
    layer: MappedLayer

    def see(self, pixels: Tensor, classes: Tensor) -> Tensor:
        """The maps `[B, H, W]` of one class `[B]` in each image `[B, 3, H, W]`."""
        return grad_cam(self.network, self.layer, pixels, classes)


class Maps(NamedTuple):
    """What a network sees of the N sources of M mixes.

    Attributes:
        classes: of the sources, int64 `[M, N]`.
        clean: the map of that class on the source itself, `[M, N, H, W]`.
        mixed: its map on the mix, `[M, N, H, W]`.
    """

    classes: Tensor
    clean: Tensor
    mixed: Tensor


class Scores(NamedTuple):
    """Of each source that counts, `[n]`; NaN where there is no such number."""

    similarity: Tensor
    inside: Tensor
    area: Tensor


def run_maps(target: EvalTarget, settings: MapsSettings, cache: ResultCache) -> MapsResult:
    """Map each network on each kind of mix, and draw a few."""
    load_captum()
    mixers = mixers_of(target, settings)
    pixels, _ = next(batches_of(target, settings))
    layers = {
        name: find_layer(network, pixels[:2], settings.layer)
        for name, network in target.networks.items()
    }
    cache.set_total(len(layers) * len(mixers))
    networks = {}
    for name, layer in layers.items():
        found = NetworkMaps(layer=layer.path, side=layer.side, survival={}, pictures={})
        for method, mixer in mixers.items():
            mapped = MappedNetwork(name, target.networks[name], layer)
            measure = partial(measure_survival, mapped, target, settings, mixer)
            found.survival[method] = Survival(**cache.get(f"{name}, {method}", measure))
            found.pictures[method] = f"{name}-{method}.webp"
            path = cache.output_path(found.pictures[method])
            draw_picture(mapped, target, settings, mixer, path)
        networks[name] = found
    return MapsResult(networks=networks)


# ---------------------------------------------------------------------- mixes


def mixers_of(target: EvalTarget, settings: MapsSettings) -> dict[str, Mixer]:
    """What mixes the images, by name: the run's own method if it mixes, else plain ones."""
    if target.run is not None and settings.mixes == "own":
        own = own_mixer(target)
        _, _, mixed = next(mixed_batches(target, settings, own))
        if mixed.perm.shape[1] > 1:
            return {own.method.name: own}
    return {name: plain_mixer(name, target) for name in PLAIN}


def batches_of(target: EvalTarget, settings: MapsSettings) -> Iterator[tuple[Tensor, Tensor]]:
    """The images that are mixed and their labels, always the same."""
    return shuffled_batches(target, settings.images, target.generator("maps/images"))


def mixed_batches(
    target: EvalTarget, settings: MapsSettings, mixer: Mixer
) -> Iterator[tuple[Tensor, Tensor, Mixed]]:
    """The images, their labels, and always the same mixes of them."""
    generator = target.generator("maps/mixes")
    for pixels, labels in batches_of(target, settings):
        yield pixels, labels, mixer.mix(pixels, labels, mixer.make_params(pixels, generator))


# ---------------------------------------------------------------------- numbers


def maps_of(mapped: MappedNetwork, pixels: Tensor, labels: Tensor, mixed: Mixed) -> Maps:
    """The maps of all sources of some mixes of the images `[B, 3, H, W]`."""
    classes = labels[mixed.perm]
    rows, of_source = mixed.perm.unique(return_inverse=True)
    clean = mapped.see(pixels[rows], labels[rows])[of_source]
    on_mix = [mapped.see(mixed.images, classes[:, n]) for n in range(classes.shape[1])]
    return Maps(classes, clean, torch.stack(on_mix, dim=1))


def survival_of(maps: Maps, mixed: Mixed) -> Scores:
    """Similarity, inside and area of each source that counts; see the module."""
    counted = counts(maps, mixed)
    clean, on_mix = (unit(each)[counted].double() for each in (maps.clean, maps.mixed))
    similarity = F.cosine_similarity(clean.flatten(1), on_mix.flatten(1), dim=1)
    masks = mixed.masks
    if masks is None:
        none = torch.full_like(similarity, torch.nan)
        return Scores(similarity, none, none)
    own = largest(masks)[counted].double()
    inside = (on_mix * own).sum(dim=(1, 2)) / on_mix.sum(dim=(1, 2))
    area = own.mean(dim=(1, 2)).where(inside.isfinite(), torch.nan)
    return Scores(similarity, inside, area)


def counts(maps: Maps, mixed: Mixed) -> Tensor:
    """Which sources count, bool `[M, N]`: a share, a class and a map of their own."""
    alone = (maps.classes[:, :, None] == maps.classes[:, None, :]).sum(dim=2) == 1
    return alone & (mixed.lam > 0) & (maps.clean.amax(dim=(2, 3)) > 0)


def largest(masks: Tensor) -> Tensor:
    """Where the mask of each source is larger than all others, bool like masks `[M, N, H, W]`."""
    if masks.shape[1] == 1:
        return torch.ones_like(masks, dtype=torch.bool)
    first, second = masks.topk(2, dim=1).values.split(1, dim=1)
    alone: Tensor = (masks == first) & (first > second)
    return alone


def unit(maps: Tensor) -> Tensor:
    """Maps `[..., H, W]` by their largest value, 0 to 1; what is 0 everywhere stays so."""
    most = maps.amax(dim=(-2, -1), keepdim=True)
    return maps / most.where(most > 0, 1)


def measure_survival(
    mapped: MappedNetwork, target: EvalTarget, settings: MapsSettings, mixer: Mixer
) -> dict[str, float | int | None]:
    """The means over all sources that count, as plain data."""
    found = [
        survival_of(maps_of(mapped, pixels, labels, mixed), mixed)
        for pixels, labels, mixed in mixed_batches(target, settings, mixer)
    ]
    means = {
        name: float(torch.cat([getattr(scores, name) for scores in found]).nanmean())
        for name in Scores._fields
    }
    sources = sum(len(scores.similarity) for scores in found)
    return {name: None if math.isnan(mean) else mean for name, mean in means.items()} | {
        "sources": sources
    }


# ---------------------------------------------------------------------- picture


def draw_picture(
    mapped: MappedNetwork, target: EvalTarget, settings: MapsSettings, mixer: Mixer, path: Path
) -> None:
    """The first mixes, those of different classes before others: sources, mix, and all maps."""
    pixels, labels, mixed = next(mixed_batches(target, settings, mixer))
    some = some_mixes(mixed, labels[mixed.perm], settings.rows)
    maps = maps_of(mapped, pixels, labels, some)
    clean, on_mix = (unit(each).cpu().numpy() for each in (maps.clean, maps.mixed))
    images, mixes = (each.float().cpu().numpy() for each in (pixels, some.images))
    perm, classes = some.perm.tolist(), maps.classes.tolist()
    blocks = []
    for m, sources in enumerate(perm):
        names = [target.classes[k] for k in classes[m]]
        lam = "λ " + ", ".join(f"{share:.2f}" for share in some.lam[m].tolist())
        originals = [image_tile(images[b], names[n]) for n, b in enumerate(sources)]
        features = [heat_tile(clean[m, n], over=images[b]) for n, b in enumerate(sources)]
        in_mix = [heat_tile(on_mix[m, n], names[n], over=mixes[m]) for n in range(len(sources))]
        blocks.append([[*originals, image_tile(mixes[m], lam)], [*features, *in_mix]])
    titles = {0: "originals and maps", len(perm[0]): f"mix as the {mapped.name} sees it"}
    write_sheet(blocks, path, titles)


def some_mixes(mixed: Mixed, classes: Tensor, count: int) -> Mixed:
    """The first mixes, those first whose sources are of different classes `[M, N]`."""
    alike = classes.sort(dim=1).values.diff(dim=1).eq(0).any(dim=1)
    rows = alike.byte().argsort(stable=True)[:count]
    return mixed.rows(rows)


SUITE = Suite(
    name="maps",
    summary="Grad-CAM of clean and mixed images, and how much of the maps a mix leaves",
    run=run_maps,
    Result=MapsResult,
    Settings=MapsSettings,
)
