"""Accuracy on images of which more and more is hidden.

Random patches of every image are painted in the mean color of the training data: the paper's
Fig. 5 (16 × 16 patches of a 224 × 224 image, 0 to 100 % hidden), after Naseer et al., *Intriguing
Properties of Vision Transformers*, NeurIPS 2021. The released script hides the same patches in a
whole batch; here each image has an order of its own, and a patch hidden at one share stays hidden
at every larger one, so that the curve bends because of the images and not because of the draw.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from adautomix.evaluation.suite import ResultCache, Suite, SuiteResult, SuiteSettings
from adautomix.evaluation.target import EvalTarget
from adautomix.models import evaluating

PICTURE = "hidden.png"
PICTURED_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
PICTURED_IMAGES = 3
_SIDE = 112  # pixels of an image in the picture, at most


class OcclusionSettings(SuiteSettings):
    """How much is hidden at a time; a patch larger than the image is the image."""

    steps: int = Field(10, ge=1, le=100, description="from nothing hidden to everything")
    patch: int | None = Field(
        None, ge=1, description="pixels a side; none: 1/14 of the image's, at least 4 of 32"
    )


class Curve(BaseModel):
    """What one network made of hidden images.

    Attributes:
        accuracy: top-1 at every share, 0 to 1.
        area: under it over shares 0 to 1, by trapezoids, 0 to 1.
    """

    accuracy: list[float]
    area: float


class OcclusionResult(SuiteResult):
    """The curve of each network.

    Attributes:
        patch: side of a patch, in pixels.
        patches: of an image; where the side does not divide the image's, the last are cut off.
        shares: of the patches that were hidden, 0 to 1, ascending.
        networks: a curve for each, by name.
    """

    patch: int
    patches: int
    fractions: list[float]
    networks: dict[str, Curve]


def suited_patch(image_size: int) -> int:
    """Pixels a side of a patch: 16 of 224 as in the paper, 4 of 32.

    A fourteenth of the image, but not below 4 pixels as long as 8 patches fit side by side: with
    two pixels a patch, a 32 × 32 image is covered by noise rather than by patches.
    """
    return max(1, round(image_size / 14), min(4, image_size // 8))


def patches_a_side(image_size: int, patch: int) -> int:
    """How many patches cover a side; the last is cut off where they do not divide it."""
    return -(-image_size // patch)


def draw_order(images: int, patches: int, generator: torch.Generator) -> Tensor:
    """For each image all its patches in random order, int64 `[B, P]` on the CPU.

    Numbers are taken from the generator image by image: batches of any size get the same orders.
    In float64 two patches of an image do not draw the same number.
    """
    drawn = torch.rand(images, patches, dtype=torch.float64, generator=generator)
    return drawn.argsort(dim=1, stable=True)


def hidden_pixels(order: Tensor, share: float, image_size: int, patch: int) -> Tensor:
    """Which pixels are hidden, bool `[B, 1, S, S]`.

    Args:
        order: the patches of each image, int64 `[B, P]`; the first round(share × P) are hidden.
        share: 0 to 1.
        image_size: side S in pixels.
        patch: side of a patch in pixels.
    """
    count = round(share * order.shape[1])
    hidden = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :count], True)
    side = patches_a_side(image_size, patch)
    grid = hidden.view(-1, 1, side, side)
    pixels = grid.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    return pixels[..., :image_size, :image_size]


def hide(pixels: Tensor, hidden: Tensor, mean: Tensor) -> Tensor:
    """Images `[B, 3, S, S]` with the mean color `[3, 1, 1]` where `hidden` `[B, 1, S, S]` is."""
    return torch.where(hidden, mean, pixels)


def run_occlusion(
    target: EvalTarget, settings: OcclusionSettings, cache: ResultCache
) -> OcclusionResult:
    """Score each network at every share, and draw what it was shown."""
    size = target.data.image_size
    patch = min(size, settings.patch or suited_patch(size))
    shares = [step / settings.steps for step in range(settings.steps + 1)]
    cache.set_total(len(shares))
    scores = [
        cache.get(f"{share:.1%} hidden", partial(accuracy_at, target, share, patch))
        for share in shares
    ]
    draw_picture(target, patch, cache)
    accuracy = {name: [score[name] for score in scores] for name in target.networks}
    return OcclusionResult(
        patch=patch,
        patches=patches_a_side(size, patch) ** 2,
        fractions=shares,
        networks={
            name: Curve(accuracy=values, area=area(shares, values))
            for name, values in accuracy.items()
        },
    )


def accuracy_at(target: EvalTarget, share: float, patch: int) -> dict[str, float]:
    """Top-1 of each network, 0 to 1, with a share of every test image's patches hidden."""
    right = dict.fromkeys(target.networks, 0)
    with evaluating(*target.networks.values()):
        for pixels, labels, hidden in hidden_batches(target, share, patch):
            for name, network in target.networks.items():
                logits = network(hide(pixels, hidden, network.mean))
                right[name] += int((logits.argmax(dim=1) == labels).sum())
    return {name: count / len(target.data.test) for name, count in right.items()}


def hidden_batches(
    target: EvalTarget, share: float, patch: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pixels and labels of the test images, and which pixels are hidden; always the same orders."""
    generator = target.generator("occlusion")
    size = target.data.image_size
    patches = patches_a_side(size, patch) ** 2
    for pixels, labels in target.batches():
        order = draw_order(len(pixels), patches, generator).to(pixels.device)
        yield pixels, labels, hidden_pixels(order, share, size, patch)


def area(shares: list[float], accuracy: list[float]) -> float:
    """The area under a curve by trapezoids."""
    return float(torch.trapezoid(torch.tensor(accuracy).double(), torch.tensor(shares).double()))


def draw_picture(target: EvalTarget, patch: int, cache: ResultCache) -> None:
    """A few test images, one a row, as they look at the `PICTURED_SHARES`, from left to right."""
    from torchvision.utils import save_image

    size, count = target.data.image_size, len(target.data.test)
    rows = torch.linspace(0, count - 1, min(PICTURED_IMAGES, count)).round().long()
    pixels, _ = next(target.batches(target.data.test.subset(rows)))
    generator = target.generator("occlusion/picture")
    order = draw_order(len(pixels), patches_a_side(size, patch) ** 2, generator).to(pixels.device)
    mean = next(iter(target.networks.values())).mean
    covered = [hide(pixels, hidden_pixels(order, s, size, patch), mean) for s in PICTURED_SHARES]
    tiles = fit(torch.stack(covered, dim=1).flatten(0, 1))
    save_image(
        tiles, cache.picture_path(PICTURE), nrow=len(PICTURED_SHARES), padding=6, pad_value=1
    )


def fit(images: Tensor) -> Tensor:
    """Small images `[B, 3, S, S]` enlarged by whole pixels, large ones shrunk."""
    size = images.shape[-1]
    if size > _SIDE:
        return F.interpolate(images, (_SIDE, _SIDE), mode="bilinear", antialias=True)
    return F.interpolate(images, scale_factor=_SIDE // size, mode="nearest")


SUITE = Suite(
    name="occlusion",
    summary="accuracy as more and more of each image is hidden, and the area under the curve",
    run=run_occlusion,
    Result=OcclusionResult,
    Settings=OcclusionSettings,
)
