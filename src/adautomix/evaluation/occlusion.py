"""The occlusion suite: accuracy as more and more of each image is hidden.

Random patches of every image are painted in the mean color of the training data, as in Fig. 5 of
the paper (16 × 16 patches of a 224 × 224 image, 0 to 100 % hidden), after Naseer et al.,
*Intriguing Properties of Vision Transformers*, NeurIPS 2021. The released script hides the same
patches in all images of a batch. Here each image has its own random order of patches, and a patch
that is hidden at one fraction stays hidden at every larger one, so that the shape of the curve is
not due to the random draw.
"""

from collections.abc import Iterator
from functools import partial

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from adautomix.evaluation.image_rows import write_image_rows
from adautomix.evaluation.suite import ResultCache, Suite, SuiteResult, SuiteSettings
from adautomix.evaluation.target import EvalTarget
from adautomix.models import evaluating

PICTURE = "hidden.png"
PICTURE_FRACTIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
PICTURE_IMAGES = 3


class OcclusionSettings(SuiteSettings):
    """How much is hidden at each step; a patch larger than the image covers the whole image."""

    steps: int = Field(
        10, ge=1, le=100, description="number of steps from nothing hidden to everything hidden"
    )
    patch: int | None = Field(
        None,
        ge=1,
        description="side of a patch in pixels; none: 1/14 of the image's side, at least 4 for 32",
    )


class Curve(BaseModel):
    """The accuracy of one network on images with hidden patches.

    Attributes:
        accuracy: top-1 accuracy at each fraction hidden, 0 to 1.
        area: area under the curve of accuracy over the fraction hidden, by the trapezoidal rule,
            0 to 1.
    """

    accuracy: list[float]
    area: float


class OcclusionResult(SuiteResult):
    """The curve of each network.

    Attributes:
        patch: side of a patch in pixels.
        patches: number of patches of an image. If the patch does not divide the image evenly,
            the last ones are cut off.
        fractions: fractions of the patches that were hidden, 0 to 1, ascending.
        networks: curves by network name.
    """

    patch: int
    patches: int
    fractions: list[float]
    networks: dict[str, Curve]


def default_patch(image_size: int) -> int:
    """Return the side of a patch in pixels: 16 for images of 224 as in the paper, 4 for 32.

    This is a fourteenth of the image, but at least 4 pixels as long as 8 patches fit side by side:
    patches of two pixels would add noise to a 32 × 32 image rather than hide parts of it.
    """
    return max(1, round(image_size / 14), min(4, image_size // 8))


def patches_per_side(image_size: int, patch: int) -> int:
    """Return the number of patches that cover a side; the last one may be cut off."""
    return -(-image_size // patch)


def random_order(images: int, patches: int, generator: torch.Generator) -> Tensor:
    """Return the patches of each image in random order, int64 `[B, P]` on the CPU.

    Random numbers are drawn image by image, so the orders do not depend on the batch size. They
    are float64, so that no two patches of an image get the same number.
    """
    numbers = torch.rand(images, patches, dtype=torch.float64, generator=generator)
    return numbers.argsort(dim=1, stable=True)


def hidden_pixels(order: Tensor, fraction: float, image_size: int, patch: int) -> Tensor:
    """Return which pixels are hidden, bool `[B, 1, S, S]`.

    Args:
        order: patches of each image, int64 `[B, P]`; the first round(fraction × P) are hidden.
        fraction: fraction of the patches to hide, 0 to 1.
        image_size: side S of the image in pixels.
        patch: side of a patch in pixels.
    """
    count = round(fraction * order.shape[1])
    hidden = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :count], True)
    side = patches_per_side(image_size, patch)
    grid = hidden.view(-1, 1, side, side)
    pixels = grid.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    return pixels[..., :image_size, :image_size]


def hide(pixels: Tensor, hidden: Tensor, mean: Tensor) -> Tensor:
    """Return images `[B, 3, S, S]` with the mean color `[3, 1, 1]` where `hidden` is true.

    Args:
        pixels: `[B, 3, S, S]` in [0, 1].
        hidden: bool `[B, 1, S, S]`.
        mean: color in [0, 1], `[3, 1, 1]`.
    """
    return torch.where(hidden, mean, pixels)


def run_occlusion(
    target: EvalTarget, settings: OcclusionSettings, cache: ResultCache
) -> OcclusionResult:
    """Score each network at every fraction hidden, and draw what the images look like."""
    size = target.data.image_size
    patch = min(size, settings.patch or default_patch(size))
    fractions = [step / settings.steps for step in range(settings.steps + 1)]
    cache.set_total(len(fractions))
    scores = [
        cache.get(f"{fraction:.1%} hidden", partial(accuracy_at, target, fraction, patch))
        for fraction in fractions
    ]
    draw_picture(target, patch, cache)
    accuracy = {name: [score[name] for score in scores] for name in target.networks}
    return OcclusionResult(
        patch=patch,
        patches=patches_per_side(size, patch) ** 2,
        fractions=fractions,
        networks={
            name: Curve(accuracy=values, area=area_under(fractions, values))
            for name, values in accuracy.items()
        },
    )


def accuracy_at(target: EvalTarget, fraction: float, patch: int) -> dict[str, float]:
    """Return the top-1 accuracy of each network with a fraction of the patches hidden, 0 to 1."""
    correct = dict.fromkeys(target.networks, 0)
    with evaluating(*target.networks.values()):
        for pixels, labels, hidden in hidden_batches(target, fraction, patch):
            for name, network in target.networks.items():
                logits = network(hide(pixels, hidden, network.mean))
                correct[name] += int((logits.argmax(dim=1) == labels).sum())
    return {name: count / len(target.data.test) for name, count in correct.items()}


def hidden_batches(
    target: EvalTarget, fraction: float, patch: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield test images, labels and which pixels to hide.

    The random orders are the same at every call.

    Yields:
        Pixels `[B, 3, S, S]` in [0, 1], labels `[B]`, and hidden pixels, bool `[B, 1, S, S]`.
    """
    generator = target.generator("occlusion")
    size = target.data.image_size
    patches = patches_per_side(size, patch) ** 2
    for pixels, labels in target.batches():
        order = random_order(len(pixels), patches, generator).to(pixels.device)
        yield pixels, labels, hidden_pixels(order, fraction, size, patch)


def area_under(fractions: list[float], accuracy: list[float]) -> float:
    """Return the area under a curve by the trapezoidal rule."""
    x, y = torch.tensor(fractions).double(), torch.tensor(accuracy).double()
    return float(torch.trapezoid(y, x))


def draw_picture(target: EvalTarget, patch: int, cache: ResultCache) -> None:
    """Draw a few test images, one per row, at the `PICTURE_FRACTIONS` from left to right."""
    size, count = target.data.image_size, len(target.data.test)
    rows = torch.linspace(0, count - 1, min(PICTURE_IMAGES, count)).round().long()
    pixels, _ = next(target.batches(target.data.test.subset(rows)))
    generator = target.generator("occlusion/picture")
    patches = patches_per_side(size, patch) ** 2
    order = random_order(len(pixels), patches, generator).to(pixels.device)
    mean = next(iter(target.networks.values())).mean
    columns = [hide(pixels, hidden_pixels(order, f, size, patch), mean) for f in PICTURE_FRACTIONS]
    write_image_rows(torch.stack(columns, dim=1), cache.output_path(PICTURE))


SUITE = Suite(
    name="occlusion",
    summary="accuracy as more and more of each image is hidden, and the area under the curve",
    run=run_occlusion,
    Result=OcclusionResult,
    Settings=OcclusionSettings,
)
